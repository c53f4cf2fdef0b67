"""What a fine-tuning run does, besides the settings that every run has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss.errors import Error
from gptoss.model import ModelConfig
from gptoss.train.run.settings import Settings
from gptoss.train.tune.examples import METHODS
from gptoss.train.tune.forms import VARIED, check_date
from gptoss.train.tune.lora import parse_targets

# Settings that fine-tuning carries out. The others are of `gptoss train` alone.
USED = frozenset(
    "steps batch_tokens micro_tokens length seed learning_rate schedule decay_from "
    "final_learning_rate warmup weight_decay beta1 beta2 clip balance quantize_from dtype device "
    "checkpointing validate_every save_every tensorboard".split()
)


@dataclass(frozen=True)
class Recipe:
    """`method` "sft", "dpo" or "text"; all weights (`full`) or LoRA. Raises Error for wrong values.

    lora_targets: names out of attention, router, experts, tokens, with commas. beta: how strongly
    DPO penalises leaving the model it started from. validation: share of the examples held out.
    truncate: cut what is too long instead of leaving it out. epochs: passes over the data; 0 says
    that settings.steps counts. date and raw: of conversations (see `gptoss.train.tune.forms`).
    """

    method: str = "sft"
    full: bool = False
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_targets: str = "attention,router,experts,tokens"
    beta: float = 0.1
    validation: float = 0.1
    truncate: bool = False
    epochs: float = 3.0
    date: str = VARIED
    raw: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise Error(f"method: expected one of {', '.join(METHODS)}, found {self.method!r}")
        check_date(self.date)
        object.__setattr__(self, "lora_targets", ",".join(parse_targets(self.lora_targets)))
        for name, low, high in (
            ("lora_rank", 1, 1 << 16),
            ("lora_alpha", 0, 1e6),
            ("beta", 1e-6, 1e3),
            ("validation", 0, 0.9),
            ("epochs", 0, 1e6),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise Error(f"{name}: expected {low:g} to {high:g}, found {value}")

    @property
    def sequences(self) -> int:
        """How many an example holds."""
        return 2 if self.method == "dpo" else 1

    @property
    def targets(self) -> tuple[str, ...]:
        """`lora_targets` one by one."""
        return parse_targets(self.lora_targets)

    def rate(self, hidden_size: int) -> float:
        """The learning rate, where none is named: 1 / hidden size for adapters.

        Adam's steps have one size for every weight, so their sum over a row of a matrix grows with
        its length. All weights at once want a tenth of it. Preferences want a thirtieth: they are
        soon told apart, and what goes further spoils the text.
        """
        part = (0.1 if self.full else 1.0) / (30 if self.method == "dpo" else 1)
        return part / hidden_size

    def settings(self, config: ModelConfig, changes: Mapping[str, Any]) -> Settings:
        """Settings that suit the method and the model, with `changes`. Raises Error.

        A row is one `length` long, or for DPO two, so that a pair lies in one row.
        """
        if unused := sorted(changes.keys() - USED):
            raise Error(f"{unused[0]}: fine-tuning has no such setting; {', '.join(sorted(USED))}")
        if self.epochs and "steps" in changes:
            raise Error(
                f"steps: expected epochs 0 beside a number of steps, found epochs {self.epochs:g}"
            )
        length = changes.get("length", min(Settings.length, config.context_length))
        if isinstance(length, int) and length > config.context_length:
            raise Error(
                f"length: expected at most {config.context_length}, the model's context, "
                f"found {length}"
            )
        width = length * self.sequences
        values: dict[str, Any] = {
            "learning_rate": self.rate(config.hidden_size),
            "final_learning_rate": 0.1,
            "batch_tokens": max(1, 4096 // max(1, width)) * width,
            "warmup": 10,
            "weight_decay": 0.0,
            "beta2": 0.99,
            "balance": 0.0,
            "quantize_from": 0.5,
            "spike": 0.0,
            "validate_every": 20,
            "validation_rows": 0,
            "save_every": 20,
            "sample_tokens": 0,
            **changes,
            "length": length,
            "long_length": length,
            "long_from": 1.0,
        }
        if "steps" not in changes:  # until it is known how many the epochs take
            values["steps"] = max(Settings.steps, values["warmup"])
        elif "warmup" not in changes:
            values["warmup"] = min(values["warmup"], values["steps"])
        settings = Settings(**values)
        if settings.batch_tokens % width:
            raise Error(
                f"batch_tokens: expected a multiple of {width}, the tokens of a row, "
                f"found {settings.batch_tokens}"
            )
        return settings

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)
