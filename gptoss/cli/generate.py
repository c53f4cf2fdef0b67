"""`gptoss generate`: continue a text."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

from gptoss.cli.arguments import add_model, whole, whole_or_none
from gptoss.cli.opening import open_engine
from gptoss.errors import Error
from gptoss.request import SamplingParams

if TYPE_CHECKING:
    from gptoss.engine import Engine
    from gptoss.request import Completion, Grammar, Timing


NAME = "generate"
HELP = "Continue a text."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = SamplingParams()
    add = parser.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help="the text; without it, standard input is read")
    add("--file", metavar="F", help="read the prompt from a file")

    add_model(parser)

    sampling = parser.add_argument_group("sampling")
    add = sampling.add_argument
    add(
        "--max-tokens",
        type=whole_or_none,
        default=default.max_tokens,
        metavar="N",
        help=f'or "none": up to the end of the context (default: {default.max_tokens})',
    )
    for option, kind, text in (
        ("temperature", float, "0 takes the most likely token"),
        ("top-k", whole, "keep the N most likely tokens; 0 keeps all"),
        ("top-p", float, "keep the most likely tokens up to this probability"),
        ("min-p", float, "drop tokens less likely than this part of the best"),
        ("repetition-penalty", float, "divide logits of tokens seen"),
        ("presence-penalty", float, "subtract from logits of tokens in the output"),
        ("frequency-penalty", float, "the same for each occurrence"),
    ):
        value = getattr(default, option.replace("-", "_"))
        name = "N" if kind is whole else "X"
        add(
            f"--{option}",
            type=kind,
            default=value,
            metavar=name,
            help=f"{text} (default: {value:g})",
        )
    add("--seed", type=whole, metavar="N", help="repeat a run (default: random)")
    add(
        "--logit-bias",
        action=_AddBias,
        metavar="ID=X",
        help="add X to the logit of a token; may be given often",
    )
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before it; may be given often",
    )
    add(
        "--stop-token-ids",
        type=whole,
        nargs="+",
        default=[],
        metavar="ID",
        help="end at these tokens",
    )
    add("--min-tokens", type=whole, default=0, metavar="N", help="do not end before N tokens")
    add("--ignore-eos", action="store_true", help="go on past the model's end tokens")
    add("--n", type=whole, default=1, metavar="N", help="write N completions (default: 1)")

    form = parser.add_argument_group(
        "form", "what the text must be, in full (needs the extra grammar)"
    ).add_mutually_exclusive_group()
    add = form.add_argument
    add("--json-schema", metavar="F", help="JSON that fits the schema in this file")
    add("--regex", metavar="PATTERN", help="text that matches all of a regular expression")
    add("--choice", action="append", metavar="TEXT", help="one of several; may be given often")
    add("--lark", metavar="F", help="text of the Lark grammar in this file")

    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--echo", action="store_true", help="print the prompt before its continuation")
    add("--stats", action="store_true", help="print speeds to standard error at the end")
    add("--no-stream", dest="stream", action="store_false", help="do not print token by token")
    add("--json", action="store_true", help="print one JSON object per completion")
    add("--logprobs", type=whole, metavar="N", help="with --json: of each token and the best N")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """`gptoss generate`."""
    if arguments.prompt is not None and arguments.file is not None:
        parser.error("generate: expected PROMPT or --file, found both")
    if arguments.logprobs is not None and not arguments.json:
        parser.error("generate: --logprobs is shown with --json only: expected both")
    try:
        arguments.grammar = _grammar(arguments)
        params = SamplingParams(
            **{
                field.name: getattr(arguments, field.name)
                for field in dataclasses.fields(SamplingParams)
                if field.name in arguments  # others are for servers
            }
        )
    except Error as error:
        parser.error(f"generate: {error}")
    prompt = _read_prompt(arguments, parser)
    start = perf_counter()
    engine = open_engine(arguments)
    load_seconds = perf_counter() - start
    if arguments.json or params.n > 1:
        _print_completions(arguments, prompt, engine.generate(prompt, params), load_seconds)
    else:
        _print_stream(arguments, prompt, engine, params, load_seconds)
    engine.close()
    return 0


def _grammar(arguments: argparse.Namespace) -> Grammar | None:
    """What the text must be, by the options that say so; at most one of them is given."""
    from gptoss.request import Grammar

    if arguments.json_schema is not None:
        return Grammar.json(_read_file(arguments.json_schema))
    if arguments.regex is not None:
        return Grammar.regex(arguments.regex)
    if arguments.choice:
        return Grammar.choice(arguments.choice)
    if arguments.lark is not None:
        return Grammar.lark(_read_file(arguments.lark))
    return None


def _read_prompt(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    if arguments.prompt not in (None, "-"):
        try:
            # Bytes of the command line that are not text in this locale arrive as lone surrogates.
            return os.fsencode(arguments.prompt).decode()
        except UnicodeDecodeError as error:
            raise Error(
                f"PROMPT: expected UTF-8, found byte {error.object[error.start]:#04x}"
            ) from None
    if arguments.file not in (None, "-"):
        return _read_file(arguments.file)
    if arguments.prompt is None and arguments.file is None and sys.stdin.isatty():
        parser.error("generate: expected PROMPT, --file, or a text on standard input")
    return _decoded("standard input", sys.stdin.buffer.read())


def _read_file(name: str) -> str:
    with open(name, "rb") as file:
        return _decoded(name, file.read())


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Error(
            f"{name}: expected UTF-8, found byte {data[error.start]:#04x} at offset {error.start}"
        ) from None


def _print_stream(
    arguments: argparse.Namespace,
    prompt: str,
    engine: Engine,
    params: SamplingParams,
    load_seconds: float,
) -> None:
    end = "\n"
    if arguments.echo:
        print(prompt, end="", flush=True)
    with engine.stream(prompt, params) as stream:
        for delta in stream:
            if delta.text:
                print(delta.text, end="", flush=arguments.stream)
                end = "" if delta.text.endswith("\n") else "\n"
    print(end=end, flush=True)
    if arguments.stats and stream.timing:
        _print_stats([stream.timing], load_seconds)


def _print_completions(
    arguments: argparse.Namespace, prompt: str, completions: list[Completion], load_seconds: float
) -> None:
    for completion in completions:
        text = (prompt if arguments.echo else "") + completion.text
        if arguments.json:
            print(json.dumps(_as_json(completion, text), ensure_ascii=False))
        else:
            print(f"--- {completion.index + 1} of {len(completions)} ---\n{text}")
    if arguments.stats:
        _print_stats([completion.timing for completion in completions], load_seconds)


def _as_json(completion: Completion, text: str) -> dict[str, Any]:
    timing = completion.timing
    found: dict[str, Any] = {
        "index": completion.index,
        "text": text,
        "finish_reason": completion.finish_reason,
        "token_ids": completion.token_ids,
        "timing": {
            **dataclasses.asdict(timing),
            "ttft": timing.ttft,
            "tokens_per_second": timing.tokens_per_second,
        },
    }
    if completion.logprobs is not None:
        found["logprobs"] = [
            {
                **_token_json(entry.token_id, entry.bytes, entry.logprob),
                "top": [_token_json(top.token_id, top.bytes, top.logprob) for top in entry.top],
            }
            for entry in completion.logprobs
        ]
    return found


def _token_json(token_id: int, data: bytes, logprob: float) -> dict[str, Any]:
    # Not every double is a JSON number: a token that cannot be drawn has -inf.
    value = logprob if logprob > float("-inf") else None
    return {"token_id": token_id, "bytes": list(data), "logprob": value}


def _print_stats(timings: list[Timing], load_seconds: float) -> None:
    first = timings[0]
    line = f"prompt {first.prompt_tokens} tokens in {first.prefill_seconds:.3f} s"
    line += f" ({first.prefill_tokens_per_second:.1f}/s)"
    if len(timings) == 1:
        line += f"; output {first.completion_tokens} tokens, {first.tokens_per_second:.1f} tokens/s"
    else:
        tokens = sum(timing.completion_tokens for timing in timings)
        seconds = max(t.queue_seconds + t.prefill_seconds + t.decode_seconds for t in timings)
        line += f"; {len(timings)} outputs, {tokens} tokens, {tokens / seconds:.1f} tokens/s"
    line += f"; first token after {first.ttft:.3f} s; loaded in {load_seconds:.2f} s"
    print(line, file=sys.stderr)


class _AddBias(argparse.Action):
    """Collects ID=X into a dictionary."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        token, _, bias = str(values).partition("=")
        try:
            pair = {int(token): float(bias)}
        except ValueError:
            parser.error(f"{option_string}: expected ID=X, such as 17=-100, found {values!r}")
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **pair})
