"""Architectures and training settings under a name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptoss.checkpoint import PRESETS as GEOMETRIES
from gptoss.errors import Error
from gptoss.model import ModelConfig
from gptoss.train.model.architecture import Architecture
from gptoss.train.run.settings import Settings

if TYPE_CHECKING:
    from gptoss.train.data import PreparedData


@dataclass(frozen=True)
class Preset:
    """What to train and how, and the tokenizer that suits it.

    `fixed`: sizes of the vocabulary that the user has named.
    """

    architecture: Architecture
    settings: Settings
    tokenizer: str = "bpe"
    fixed: frozenset[str] = frozenset()

    def replace(self, **changes: Any) -> Preset:
        """A copy with other values, of the architecture, its sizes or the settings.

        Raises Error for a name that none of them has.
        """
        names = {field.name for field in dataclasses.fields(Settings)}
        mine = {name: value for name, value in changes.items() if name in names}
        rest = {name: value for name, value in changes.items() if name not in names}
        known = names | set(self.architecture.to_dict())
        for name in rest:
            if name not in known:
                raise Error(f"preset: expected one of {', '.join(sorted(known))}; found {name!r}")
        return Preset(
            self.architecture.replace(**rest),
            dataclasses.replace(self.settings, **mine),
            self.tokenizer,
            self.fixed | ({"vocab_size", "eos_token_ids"} & set(rest)),
        )

    def fit(self, data: PreparedData) -> Preset:
        """The same with vocabulary and end ids of `data`, as far as they were not `fixed`."""
        found = {"vocab_size": data.vocab_size, "eos_token_ids": data.stop_ids}
        changes = {name: value for name, value in found.items() if name not in self.fixed}
        return dataclasses.replace(self, architecture=self.architecture.replace(**changes))


def _preset(
    sizes: dict[str, Any], parts: dict[str, Any], settings: dict[str, Any], tokenizer: str = "bpe"
) -> Preset:
    config = ModelConfig(vocab_size=4096, eos_token_ids=(4095,), **sizes)
    return Preset(Architecture(config, **parts), Settings(**settings), tokenizer)


_NANO_CPU = {
    "num_hidden_layers": 4,
    "num_experts": 8,
    "experts_per_token": 4,
    "hidden_size": 224,
    "intermediate_size": 160,
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "sliding_window": 128,
    "initial_context_length": 256,
    "rope_scaling_factor": 4.0,
}

PRESETS = {
    # for one GPU: 4,000 tokens of context; 58 M parameters, 34 M of them active, with 4,096 ids
    "nano": _preset(
        {
            "num_hidden_layers": 8,
            "num_experts": 8,
            "experts_per_token": 4,
            "hidden_size": 512,
            "intermediate_size": 448,
            "head_dim": 64,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "sliding_window": 128,
            "initial_context_length": 1000,
            "rope_scaling_factor": 4.0,
        },
        {},
        {
            "steps": 5000,
            "batch_tokens": 64_000,
            "micro_tokens": 16_000,
            "length": 1000,
            "long_length": 4000,
            "learning_rate": 1.5e-3,
            "warmup": 200,
            "validate_every": 250,
            "save_every": 250,
        },
    ),
    # for two CPU cores: the bundled model
    "nano-cpu": _preset(_NANO_CPU, {}, {"steps": 1400, "save_every": 50}),
    # GPT-2's parts with the active parameters per token of nano-cpu's blocks
    "gpt2-style": _preset(
        {
            **_NANO_CPU,
            "head_dim": 56,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "initial_context_length": 1024,
            "rope_scaling_factor": 1.0,
        },
        {
            "positions": "learned",
            "norm": "layer",
            "feed_forward": "gelu",
            "feed_forward_size": 1088,
            "window_pattern": "F",
            "sinks": False,
            "dropout": 0.1,
            "tied_embeddings": True,
        },
        {"steps": 1400, "save_every": 50},
    ),
    # tiny Shakespeare by characters, in minutes
    "shakespeare": _preset(
        {
            **_NANO_CPU,
            "hidden_size": 128,
            "intermediate_size": 96,
            "head_dim": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 64,
            "initial_context_length": 128,
            "rope_scaling_factor": 2.0,
        },
        {},
        {
            "steps": 1000,
            "length": 256,
            "long_length": 256,
            "learning_rate": 3e-3,
            "sample_prompt": "ROMEO:",
            "sample_tokens": 200,
        },
        "characters",
    ),
    # the published geometry, for machines that hold 21 billion parameters and their optimizer
    "gpt-oss-20b": Preset(
        Architecture(GEOMETRIES["gpt-oss-20b"]),
        Settings(
            steps=10_000,
            batch_tokens=524_288,
            micro_tokens=4096,
            length=4096,
            long_length=4096,
            learning_rate=3e-4,
            weight_decay=0.1,
            beta2=0.95,
            warmup=500,
            checkpointing=True,
        ),
    ),
}


def get_preset(name: str) -> Preset:
    """The preset called `name`; raises Error for another name."""
    if name not in PRESETS:
        raise Error(f"preset: expected one of {', '.join(PRESETS)}; found {name!r}")
    return PRESETS[name]
