"""Everything about a run besides the architecture and the data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from gptoss.errors import Error, shown

SCHEDULES = ("cosine", "constant", "wsd")
DTYPES = ("float32", "bfloat16")
PARALLEL = ("ddp", "fsdp")

# name → (lowest, highest) value allowed, both included
_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 10**9),
    "batch_tokens": (1, 10**12),
    "micro_tokens": (1, 10**12),
    "length": (2, 10**8),
    "long_length": (2, 10**8),
    "long_from": (0, 1),
    "quantize_from": (0, 1),
    "decay_from": (0, 1),
    "learning_rate": (0, 1e3),
    "final_learning_rate": (0, 1),
    "warmup": (0, 10**9),
    "weight_decay": (0, 1e3),
    "beta1": (0, 0.999999),
    "beta2": (0, 0.999999),
    "clip": (0, math.inf),
    "balance": (0, 1e3),
    "z_loss": (0, 1e3),
    "ema": (0, 0.999999),
    "spike": (0, 1e6),
    "seed": (0, 2**63 - 1),
    "validate_every": (1, 10**9),
    "validation_rows": (0, 10**9),
    "save_every": (1, 10**9),
    "statistics_every": (0, 10**9),
    "sample_tokens": (0, 10**6),
}


@dataclass(frozen=True)
class Settings:
    """Lengths and `…_tokens` count tokens; `warmup`, `steps` and `…_every` count optimizer steps.

    The `…_from` figures are fractions of the run, 1 = never. Raises Error for values that are
    invalid, alone or together.
    """

    steps: int = 1000
    batch_tokens: int = 4096  # of one optimizer step, over all processes
    micro_tokens: int = 4096  # at most, at once per process; the rest accumulates
    length: int = 512  # of a row
    long_length: int = 1024  # of a row in the last part of the run
    long_from: float = 0.8
    texts: str | Mapping[str, int] = ""  # "a:2,b": a twice per epoch, b once; "" = all once
    seed: int = 0

    learning_rate: float = 2.5e-3
    schedule: str = "cosine"  # after the warm-up; "constant"; "wsd": constant, then a decay
    decay_from: float = 0.8  # "wsd": where the decay begins
    final_learning_rate: float = 0.02  # as a fraction of learning_rate
    warmup: int = 60
    weight_decay: float = 0.05  # of matrices; not of norms, biases, sinks and embeddings
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0  # largest norm of the whole gradient; 0 = any
    balance: float = 0.01  # weight of the routers' balance loss
    z_loss: float = 0.0  # weight of the routers' z-loss
    ema: float = 0.0  # decay per step of averaged weights, such as 0.999; 0 = off
    quantize_from: float = 0.9  # experts rounded to MXFP4 in the forward pass from here on
    spike: float = 3.0  # stop when the loss is above this times its running mean; 0 = never

    dtype: str = "bfloat16"  # of matrix operands; "float32"
    device: str = "auto"  # "cpu", "cuda"
    compile: bool = False
    checkpointing: bool = False  # less memory: activations are computed again in the backward pass
    parallel: str = "ddp"  # under torchrun: "ddp" = a copy each, "fsdp" = shards of one copy

    validate_every: int = 100
    validation_rows: int = 32  # of each text; 0 = all
    save_every: int = 100
    statistics_every: int = 0  # norms and quantiles of weights and gradients; 0 = off
    tensorboard: bool = False
    sample_prompt: str = "Once upon a time"
    sample_tokens: int = 80  # 0 = no samples

    def __post_init__(self) -> None:
        if isinstance(self.texts, Mapping):
            text = ",".join(f"{name}:{times}" for name, times in self.texts.items())
            object.__setattr__(self, "texts", text)
        self._check_types()
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise Error(f"{name}: expected {low:g} to {high:g}, found {value}")
        for name, allowed in (
            ("schedule", SCHEDULES),
            ("dtype", DTYPES),
            ("parallel", PARALLEL),
        ):
            if getattr(self, name) not in allowed:
                raise Error(
                    f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}"
                )
        if self.warmup > self.steps:
            raise Error(
                f"warmup: expected 0 <= warmup <= steps, found {self.warmup} of {self.steps} steps"
            )
        for length in (self.length, self.long_length):
            if self.batch_tokens % length:
                raise Error(
                    f"batch_tokens: expected a multiple of the row length {length}, "
                    f"found {self.batch_tokens}"
                )
        if 0 < self.spike <= 1:
            raise Error(f"spike: expected more than 1, or 0 for never, found {self.spike}")
        self.repeats  # noqa: B018  (raises for a text that cannot be read)

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind is float and type(value) is int and value.bit_length() < 1024:
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not kind:
                raise Error(f"{field.name}: expected {_KINDS[kind]}, found {shown(value)}")

    @property
    def repeats(self) -> dict[str, int]:
        """`texts` as name → times per epoch; empty for all texts once."""
        found: dict[str, int] = {}
        for part in str(self.texts).split(","):
            if not part.strip():
                continue
            name, _, times = part.strip().partition(":")
            if not name or name in found or not (times or "1").isdigit() or int(times or 1) < 1:
                raise Error(f"texts: expected names such as a:2,b:1, found {self.texts!r}")
            found[name] = int(times or 1)
        return found


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
