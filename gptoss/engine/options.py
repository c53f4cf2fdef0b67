"""The options of an engine: their names, types, defaults, limits and help, each said once.

The Python API, the command line, the server's replicas, Ray's application and the benchmarks all
take them from here. Imports nothing heavy: `gptoss --help` reads it.
"""

from __future__ import annotations

import textwrap
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from gptoss.errors import Error, shown

# Upper limits catch a number of another unit; each is far above what is of any use.
MAX_THREADS = 1024
MAX_RANKS = 8
MAX_TOKENS = 1 << 20  # of a step
MAX_BYTES = (1 << 63) - 1

# What a step holds by default: enough to keep the device's arithmetic busy.
STEP_TOKENS = {"cpu": 512, "cuda": 4096}
MAX_BATCH = {"cpu": 64, "cuda": 256}


@dataclass(frozen=True)
class Option:
    """What a field of `EngineOptions` may be, and how it is explained.

    kind: "path", "text", "choice" (of `choices`), "count" and "bytes" (1 to `limit`), or "switch".
    help: one line, for `--help`. details: the rest, for Python's `help`. unset: what a default of
    None means, in words; only such a field may be None. disable: help of the argument that turns a
    switch off.
    """

    kind: Literal["path", "text", "choice", "count", "bytes", "switch"]
    help: str
    details: str = ""
    choices: tuple[str, ...] = ()
    limit: int = 0
    default: Any = None
    unset: str = ""
    disable: str = ""

    @property
    def default_text(self) -> str:
        """The default, in words."""
        return self.unset if self.default is None else str(self.default)

    def check(self, name: str, value: Any) -> Any:
        """`value` as a plain Python object. Raises Error unless it is what is expected."""
        if value is None and self.default is None:
            return None
        match self.kind:
            case "path":
                good, expected = isinstance(value, (str, PathLike)), "a path or a name"
            case "text":
                good, expected = isinstance(value, str), "text"
            case "choice":
                good = isinstance(value, str) and value in self.choices
                expected = " or ".join(map(repr, self.choices))
            case "switch":
                good, expected = isinstance(value, bool), "True or False"
            case _:
                return check_integer(name, value, 1, self.limit)
        if not good:
            raise Error(f"{name}: expected {expected}, found {shown(value)}", field=name)
        return value


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as a plain int: those of NumPy overflow in arithmetic with others."""
    # bool is an int to Python; here True is more likely a mistake than a 1.
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise Error(
            f"{name}: expected an integer from {low} to {high}, found {shown(value)}", field=name
        )
    return int(value)


def _option(kind: Any, help: str, details: str = "", **more: Any) -> dict[str, Option]:
    """The metadata of a field."""
    return {"option": Option(kind, help, details, **more)}


def _by_device(values: dict[str, int]) -> str:
    return f"{values['cpu']} on a CPU, {values['cuda']} on a GPU"


@dataclass(frozen=True)
class EngineOptions:
    """How a model is opened and run. Checked when made; wrong values raise `gptoss.Error`."""

    model: str | Path | None = field(
        default=None,
        metadata=_option(
            "path",
            "a name (nano, gpt-oss-20b, owner/name of the Hugging Face Hub), a folder, a file, or "
            "synthetic:gpt-oss-20b?layers=4",
            unset="the bundled model",
        ),
    )
    device: str = field(
        default="auto",
        metadata=_option("text", "auto, cpu or cuda", '"auto" is the fastest that is available.'),
    )
    activation: str = field(
        default="bf16",
        metadata=_option(
            "choice",
            "operands of products",
            '"f32" leaves them unrounded, for exact comparison.',
            choices=("bf16", "f32"),
        ),
    )
    kv_bytes: int | None = field(
        default=None,
        metadata=_option(
            "bytes",
            "memory for keys and values",
            "By default enough for 16 sequences of full context, but no more than a quarter of the "
            "free memory; on a GPU for 64, but no more than 85%.",
            unset="by the model and the free memory",
            limit=MAX_BYTES,
        ),
    )
    threads: int | None = field(
        default=None,
        metadata=_option(
            "count", "threads of the CPU backend", unset="one per core", limit=MAX_THREADS
        ),
    )
    _: KW_ONLY
    max_batch: int | None = field(
        default=None,
        metadata=_option(
            "count",
            "most sequences in one step",
            "At most step_tokens.",
            unset=_by_device(MAX_BATCH),
            limit=MAX_TOKENS,
        ),
    )
    step_tokens: int | None = field(
        default=None,
        metadata=_option(
            "count",
            "most tokens in one step",
            "Long prompts enter in chunks of at most this size.",
            unset=_by_device(STEP_TOKENS),
            limit=MAX_TOKENS,
        ),
    )
    weights: str | None = field(
        default=None,
        metadata=_option(
            "choice",
            "attention and unembedding as published (bf16), or in 8 bits",
            '"published" is exact; "q8" is int8 in groups of 32.',
            unset="as the model has them",
            choices=("published", "q8"),
        ),
    )
    kv: str = field(
        default="bf16",
        metadata=_option(
            "choice",
            "keys and values",
            '"int8" has a scale per token and head.',
            choices=("bf16", "int8"),
        ),
    )
    tensor_parallel: int = field(
        default=1,
        metadata=_option(
            "count",
            "GPUs that hold a part of the model each",
            "A divisor of the model's KV heads and experts. (On the CPU: groups of threads, which "
            "is of no use but to try it.)",
            limit=MAX_RANKS,
        ),
    )
    prefix_cache: bool = field(
        default=True,
        metadata=_option(
            "switch",
            "start after what was computed before of the same text, for whichever request",
            disable="compute every prompt from its beginning",
        ),
    )
    speculation: bool = field(
        default=True,
        metadata=_option(
            "switch",
            "guess tokens from what stands in the text, where that pays",
            "The same texts come of it (see `gptoss.engine.drafts`).",
            disable="do not guess repetitions ahead",
        ),
    )
    overlap: bool | None = field(
        default=None,
        metadata=_option(
            "switch",
            "plan a step while the one before it runs",
            "On a CPU planning takes the cores that compute.",
            unset="on a GPU only",
        ),
    )

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.check(name, getattr(self, name)))

    def step_limits(self, device: str) -> tuple[int, int]:
        """(tokens, sequences): the most that a step holds on `device`.

        Raises:
            Error: more sequences than tokens are asked for.
        """
        tokens = self.step_tokens or STEP_TOKENS[device]
        sequences = self.max_batch or min(MAX_BATCH[device], tokens)
        if sequences > tokens:
            raise Error(
                f"max_batch: expected 1 to {tokens} (the tokens of a step), found {sequences}",
                field="max_batch",
            )
        return tokens, sequences

    def overlaps(self, device: str) -> bool:
        """Is a step planned while the one before it runs on `device`?"""
        return device == "cuda" if self.overlap is None else self.overlap


OPTIONS: dict[str, Option] = {
    f.name: replace(f.metadata["option"], default=f.default) for f in fields(EngineOptions)
}


def _describe(name: str, option: Option) -> str:
    kind = " or ".join(map(repr, option.choices)) if option.choices else ""
    text = f"{name}: {option.help}{f': {kind}' if kind else ''} (default: {option.default_text})."
    return textwrap.fill(
        f"{text} {option.details}".rstrip(),
        width=96,
        initial_indent=" " * 8,
        subsequent_indent=" " * 12,
    )


if EngineOptions.__doc__:  # python -OO strips it
    EngineOptions.__doc__ += "\n\n    Args:\n" + "\n".join(
        _describe(name, option) for name, option in OPTIONS.items()
    )
