"""What drafts and overlapped steps gain: the same texts with and without, in turn. And what forms
of answers cost.

    python bench/reuse.py                      # the bundled model
    python bench/reuse.py --model gpt-oss-20b --tokens 100 --batch 1,8

With --forms the masks of forms are timed instead, on the model's vocabulary (for the published one:
--model 'synthetic:tiny?vocab=201088' where it is at hand).

With --device-ms N overlap is measured on a device that takes N milliseconds a step and no core, as
a GPU would; it computes nothing, so texts are not compared.

Drafts: one text at a time: one that goes round in circles, a greedy one, and one drawn at
temperature 1. Overlap: --batch texts at a time. In float32 both ways must write the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np

from gptoss import Engine, EngineOptions, Grammar, SamplingParams
from gptoss.cli.arguments import add_engine_options
from gptoss.engine.constraint import GrammarVocabulary
from gptoss.engine.load import load
from gptoss.native import _core, arrays

CIRCLES = "one two three " * 4
PROMPT = "Once upon a time there was a little dog who had a red ball. " * 4


class Sleeping:
    """A device that takes a fixed time and draws the same token for every row. It owns a real one,
    which it replaces.
    """

    def __init__(self, real: _core.Backend, seconds: float) -> None:
        self._real = real
        self._seconds = seconds

    def close(self) -> None:
        self._real.close()

    def step(self, *plan: Any, sampling: Any, **options: Any) -> arrays.StepOutput:
        sleep(self._seconds)
        output = arrays.StepOutput()
        rows = len(sampling.rows) if sampling is not None else 0
        output.tokens = np.full(rows, 65, np.int32)
        output.logprobs = np.zeros(rows, np.float32)
        return output


def rate(engine: Engine, prompts: list[str], params: SamplingParams) -> tuple[float, list[str]]:
    """(tokens per second, texts)."""
    begun = perf_counter()
    found = engine.generate(prompts, params)
    tokens = sum(len(completion.token_ids) for completion in found)
    return tokens / (perf_counter() - begun), [completion.text for completion in found]


def compare(
    name: str, ways: tuple[Engine, Engine], prompts: list[str], params: SamplingParams, repeat: int
) -> bool:
    """Print how much faster the second way is; whether both wrote the same."""
    same, ratios, speeds = True, [], []
    for engine in ways:
        rate(engine, prompts, params)
    for _ in range(repeat):
        (before, texts), (after, others) = (rate(engine, prompts, params) for engine in ways)
        ratios.append(after / before)
        speeds.append(after)
        same &= texts == others
    print(f"{name:<34} {median(speeds):8.1f} tokens/s, {median(ratios):.2f} times "
          f"({min(ratios):.2f} to {max(ratios):.2f}) as fast"
          + ("" if same else ", other texts"), flush=True)  # fmt: skip
    return same


def sleeping(arguments: argparse.Namespace, common: dict[str, Any]) -> int:
    def engine(overlap: bool) -> Engine:
        loaded = load(EngineOptions(speculation=False, overlap=overlap, **common))
        backend: Any = Sleeping(loaded.model.backend, arguments.device_ms / 1e3)
        return Engine.over(replace(loaded, model=replace(loaded.model, backend=backend)))

    with engine(overlap=False) as plain, engine(overlap=True) as overlapped:
        for count in map(int, arguments.batch.split(",")):
            compare(
                f"overlap, {count} at a time",
                (plain, overlapped),
                [f"Number {i}: {PROMPT}" for i in range(count)],
                SamplingParams(max_tokens=arguments.tokens, ignore_eos=True, seed=1),
                arguments.repeat,
            )
    return 0


FORMS: dict[str, tuple[Callable[[Any], Grammar], Any, str]] = {
    "schema": (
        Grammar.json,
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "age": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        },
        '{"name": "Ann Bee", "age": 42, "tags": ["a", "bcd ef"]}',
    ),
    "any object": (Grammar.json, None, '{"name": "Ann Bee", "age": 42, "tags": ["a"]}'),
    "expression": (Grammar.regex, r"\d{4}-\d\d-\d\d", "2024-01-02"),
    "choice": (Grammar.choice, ["yes", "no", "maybe"], "maybe"),
    "free text": (Grammar.regex, r"(.|\n)*", "We need to think about this, a lot.\n" * 20),
}


def forms(engine: Engine) -> int:
    """Print how long a vocabulary, a form of it, and each token's mask take."""
    engine.tokenizer.encode("x")
    begun = perf_counter()
    words = GrammarVocabulary(engine.tokenizer, engine.config.vocab_size, engine.tokenizer.eos_ids)
    print(f"vocabulary of {engine.config.vocab_size}: {perf_counter() - begun:.2f} s")
    for name, (make, value, text) in FORMS.items():
        begun = perf_counter()
        state = words.compile(make(value)).begin()
        compiled = perf_counter() - begun
        masks = []
        for token in engine.tokenizer.encode(text):
            begun = perf_counter()
            state.mask()
            masks.append(perf_counter() - begun)
            state.push(token)
        print(f"{name:<12} compiled in {1e3 * compiled:.1f} ms; {len(masks)} masks: "
              f"{1e6 * median(masks):.0f} us, at most {1e6 * max(masks):.0f} us")  # fmt: skip
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Guesses and overlapped steps, timed.")
    add = parser.add_argument
    add_engine_options(parser, ["model", "threads", "activation"], {"activation": "f32"})
    add("--tokens", type=int, default=300, metavar="N")
    add("--batch", default="1,8,64", help="texts at a time, for overlap (default: 1,8,64)")
    add("--repeat", type=int, default=5, metavar="N")
    add(
        "--device-ms", type=float, metavar="N", help="overlap beside a device that computes nothing"
    )
    add("--forms", action="store_true", help="time masks instead")
    arguments = parser.parse_args()
    common = {
        "model": arguments.model,
        "activation": arguments.activation,
        "threads": arguments.threads,
        "prefix_cache": False,
        "kv_bytes": 1 << 30,  # room for all of them at once
    }
    same = True
    if arguments.forms:
        with Engine(arguments.model) as engine:
            return forms(engine)
    if arguments.device_ms is not None:
        return sleeping(arguments, common)
    plain = Engine(speculation=False, overlap=False, **common)
    with plain, Engine(speculation=True, overlap=False, **common) as drafting:
        for name, prompt, options in (
            ("circles", CIRCLES, {"temperature": 0.0}),
            ("greedy", PROMPT, {"temperature": 0.0}),
            ("temperature 1", PROMPT, {"seed": 1}),
        ):
            params = SamplingParams(max_tokens=arguments.tokens, ignore_eos=True, **options)
            same &= compare(
                f"guesses, {name}", (plain, drafting), [prompt], params, arguments.repeat
            )
    plain = Engine(speculation=False, overlap=False, **common)
    with plain, Engine(speculation=False, overlap=True, **common) as overlapped:
        for count in map(int, arguments.batch.split(",")):
            params = SamplingParams(max_tokens=arguments.tokens, ignore_eos=True, seed=1)
            prompts = [f"Number {i}: {PROMPT}" for i in range(count)]
            same &= compare(
                f"overlap, {count} at a time",
                (plain, overlapped),
                prompts,
                params,
                arguments.repeat,
            )
    return 0 if same or arguments.activation != "f32" else 1


if __name__ == "__main__":
    sys.exit(main())
