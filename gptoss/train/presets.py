"""Model geometries and training settings under a name."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss.config import ModelConfig
from gptoss.errors import Error


@dataclass(frozen=True)
class Settings:
    """Everything about a run beside the model and the data.

    Lengths and `batch_tokens` count tokens; `warmup` and `steps` count optimizer steps; the
    `…_from` figures are fractions of the run, 1 = never.
    """

    steps: int = 1000
    batch_tokens: int = 4096
    micro_tokens: int = 4096  # at most so many tokens in memory at once; the rest accumulates
    length: int = 512
    long_length: int = 1024  # row length of the last part of the run
    long_from: float = 0.8
    quantize_from: float = 0.9  # experts rounded to MXFP4 in the forward pass from here on
    learning_rate: float = 2.5e-3
    final_learning_rate: float = 0.02  # as a fraction of learning_rate
    warmup: int = 60
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0
    balance: float = 0.01
    seed: int = 0
    dtype: str = "bfloat16"  # of matrix operands; "float32"
    validate_every: int = 100
    validation_rows: int = 32  # of each text; 0 = all
    save_every: int = 100
    sample_prompt: str = "Once upon a time"
    sample_tokens: int = 80

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup <= self.steps:
            raise Error(
                f"warmup: expected 0 <= warmup <= steps, found {self.warmup} of {self.steps} steps"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise Error(f"dtype: expected float32 or bfloat16, found {self.dtype!r}")
        for length in (self.length, self.long_length):
            if self.batch_tokens % length:
                raise Error(
                    f"batch_tokens: expected a multiple of the row length {length}, "
                    f"found {self.batch_tokens}"
                )


@dataclass(frozen=True)
class Preset:
    model: ModelConfig
    settings: Settings


NANO = Preset(
    model=ModelConfig(
        num_hidden_layers=4,
        num_experts=8,
        experts_per_token=4,
        vocab_size=4096,
        hidden_size=224,
        intermediate_size=160,
        swiglu_limit=7.0,
        head_dim=64,
        num_attention_heads=8,
        num_key_value_heads=1,
        sliding_window=128,
        initial_context_length=256,
        rope_theta=150000.0,
        rope_scaling_factor=4.0,
        rope_ntk_alpha=1.0,
        rope_ntk_beta=32.0,
        eos_token_ids=(4095,),
    ),
    settings=Settings(steps=1400, validate_every=150, validation_rows=16, save_every=50),
)

PRESETS = {"nano": NANO}
