"""The command line: `gptoss`, or `python -m gptoss`.

Exit codes: 0 done, 1 an error, 2 a command that makes no sense, 130 interrupted with Ctrl-C,
129 and 143 ended by SIGHUP and SIGTERM, 141 the reader of our output went away. What a command
needs is imported when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

from gptoss.cli import chat, data, export, finetune, serve, train, viz
from gptoss.cli.arguments import build_parser
from gptoss.cli.opening import open_engine
from gptoss.cli.signals import Terminated, raising_terminated
from gptoss.errors import Error
from gptoss.progress import Progress, human_bytes
from gptoss.sampling import SamplingParams

if TYPE_CHECKING:
    from gptoss.completion import Completion, Timing
    from gptoss.engine import Engine
    from gptoss.grammar import Grammar


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. `argv` is for tests: without it, sys.argv is read."""
    # What models write is UTF-8, whatever the locale thinks of it.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    parser = build_parser(
        {"generate": generate, "info": info, "convert": convert, "synth": synth},
        [chat, serve, data, train, export, finetune, viz],
    )
    arguments = parser.parse_args(argv)
    warnings.showwarning = _show_warning
    # The others write nothing, and a signal that waited for a step of theirs would end them late.
    writers = (convert, synth, *(module.run for module in (data, train, export, finetune, viz)))
    try:
        # Within another program, its own answer to signals stays.
        own = argv is None and arguments.run in writers
        with raising_terminated() if own else nullcontext():
            code: int = arguments.run(arguments, parser)
        sys.stdout.flush()
        return code
    except Terminated as ended:
        with suppress(OSError):  # the terminal may be gone
            print(f"gptoss: ended by {signal.Signals(ended.number).name}", file=sys.stderr)
            sys.stderr.flush()
        os._exit(128 + ended.number)  # for the same reason as below
    except KeyboardInterrupt:
        print(file=sys.stderr)
        if argv is None:
            # The worker may be inside a long step; the interpreter's own end would wait for it.
            sys.stderr.flush()
            os._exit(130)
        return 130
    except BrokenPipeError:
        # Whoever read us has gone; that includes the flush at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if getattr(arguments, "debug", False) or (error.name or "").startswith("gptoss"):
            raise
        print(
            f"gptoss: error: this command needs the Python package {error.name}: "
            "pip install 'gptoss[train]'",
            file=sys.stderr,
        )
        return 1
    except (Error, OSError, MemoryError) as error:
        if getattr(arguments, "debug", False):
            raise
        message = "out of memory" if isinstance(error, MemoryError) and not str(error) else error
        print(f"gptoss: error: {' '.join(str(message).splitlines())}", file=sys.stderr)
        return 1


# Commands.


def generate(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """`gptoss generate`."""
    if arguments.prompt is not None and arguments.file is not None:
        parser.error("generate: expected PROMPT or --file, found both")
    try:
        arguments.grammar = _grammar(arguments)
        params = SamplingParams(
            **{
                field.name: getattr(arguments, field.name)
                for field in dataclasses.fields(SamplingParams)
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
    """What the text must be, of the options that say so; at most one of them is given."""
    from gptoss.grammar import Grammar

    if arguments.json_schema is not None:
        return Grammar.json(_read_file(arguments.json_schema))
    if arguments.regex is not None:
        return Grammar.regex(arguments.regex)
    if arguments.choice:
        return Grammar.choice(arguments.choice)
    if arguments.lark is not None:
        return Grammar.lark(_read_file(arguments.lark))
    return None


def info(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """`gptoss info`."""
    from gptoss.describe import describe_machine, describe_model

    if arguments.model is None:
        if arguments.tensors:
            parser.error("info: --tensors needs a MODEL")
        found = describe_machine()
    else:
        from gptoss.checkpoint import open_checkpoint

        with open_checkpoint(arguments.model) as source:
            found = describe_model(source, tensors=arguments.tensors)
    if arguments.json:
        print(json.dumps(found, indent=2))
    elif arguments.model is None:
        _print_machine(found)
    else:
        _print_model(found)
    return 0


def convert(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """`gptoss convert`."""
    from gptoss.checkpoint import open_checkpoint, write_checkpoint, write_packed

    if arguments.weights is not None and arguments.layout != "packed":
        parser.error(f"convert: --weights needs --layout packed, found {arguments.layout}")
    with open_checkpoint(
        arguments.source, experts=arguments.experts, rule=arguments.rule
    ) as source:
        if arguments.layout == "packed":
            with Progress(f"writing {arguments.destination}") as progress:
                files = write_packed(
                    source,
                    arguments.destination,
                    weights=arguments.weights or "published",
                    progress=progress,
                )
            _print_written(arguments.destination, files)
            return 0
        if source.expert_dtype == "bf16" and arguments.layout != "huggingface-bf16":
            raise Error(
                f"{arguments.source}: its experts are bf16, and layout {arguments.layout} holds "
                "MXFP4; packing loses precision: say --experts mxfp4 to do so"
            )
        with Progress(f"writing {arguments.destination}") as progress:
            files = write_checkpoint(
                source,
                arguments.destination,
                layout=arguments.layout,
                progress=progress,
                rule=arguments.rule,
            )
        _print_written(arguments.destination, files)
    return 0


def synth(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """`gptoss synth`."""
    from gptoss.checkpoint import open_checkpoint, write_checkpoint

    options = {
        key: getattr(arguments, key)
        for key in ("layers", "experts", "vocab", "seed")
        if getattr(arguments, key) is not None
    }
    query = "&".join(f"{key}={value}" for key, value in options.items())
    spec = f"synthetic:{arguments.preset}" + (f"?{query}" if query else "")
    with open_checkpoint(spec) as source, Progress(f"writing {arguments.destination}") as progress:
        files = write_checkpoint(
            source, arguments.destination, layout=arguments.layout, progress=progress
        )
    _print_written(arguments.destination, files)
    return 0


# Generation.


def _read_prompt(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    if arguments.prompt not in (None, "-"):
        try:
            # Bytes of the command line that are no text in this locale arrive as lone surrogates.
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


# Output.


def _print_machine(found: dict[str, Any]) -> None:
    features = " ".join(found["cpu_features"]) or "none known"
    rows = [
        ("gptoss", found["version"]),
        ("python", f"{found['python']}, {found['platform']}"),
        ("cpu", f"{found['cpu_isa']}, {found['cpu_threads']} threads"),
        ("cpu features", features),
    ]
    for backend in found["backends"]:
        state = "available" if backend["available"] else "not available"
        state += f": {backend['reason']}" if backend["reason"] else ""
        rows.append((f"backend {backend['name']}", state))
    for name, loss in found["format_loss"].items():
        text = f"KL {loss['kl']:.1e} nats, top-1 {loss['top1']:.1%}"
        rows.append((name, f"{text}, perplexity x {loss['perplexity']:.4f}"))
    _print_rows(rows)


def _print_model(found: dict[str, Any]) -> None:
    quantization = found["quantization"]
    rows = [
        ("model", found["name"]),
        ("layout", found["layout"]),
        ("files", str(len(found["files"]))),
        ("parameters", f"{found['parameters']:,} ({found['active_parameters']:,} active)"),
        ("weights", f"{human_bytes(found['bytes'])} ({found['bytes']:,} bytes)"),
        (
            "quantization",
            f"experts {quantization['experts']}, all else {quantization['other']}",
        ),
        ("context", f"{found['context_length']:,} tokens"),
        (
            "KV cache, bf16",
            f"{human_bytes(found['kv_bytes_per_token'])} per token"
            f" + {human_bytes(found['kv_bytes_of_windows'])} per sequence",
        ),
    ]
    rows += [(f"  {key}", f"{value}") for key, value in found["config"].items()]
    _print_rows(rows)
    tensors = found.get("tensors")
    if tensors:
        print()
        name_width = max(len(tensor["name"]) for tensor in tensors)
        for tensor in tensors:
            shape = " × ".join(str(size) for size in tensor["shape"])
            print(
                f"{tensor['name']:<{name_width}}  {tensor['dtype']:<5} "
                f"{human_bytes(tensor['bytes']):>10}  {shape}"
            )


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _print_written(destination: str, files: Sequence[os.PathLike[str]]) -> None:
    total = sum(os.stat(file).st_size for file in files)
    print(f"{destination}: {len(files)} files, {human_bytes(total)}")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"gptoss: warning: {message}", file=sys.stderr)
