"""What a model under study is made of: the published sizes, and parts that can be exchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss.errors import Error
from gptoss.model import ModelConfig

POSITIONS = ("yarn", "rope", "learned", "sinusoidal", "none")
NORMS = ("rms", "layer")
FEED_FORWARDS = ("moe", "swiglu", "gelu", "relu")


@dataclass(frozen=True)
class Architecture:
    """Sizes (`config`) and choices; the defaults are gpt-oss itself.

    Number of KV heads: as many as query heads is MHA, fewer is GQA, one is MQA.

    positions: "yarn"; "rope" (the same without YaRN's scaling); "learned" or "sinusoidal" vectors
        added to the embedding; "none".
    norm: "rms", or "layer" (with a bias); always before a block's part.
    feed_forward: "moe"; or dense: "swiglu" (clamped, as in the experts), "gelu", "relu".
    feed_forward_size: inner size of a dense one; 0 = intermediate_size × experts_per_token, so that
        "swiglu" has the active parameters of "moe".
    window_pattern: repeated over the layers: S a sliding window, F full attention.
    sinks: a learned logit per head that takes part in the softmax and adds nothing.
    dropout: on embeddings and on what each part adds to the stream, in training only.
    tied_embeddings: the unembedding is the embedding.
    """

    config: ModelConfig
    positions: str = "yarn"
    norm: str = "rms"
    feed_forward: str = "moe"
    feed_forward_size: int = 0
    window_pattern: str = "SF"
    sinks: bool = True
    dropout: float = 0.0
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("positions", POSITIONS),
            ("norm", NORMS),
            ("feed_forward", FEED_FORWARDS),
        ):
            if getattr(self, name) not in allowed:
                raise Error(
                    f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}"
                )
        if not self.window_pattern or set(self.window_pattern) - {"S", "F"}:
            raise Error(
                "window_pattern: expected letters S (sliding) and F (full), "
                f"found {self.window_pattern!r}"
            )
        if not 0 <= self.dropout < 1:
            raise Error(f"dropout: expected 0 <= dropout < 1, found {self.dropout}")
        if self.feed_forward_size < 0:
            raise Error(f"feed_forward_size: expected 0 or more, found {self.feed_forward_size}")

    @property
    def inner_size(self) -> int:
        """Inner size of a dense feed-forward part."""
        default = self.config.intermediate_size * self.config.experts_per_token
        return self.feed_forward_size or default

    def is_sliding(self, layer: int) -> bool:
        """Whether `layer` attends to the last `sliding_window` tokens only."""
        return self.window_pattern[layer % len(self.window_pattern)] == "S"

    def differences(self) -> list[str]:
        """In what it is not gpt-oss: what keeps a checkpoint and the engine from expressing it."""
        c = self.config
        layers = range(c.num_hidden_layers)
        scaled = self.positions == "rope" and c.rope_scaling_factor > 1
        found = []
        if self.positions not in ("yarn", "rope") or scaled:
            found.append(f"positions {self.positions!r}" + " with scaling" * scaled)
        if self.norm != "rms":
            found.append(f"norm {self.norm!r}")
        if self.feed_forward != "moe":
            found.append(f"feed_forward {self.feed_forward!r}")
        if any(self.is_sliding(n) != c.is_sliding(n) for n in layers):
            found.append(f"window_pattern {self.window_pattern!r}")
        if not self.sinks:
            found.append("no sinks")
        return found

    def replace(self, **changes: Any) -> Architecture:
        """A copy with other values of its own fields or of those of `config`.

        Raises Error for a name that is neither.
        """
        own = {field.name for field in dataclasses.fields(self)} - {"config"}
        sizes = {field.name for field in dataclasses.fields(self.config)}
        unknown = sorted(set(changes) - own - sizes)
        if unknown:
            raise Error(f"model: expected one of {sorted(own | sizes)}, found {unknown[0]!r}")
        config = dataclasses.replace(
            self.config, **{name: value for name, value in changes.items() if name in sizes}
        )
        mine = {name: value for name, value in changes.items() if name in own}
        return dataclasses.replace(self, config=config, **mine)

    def to_dict(self) -> dict[str, Any]:
        """Plain values under one level of names, for JSON; `from_dict` reads them back."""
        found = dataclasses.asdict(self)
        sizes = found.pop("config")
        return {**sizes, "eos_token_ids": list(self.config.eos_token_ids), **found}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_dict`."""
        sizes = {field.name for field in dataclasses.fields(ModelConfig)}
        config = ModelConfig(**{name: value for name, value in data.items() if name in sizes})
        rest = {name: value for name, value in data.items() if name not in sizes}
        return cls(config=config, **rest)
