"""The hyper-parameters of a gpt-oss model. Field names are the keys of OpenAI's config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss.errors import Error, shown

OFFICIAL_VOCABULARY = 201_088
OFFICIAL_EOS = (200_002, 200_012)  # <|return|> and <|call|>

# field → smallest and largest value that makes sense; the core repeats these limits
_INTEGERS: dict[str, tuple[int, int]] = {
    "num_hidden_layers": (1, 1024),
    "num_experts": (1, 4096),
    "experts_per_token": (1, 4096),
    "vocab_size": (1, 1 << 24),
    "hidden_size": (32, 1 << 20),
    "intermediate_size": (32, 1 << 20),
    "head_dim": (2, 1024),
    "num_attention_heads": (1, 4096),
    "num_key_value_heads": (1, 4096),
    "sliding_window": (1, 1 << 24),
    "initial_context_length": (1, 1 << 24),
}
_REALS = (
    "swiglu_limit",
    "rope_theta",
    "rope_scaling_factor",
    "rope_ntk_alpha",
    "rope_ntk_beta",
    "rms_norm_eps",
)
_CONTEXT_LIMIT = 1 << 30  # tokens
_MX_BLOCK = 32  # values that share one MXFP4 scale


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one model. Every instance has passed the checks of `__post_init__`.

    `rope_ntk_alpha` and `rope_ntk_beta` are YaRN's beta_slow and beta_fast. `eos_token_ids` are the
    ids that end a generation; left empty they become `<|return|>` and `<|call|>` when the
    vocabulary is that of the published models.
    """

    num_hidden_layers: int
    num_experts: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    head_dim: int
    num_attention_heads: int
    num_key_value_heads: int
    sliding_window: int = 128
    experts_per_token: int = 4
    swiglu_limit: float = 7.0
    initial_context_length: int = 4096
    rope_theta: float = 150_000.0
    rope_scaling_factor: float = 32.0
    rope_ntk_alpha: float = 1.0
    rope_ntk_beta: float = 32.0
    rms_norm_eps: float = 1e-5
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.eos_token_ids and self.vocab_size == OFFICIAL_VOCABULARY:
            object.__setattr__(self, "eos_token_ids", OFFICIAL_EOS)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        check_values(values, "ModelConfig", {})
        for name in _REALS:  # 150000 and 150000.0 are the same model
            object.__setattr__(self, name, float(values[name]))
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))

    @property
    def context_length(self) -> int:
        """The most tokens a sequence may hold, prompt and output together."""
        return int(self.initial_context_length * max(1.0, self.rope_scaling_factor))

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.num_key_value_heads * self.head_dim

    def is_sliding(self, layer: int) -> bool:
        """Whether `layer` attends to a window only; the others see everything before them."""
        return layer % 2 == 0

    def tensor_shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Every tensor of the original layout: name → (safetensors dtype, shape), in file order."""
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
        hidden, heads, experts = self.hidden_size, self.num_attention_heads, self.num_experts
        qkv = self.query_size + 2 * self.kv_size
        shapes["embedding.weight"] = "BF16", (self.vocab_size, hidden)
        for layer in range(self.num_hidden_layers):
            attn, mlp = f"block.{layer}.attn.", f"block.{layer}.mlp."
            shapes[attn + "norm.scale"] = "BF16", (hidden,)
            shapes[attn + "qkv.weight"] = "BF16", (qkv, hidden)
            shapes[attn + "qkv.bias"] = "BF16", (qkv,)
            shapes[attn + "sinks"] = "BF16", (heads,)
            shapes[attn + "out.weight"] = "BF16", (hidden, self.query_size)
            shapes[attn + "out.bias"] = "BF16", (hidden,)
            shapes[mlp + "norm.scale"] = "BF16", (hidden,)
            shapes[mlp + "gate.weight"] = "BF16", (experts, hidden)
            shapes[mlp + "gate.bias"] = "BF16", (experts,)
            for name, rows, cols in (
                ("mlp1", 2 * self.intermediate_size, hidden),
                ("mlp2", hidden, self.intermediate_size),
            ):
                blocks = cols // _MX_BLOCK
                shapes[f"{mlp}{name}_weight.blocks"] = "U8", (experts, rows, blocks, 16)
                shapes[f"{mlp}{name}_weight.scales"] = "U8", (experts, rows, blocks)
                shapes[f"{mlp}{name}_bias"] = "BF16", (experts, rows)
        shapes["norm.scale"] = "BF16", (hidden,)
        shapes["unembedding.weight"] = "BF16", (self.vocab_size, hidden)
        return shapes

    def parameters(self) -> int:
        """Weights and biases in the whole model (an MXFP4 value counts as one)."""
        total = 0
        for name, (_, shape) in self.tensor_shapes().items():
            if name.endswith(".scales"):
                continue
            total += math.prod(shape) * (2 if name.endswith(".blocks") else 1)
        return total

    def active_parameters(self) -> int:
        """Those that take part in one token, counted as OpenAI's model card does.

        The experts chosen, not all of them, and the unembedding but not the embedding table.
        """
        hidden, inner = self.hidden_size, self.intermediate_size
        expert = 2 * inner * hidden + 2 * inner + hidden * inner + hidden
        idle = self.num_experts - self.experts_per_token
        return (
            self.parameters()
            - self.num_hidden_layers * idle * expert
            - self.vocab_size * self.hidden_size
        )


def check_values(values: Mapping[str, Any], source: str, keys: Mapping[str, str]) -> None:
    """Raise Error unless `values` (by field name) describe a possible model.

    `keys` gives the user's own name of a field where that differs.
    """

    def key(name: str) -> str:
        return keys.get(name, name)

    present = dict(values)
    for field in dataclasses.fields(ModelConfig):
        if field.default is not dataclasses.MISSING:
            present.setdefault(field.name, field.default)
    for name, (low, high) in _INTEGERS.items():
        value = present[name]
        if type(value) is not int:
            raise Error(f"{source}: {key(name)}: expected an integer, found {shown(value)}")
        if not low <= value <= high:
            raise Error(f"{source}: {key(name)}: expected {low}..{high}, found {shown(value)}")
    for name in _REALS:
        value = present[name]
        if type(value) not in (int, float) or not _finite(value):
            raise Error(f"{source}: {key(name)}: expected a finite number, found {shown(value)}")
        if value <= 0:
            raise Error(f"{source}: {key(name)}: expected a number above 0, found {shown(value)}")
    for name in ("hidden_size", "intermediate_size"):
        if present[name] % _MX_BLOCK:
            raise Error(
                f"{source}: {key(name)}: expected a multiple of {_MX_BLOCK} (MXFP4 blocks), "
                f"found {present[name]}"
            )
    if present["head_dim"] % 2:
        raise Error(
            f"{source}: {key('head_dim')}: expected an even number (rotary pairs), "
            f"found {present['head_dim']}"
        )
    if present["num_attention_heads"] % present["num_key_value_heads"]:
        raise Error(
            f"{source}: {key('num_attention_heads')}: expected a multiple of "
            f"{key('num_key_value_heads')} ({present['num_key_value_heads']}), "
            f"found {present['num_attention_heads']}"
        )
    if present["experts_per_token"] > present["num_experts"]:
        raise Error(
            f"{source}: {key('experts_per_token')}: expected at most {key('num_experts')} "
            f"({present['num_experts']}), found {present['experts_per_token']}"
        )
    if present["rope_theta"] <= 1:
        raise Error(
            f"{source}: {key('rope_theta')}: expected a number above 1, "
            f"found {shown(present['rope_theta'])}"
        )
    if present["rope_ntk_alpha"] >= present["rope_ntk_beta"]:
        raise Error(
            f"{source}: {key('rope_ntk_alpha')}: expected less than {key('rope_ntk_beta')} "
            f"({shown(present['rope_ntk_beta'])}), found {shown(present['rope_ntk_alpha'])}"
        )
    context = present["initial_context_length"] * max(1.0, float(present["rope_scaling_factor"]))
    if context >= _CONTEXT_LIMIT:
        raise Error(
            f"{source}: {key('initial_context_length')} times {key('rope_scaling_factor')}: "
            f"expected a context below {_CONTEXT_LIMIT} tokens, found {context:.6g}"
        )
    for token in present["eos_token_ids"]:
        if type(token) is not int or not 0 <= token < present["vocab_size"]:
            raise Error(
                f"{source}: eos_token_id: expected ids within the vocabulary of "
                f"{present['vocab_size']}, found {shown(token)}"
            )


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
