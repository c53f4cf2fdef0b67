"""gpt-oss in PyTorch, for training, with parts that can be exchanged for study.

Masters, residual stream, norms, router and softmax are float32; the operands of matrix products
are cast to `GptOss.compute_dtype`. Parameter names are those of the original checkpoint, except
that expert weights are held unquantised: `block.n.mlp.mlp1_weight` [E, 2·I, H] (rows interleaved:
even = glu, odd = linear) and `block.n.mlp.mlp2_weight` [E, H, I]. Shapes in comments: B rows of S
tokens, T = B·S, H hidden, E experts, k of them chosen, I inner size.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptoss.errors import Error
from gptoss.model import ModelConfig
from gptoss.train.model.architecture import Architecture
from gptoss.train.model.attention import probabilities, sink_attention
from gptoss.train.model.cross_entropy import linear_cross_entropy
from gptoss.train.model.experts import (
    ClampedSwiglu,
    Dispatch,
    ExpertAdapters,
    Permute,
    QuantizedMatrix,
    expert_linear,
    halves,
    sort_by_expert,
)
from gptoss.train.model.positions import rotary_tables, rotate, sinusoids
from gptoss.train.model.quantize import straight_through


class Place(NamedTuple):
    """Of the tokens of a batch: document [B, S], and cos and sin [B, S, 1, D/2] if rotated."""

    documents: Tensor
    cos: Tensor | None
    sin: Tensor | None


class Routing(NamedTuple):
    """Of one layer. `balance` = E·Σ share·probability: 1 when even (Fedus et al. 2021, eq. 4).

    `z`: mean of logsumexp(router logits)² (Zoph et al. 2022, eq. 5); `load`: tokens, int64 [E].
    """

    balance: Tensor
    z: Tensor
    load: Tensor


class Norm(nn.Module):
    """RMS norm, or layer norm with a bias; float32 in and out."""

    def __init__(self, size: int, eps: float, kind: str = "rms") -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if kind == "layer" else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            return F.layer_norm(x, x.shape[-1:], self.scale, self.bias, self.eps)
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
    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__()
        c = self.config = architecture.config
        heads, groups, dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.window = c.sliding_window if architecture.is_sliding(layer) else None
        self.dropout = architecture.dropout
        self.norm = Norm(c.hidden_size, c.rms_norm_eps, architecture.norm)
        self.qkv = Linear(c.hidden_size, (heads + 2 * groups) * dim)
        if architecture.sinks:
            self.sinks = nn.Parameter(torch.zeros(heads))
        else:
            self.register_buffer("sinks", torch.full((heads,), -math.inf), persistent=False)
        self.out = Linear(heads * dim, c.hidden_size)

    def project(self, x: Tensor, place: Place, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """q [B, heads, S, D]; k, v [B, KV heads, S, D]."""
        c = self.config
        heads, groups = c.num_attention_heads, c.num_key_value_heads
        qkv = self.qkv(self.norm(x).to(dtype))
        qkv = qkv.view(*x.shape[:2], heads + 2 * groups, c.head_dim)
        qk, v = qkv.split([heads + groups, groups], 2)
        if place.cos is not None and place.sin is not None:
            qk = rotate(qk, place.cos, place.sin)
        q, k = qk.split([heads, groups], 2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def weights(self, x: Tensor, place: Place, dtype: torch.dtype) -> Tensor:
        """What `forward` weighs the values with, [B, heads, S, S + 1]; the last is the sink."""
        q, k, _ = self.project(x, place, dtype)
        scale = 1 / math.sqrt(self.config.head_dim)
        return probabilities(q, k, self.sinks, place.documents, self.window, scale)

    def forward(self, x: Tensor, place: Place, dtype: torch.dtype) -> Tensor:
        q, k, v = self.project(x, place, dtype)
        scale = 1 / math.sqrt(self.config.head_dim)
        y = sink_attention(q, k, v, self.sinks, place.documents, self.window, scale)
        y = self.out(y.transpose(1, 2).flatten(2)).to(x.dtype)
        return x + F.dropout(y, self.dropout, self.training)


class Mlp(nn.Module):
    """The mixture of experts."""

    mlp1_weight: Tensor | QuantizedMatrix
    mlp2_weight: Tensor | QuantizedMatrix

    def __init__(self, architecture: Architecture, quantized: bool = False) -> None:
        super().__init__()
        c = self.config = architecture.config
        experts, hidden, inner = c.num_experts, c.hidden_size, c.intermediate_size
        self.dropout = architecture.dropout
        self.norm = Norm(hidden, c.rms_norm_eps, architecture.norm)
        self.gate = Linear(hidden, experts)
        for name, shape in (
            ("mlp1_weight", (experts, 2 * inner, hidden)),
            ("mlp2_weight", (experts, hidden, inner)),
        ):
            made = QuantizedMatrix(*shape) if quantized else nn.Parameter(torch.empty(shape))
            setattr(self, name, made)
        self.mlp1_bias = nn.Parameter(torch.zeros(experts, 2 * inner))
        self.mlp2_bias = nn.Parameter(torch.zeros(experts, hidden))
        self.fake_quantize = False
        self.adapters: ExpertAdapters | None = None  # set by fine-tuning

    def route(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For [T, H] normed: logits [T, E], the chosen [T, k] and their weights [T, k]."""
        logits = self.gate(t)
        top, chosen = logits.topk(self.config.experts_per_token, -1)
        return logits, chosen, top.softmax(-1)

    def _matrix(
        self, weight: Tensor | QuantizedMatrix, dtype: torch.dtype
    ) -> Tensor | QuantizedMatrix:
        if isinstance(weight, QuantizedMatrix):
            return weight
        return (straight_through(weight) if self.fake_quantize else weight).to(dtype)

    def experts(self, rows: Tensor, load: Tensor) -> Tensor:
        """rows [N, H], sorted by expert, through their experts."""
        w1, w2 = (self._matrix(w, rows.dtype) for w in (self.mlp1_weight, self.mlp2_weight))
        b1, b2 = self.mlp1_bias.to(rows.dtype), self.mlp2_bias.to(rows.dtype)
        # glu and linear apart, so that slices are contiguous: cheaper done to the weights
        if isinstance(w1, Tensor) and self.adapters is None:
            w1, b1 = halves(w1.transpose(1, 2)).transpose(1, 2), halves(b1)
            u = expert_linear(rows, load, w1, b1)
        else:
            u = halves(expert_linear(rows, load, w1, b1, self.adapters, "mlp1"))
        h = ClampedSwiglu.apply(u, self.config.swiglu_limit)
        return expert_linear(h, load, w2, b2, self.adapters, "mlp2")

    def forward(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Routing]:
        k, count = self.config.experts_per_token, self.config.num_experts
        t = self.norm(x).flatten(0, 1)
        logits, chosen, weights = self.route(t)
        order, inverse, load = sort_by_expert(chosen, count)
        y = self.experts(Dispatch.apply(t.to(dtype), order, inverse, k), load)
        y = Permute.apply(y, inverse, order).view(-1, k, x.shape[-1])
        y = torch.bmm(weights.to(dtype)[:, None], y).view_as(x).to(x.dtype)

        share = load.to(logits.dtype) / load.sum()
        balance = count * (share * logits.softmax(-1).mean(0)).sum()
        z = logits.logsumexp(-1).square().mean()
        return x + F.dropout(y, self.dropout, self.training), Routing(balance, z, load)


class DenseMlp(nn.Module):
    """One feed-forward part for every token: clamped SwiGLU as in the experts, GELU or ReLU."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        c, inner = architecture.config, architecture.inner_size
        self.kind, self.limit = architecture.feed_forward, c.swiglu_limit
        self.dropout = architecture.dropout
        self.norm = Norm(c.hidden_size, c.rms_norm_eps, architecture.norm)
        self.up = Linear(c.hidden_size, inner * (2 if self.kind == "swiglu" else 1))
        self.down = Linear(inner, c.hidden_size)

    def forward(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, None]:
        u = self.up(self.norm(x).to(dtype))
        if self.kind == "swiglu":
            h = ClampedSwiglu.apply(u.flatten(0, 1), self.limit).view(*u.shape[:2], -1)
        else:
            h = F.gelu(u) if self.kind == "gelu" else F.relu(u)
        y = self.down(h).to(x.dtype)
        return x + F.dropout(y, self.dropout, self.training), None


class Block(nn.Module):
    def __init__(self, architecture: Architecture, layer: int, quantized: bool = False) -> None:
        super().__init__()
        self.attn = Attention(architecture, layer)
        dense = architecture.feed_forward != "moe"
        self.mlp = DenseMlp(architecture) if dense else Mlp(architecture, quantized)

    def forward(self, x: Tensor, place: Place, dtype: torch.dtype) -> tuple[Tensor, Routing | None]:
        return self.mlp(self.attn(x, place, dtype), dtype)


class GptOss(nn.Module):
    def __init__(
        self,
        architecture: Architecture | ModelConfig,
        compute_dtype: torch.dtype = torch.float32,
        quantized: bool = False,
    ) -> None:
        """A ModelConfig means gpt-oss itself; `quantized` experts stay MXFP4 and do not train."""
        super().__init__()
        if isinstance(architecture, ModelConfig):
            architecture = Architecture(architecture)
        c, self.architecture = architecture.config, architecture
        self.config, self.compute_dtype = c, compute_dtype
        self.checkpointing = False  # compute activations again in the backward pass
        self.embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        if architecture.positions == "learned":
            self.positions = nn.Embedding(c.context_length, c.hidden_size)
        self.block = nn.ModuleList(
            Block(architecture, n, quantized) for n in range(c.num_hidden_layers)
        )
        self.norm = Norm(c.hidden_size, c.rms_norm_eps, architecture.norm)
        self.unembedding = Linear(c.hidden_size, c.vocab_size, bias=False)
        if architecture.tied_embeddings:
            self.unembedding.weight = self.embedding.weight  # type: ignore[assignment]

    def blocks(self) -> list[Block]:
        """`block`, with the type it has."""
        return cast("list[Block]", list(self.block))

    @property
    def operand_dtype(self) -> torch.dtype:
        """`compute_dtype`, or float64 once the model has been made `.double()`."""
        double = self.norm.scale.dtype == torch.float64
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
                back = name.endswith(("attn.out.weight", "mlp2_weight", "mlp.down.weight"))
                parameter.normal_(0, std * (into_stream if back else 1), generator=generator)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What enters the first block, [B, S, H]."""
        x = self.embedding(tokens)
        if self.architecture.positions == "learned":
            last, context = int(positions.max()), self.config.context_length
            if last >= context:
                raise Error(f"positions: expected at most {context} learned, found {last + 1}")
            x = x + self.positions(positions)
        elif self.architecture.positions == "sinusoidal":
            x = x + sinusoids(positions, x.shape[-1]).to(x.dtype)
        return F.dropout(x, self.architecture.dropout, self.training)

    def place(self, positions: Tensor, documents: Tensor, dtype: torch.dtype) -> Place:
        """What every block wants to know about where tokens stand."""
        kind = self.architecture.positions
        if kind not in ("yarn", "rope"):
            return Place(documents, None, None)
        cos, sin = rotary_tables(self.config, positions, kind == "yarn")
        return Place(documents, cos[:, :, None].to(dtype), sin[:, :, None].to(dtype))

    def hidden(
        self, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """Normed final state [B, S, H] and routing, for int64 [B, S] inputs.

        Without `positions` and `documents` each row is one document.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        if documents is None:
            documents = torch.zeros_like(tokens)
        x, dtype, routing = self.embed(tokens, positions), self.operand_dtype, []
        place = self.place(positions, documents, x.dtype)
        for block in self.blocks():
            if self.checkpointing and torch.is_grad_enabled():
                x, router = checkpoint(block, x, place, dtype, use_reentrant=False)
            else:
                x, router = block(x, place, dtype)
            if router is not None:
                routing.append(router)
        return self.norm(x), routing

    def logits(
        self, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """Float32 logits [B, S, V]."""
        x, _ = self.hidden(tokens, positions, documents)
        return self.unembedding(x.to(self.operand_dtype)).to(x.dtype)

    def loss(
        self, tokens: Tensor, targets: Tensor, positions: Tensor, documents: Tensor
    ) -> tuple[Tensor, list[Routing]]:
        """Sum of the cross entropy in nats over targets ≥ 0, and the routing of each layer."""
        x, routing = self.hidden(tokens, positions, documents)
        dtype = self.operand_dtype
        weight = self.unembedding.weight.to(dtype)
        return linear_cross_entropy(x.flatten(0, 1).to(dtype), weight, targets.flatten()), routing

    forward = loss  # what DDP and FSDP wrap
