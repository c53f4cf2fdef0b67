"""gpt-oss in PyTorch, for training.

Masters, residual stream, norms, router and softmax are float32; the operands of matrix products
are cast to `GptOss.compute_dtype`. Parameter names are those of the original checkpoint, except
that expert weights are held unquantised: `block.n.mlp.mlp1_weight` [E, 2·I, H] (rows interleaved:
even = glu, odd = linear) and `block.n.mlp.mlp2_weight` [E, H, I].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptoss.config import ModelConfig
from gptoss.train.functions import (
    ClampedSwiglu,
    Dispatch,
    Permute,
    linear_cross_entropy,
    sink_attention,
)
from gptoss.train.quantize import straight_through


def rotary_tables(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of YaRN, float32 [*positions, head_dim/2], times the concentration.

    Boundaries `low` and `high` are not rounded (SPEC of the published model).
    """
    half = config.head_dim // 2
    base, factor = float(config.rope_theta), float(config.rope_scaling_factor)
    index = torch.arange(half, dtype=torch.float64)
    inv_freq = base ** (-index / half)
    concentration = 1.0
    if factor > 1:
        concentration = 0.1 * math.log(factor) + 1.0

        def boundary(rotations: float) -> float:
            turns = config.initial_context_length / (rotations * 2 * math.pi)
            return half * math.log(turns) / math.log(base)

        low, high = boundary(config.rope_ntk_beta), boundary(config.rope_ntk_alpha)
        ramp = ((index - low) / (high - low)).clamp(0, 1)
        inv_freq = ramp * inv_freq / factor + (1 - ramp) * inv_freq
    angles = positions[..., None].double() * inv_freq.to(positions.device)
    return (angles.cos() * concentration).float(), (angles.sin() * concentration).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs (i, i + D/2). x: [B, S, H, D]; cos, sin: [B, S, 1, D/2]; keeps x's dtype."""
    a, b = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -math.inf)


class Masks(NamedTuple):
    """`full`: additive [B, 1, S, S]; `sliding`: the same, or [B·S/W, 1, W, 2·W] in blocks of W."""

    full: Tensor
    sliding: Tensor


def build_masks(config: ModelConfig, documents: Tensor, dtype: torch.dtype) -> Masks:
    """Masks for `documents` int64 [B, S]: keys of the same document, not later than the query.

    A sliding layer sees the keys q − window + 1 … q: `window` keys, the query's own included.
    """
    batch, length = documents.shape
    window = config.sliding_window
    place = torch.arange(length, device=documents.device)
    distance = place[:, None] - place[None, :]
    same = documents[:, :, None] == documents[:, None, :]
    full = same & (distance >= 0)
    if length % window or length <= window:
        return Masks(
            additive_mask(full[:, None], dtype),
            additive_mask((full & (distance < window))[:, None], dtype),
        )
    blocks = length // window
    keys = _with_previous(documents.view(batch, blocks, window), -2)  # [B, N, 2W]
    row = torch.arange(window, device=documents.device)
    distance = row[:, None] + window - torch.arange(2 * window, device=documents.device)[None, :]
    near = (distance >= 0) & (distance < window)
    visible = near & (documents.view(batch, blocks, window, 1) == keys[:, :, None, :])
    return Masks(
        additive_mask(full[:, None], dtype),
        additive_mask(visible.view(batch * blocks, 1, window, 2 * window), dtype),
    )


def _with_previous(x: Tensor, fill: float = 0.0) -> Tensor:
    """[B, N, W, …] → [B, N, 2·W, …]: each block behind the block before it (`fill` at first)."""
    first = torch.full_like(x[:, :1], fill)
    return torch.cat([torch.cat([first, x[:, :-1]], 1), x], 2)


class Norm(nn.Module):
    """RMS norm, float32 in and out."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.scale, self.eps)


class Linear(nn.Module):
    """y = x·Wᵀ + b in the dtype of x; masters float32."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.sliding = config, config.is_sliding(layer)
        heads, groups, dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.qkv = Linear(config.hidden_size, (heads + 2 * groups) * dim)
        self.sinks = nn.Parameter(torch.zeros(heads))
        self.out = Linear(heads * dim, config.hidden_size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, masks: Masks, dtype: torch.dtype
    ) -> Tensor:
        c = self.config
        batch, length, _ = x.shape
        heads, groups, dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        qkv = self.qkv(self.norm(x).to(dtype)).view(batch, length, heads + 2 * groups, dim)
        qk, v = qkv.split([heads + groups, groups], 2)
        q, k = rotate(qk, cos, sin).split([heads, groups], 2)
        mask = masks.sliding if self.sliding else masks.full
        width = mask.shape[-2]
        if width < length:  # the window in blocks, each with the keys of the block before it
            q = q.reshape(-1, width, heads, dim)
            k, v = (
                _with_previous(t.reshape(batch, -1, width, groups, dim)).flatten(0, 1)
                for t in (k, v)
            )
        # query head h reads KV head h // (heads / groups); of a single one, a view will do
        if groups == 1:
            k, v = (t.expand(-1, -1, heads, -1) for t in (k, v))
        else:
            k, v = (t.repeat_interleave(heads // groups, 2) for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = sink_attention(q, k, v, self.sinks, mask, 1 / math.sqrt(dim))
        return x + self.out(y.transpose(1, 2).reshape(batch, length, heads * dim)).to(x.dtype)


class Router(NamedTuple):
    """Of one layer: `balance` = E·Σ share·probability (1 when even), `load` int64 [E]."""

    balance: Tensor
    load: Tensor


class Mlp(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        experts, hidden, inner = config.num_experts, config.hidden_size, config.intermediate_size
        self.norm = Norm(hidden, config.rms_norm_eps)
        self.gate = Linear(hidden, experts)
        self.mlp1_weight = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.mlp1_bias = nn.Parameter(torch.zeros(experts, 2 * inner))
        self.mlp2_weight = nn.Parameter(torch.empty(experts, hidden, inner))
        self.mlp2_bias = nn.Parameter(torch.zeros(experts, hidden))
        self.fake_quantize = False

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self.fake_quantize:
            w1, w2 = straight_through(self.mlp1_weight), straight_through(self.mlp2_weight)
            return w1.to(dtype), w2.to(dtype)
        return self.mlp1_weight.to(dtype), self.mlp2_weight.to(dtype)

    def forward(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Router]:
        c = self.config
        k, experts = c.experts_per_token, c.num_experts
        t = self.norm(x).flatten(0, 1)  # [T, H]
        logits = self.gate(t)
        top, chosen = logits.topk(k, -1)
        weights = top.softmax(-1)

        flat = chosen.flatten()
        order = flat.argsort(stable=True)  # [T·k], by expert, then by token
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        load = torch.bincount(flat, minlength=experts)
        rows = Dispatch.apply(t.to(dtype), order, inverse, k).split(load.tolist())

        w1, w2 = self._weights(dtype)
        # even rows are glu, odd ones linear: put the halves apart, so that slices are contiguous
        w1 = torch.cat([w1[:, 0::2], w1[:, 1::2]], 1)
        b1 = torch.cat([self.mlp1_bias[:, 0::2], self.mlp1_bias[:, 1::2]], 1).to(dtype)
        b2 = self.mlp2_bias.to(dtype)
        outs = []
        for part, w, b, v, a in zip(
            rows, w1.unbind(), b1.unbind(), w2.unbind(), b2.unbind(), strict=True
        ):
            h = ClampedSwiglu.apply(F.linear(part, w, b), c.swiglu_limit)
            outs.append(F.linear(h, v, a))
        y = Permute.apply(torch.cat(outs), inverse, order).view(-1, k, c.hidden_size)
        y = torch.bmm(weights.to(dtype)[:, None], y)[:, 0]

        share = load.to(logits.dtype) / len(flat)
        balance = experts * (share * logits.softmax(-1).mean(0)).sum()
        return x + y.view_as(x).to(x.dtype), Router(balance, load)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = Mlp(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, masks: Masks, dtype: torch.dtype
    ) -> tuple[Tensor, Router]:
        return self.mlp(self.attn(x, cos, sin, masks, dtype), dtype)


class GptOss(nn.Module):
    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.block = nn.ModuleList(Block(config, n) for n in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.unembedding = Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def operand_dtype(self) -> torch.dtype:
        """`compute_dtype`, or float64 once the model has been made `.double()`."""
        double = self.embedding.weight.dtype == torch.float64
        return torch.float64 if double else self.compute_dtype

    def fake_quantize(self, on: bool) -> None:
        """Whether the forward pass rounds expert weights to MXFP4 (gradients pass through)."""
        for module in self.modules():
            if isinstance(module, Mlp):
                module.fake_quantize = on

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Normal weights of deviation 0.02·√(768/hidden), those back into the stream / √(2·L).

        Sinks and biases start at 0: a sink then counts as one key with score 0.
        """
        generator = torch.Generator().manual_seed(seed)
        std = 0.02 * math.sqrt(768 / self.config.hidden_size)
        into_stream = 1 / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if name.endswith(".scale"):
                parameter.fill_(1)
            elif name.endswith(("bias", "sinks")):
                parameter.zero_()
            else:
                back = name.endswith(("attn.out.weight", "mlp2_weight"))
                parameter.normal_(0, std * (into_stream if back else 1), generator=generator)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        residuals: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Router]]:
        """Normed final state [B, S, H] and routing, for int64 [B, S] inputs.

        Without `positions` and `documents` each row is one document. `residuals` receives the
        residual stream after each block.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        if documents is None:
            documents = torch.zeros_like(tokens)
        x = self.embedding(tokens)
        dtype = self.operand_dtype
        cos, sin = (t[:, :, None].to(x.dtype) for t in rotary_tables(self.config, positions))
        masks = build_masks(self.config, documents, x.dtype)
        routing = []
        for block in self.block:
            x, router = block(x, cos, sin, masks, dtype)
            routing.append(router)
            if residuals is not None:
                residuals.append(x)
        return self.norm(x), routing

    def logits(self, tokens: Tensor) -> Tensor:
        """Float32 logits [B, S, V]."""
        x, _ = self.hidden(tokens)
        return self.unembedding(x.to(self.operand_dtype)).to(x.dtype)

    def loss(
        self, tokens: Tensor, targets: Tensor, positions: Tensor, documents: Tensor
    ) -> tuple[Tensor, list[Router]]:
        """Sum of the cross entropy in nats over targets ≥ 0, and the routing of each layer."""
        x, routing = self.hidden(tokens, positions, documents)
        dtype = self.operand_dtype
        weight = self.unembedding.weight.to(dtype)
        return linear_cross_entropy(x.flatten(0, 1).to(dtype), weight, targets.flatten()), routing
