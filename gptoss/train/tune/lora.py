"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) on attention, router and experts.

A matrix W [out, in] of the base stays as it is; what is trained is a difference of rank r,
(alpha / r)·B·A with A [r, in] and B [out, r]. B starts at zero, so that step 0 is the base itself.

Every expert has adapters of its own. Sharing factors between experts would save little (A of mlp1
and B of mlp2 are the only ones whose inputs or outputs are the same thing for all experts) and
would tie together functions that the router keeps apart; and a difference per expert is merged
expert by expert, with no more than one matrix in memory.

Special tokens that the base has hardly seen (a model trained on plain texts has never seen
``<|start|>``) have random rows in embedding and unembedding, and no adapter inside can
correct that: the target "tokens" trains a difference for these few rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from gptoss.errors import Error
from gptoss.train.merge import difference
from gptoss.train.model.experts import QuantizedMatrix
from gptoss.train.model.model import GptOss, Linear, Mlp
from gptoss.train.model.quantize import round_mxfp4

TARGETS = ("attention", "router", "experts", "tokens")


class LowRank(nn.Module):
    """scale·B·A; a [r, in], b [out, r]; with `experts`, one for each: [E, r, in], [E, out, r]."""

    def __init__(self, shape: tuple[int, int], rank: int, scale: float, experts: int = 0) -> None:
        super().__init__()
        rows, columns = shape
        lead = (experts,) if experts else ()
        self.a = nn.Parameter(torch.zeros(*lead, rank, columns))
        self.b = nn.Parameter(torch.zeros(*lead, rows, rank))
        self.scale = scale

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """A uniform within ±1/√in, as in the authors' code; B zero."""
        bound = 1 / math.sqrt(self.a.shape[-1])
        self.a.uniform_(-bound, bound, generator=generator)
        self.b.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """scale·B·A·x for x [..., in]; one matrix, not one per expert."""
        return product(x, self.a, self.b, self.scale)


def product(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale·x·Aᵀ·Bᵀ in the dtype of x."""
    return F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype)) * scale


class AdaptedLinear(nn.Module):
    """A Linear of the model with a low-rank difference beside it."""

    def __init__(self, base: Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.adapter = LowRank((base.weight.shape[0], base.weight.shape[1]), rank, scale)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.adapter(x)
        return out


class RoundedProduct(Function):
    """x·(Q(W + D) − W)ᵀ with D = scale·B·A and Q rounding to MXFP4; gradients as if Q were not.

    Added to x·Wᵀ it is what the merged and quantized matrix gives. W and D are built again in the
    backward pass, so that nothing of their size is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
        quantized: QuantizedMatrix,
        expert: int,
    ) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.scale, ctx.quantized, ctx.expert = scale, quantized, expert
        return x @ RoundedProduct.rounded(a, b, ctx).to(x.dtype).T

    @staticmethod
    def rounded(a: Tensor, b: Tensor, ctx: Any) -> Tensor:
        """Q(W + D) − W."""
        w = ctx.quantized.expert(ctx.expert, a.dtype)
        return round_mxfp4(w + difference(a, b, ctx.scale)).sub_(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        dx = grad @ RoundedProduct.rounded(a, b, ctx).to(grad.dtype)
        # dD = gradᵀ·x is never formed: dA = scale·Bᵀ·dD, dB = scale·dD·Aᵀ
        da = (grad @ b.to(grad.dtype)).T @ x
        db = grad.T @ (x @ a.to(x.dtype).T)
        return dx, (da * ctx.scale).to(a.dtype), (db * ctx.scale).to(b.dtype), None, None, None


class AdaptedExperts(nn.Module):
    """The adapters of one layer's experts; a `gptoss.train.model.experts.ExpertAdapters`."""

    def __init__(self, mlp: Mlp, rank: int, scale: float) -> None:
        super().__init__()
        c = mlp.config
        hidden, inner, experts = c.hidden_size, c.intermediate_size, c.num_experts
        self.mlp1 = LowRank((2 * inner, hidden), rank, scale, experts)
        self.mlp2 = LowRank((hidden, inner), rank, scale, experts)
        self.quantized = {
            name: matrix
            for name, matrix in (("mlp1", mlp.mlp1_weight), ("mlp2", mlp.mlp2_weight))
            if isinstance(matrix, QuantizedMatrix)
        }
        self.rounded = False  # whether the sum of base and difference is rounded to MXFP4

    def delta(self, which: str, expert: int, rows: Tensor) -> Tensor:
        """Added to rows·Wᵀ of `expert`. which: "mlp1" or "mlp2"; rows: [N, in] → [N, out]."""
        adapter = self.mlp1 if which == "mlp1" else self.mlp2
        a, b = adapter.a[expert], adapter.b[expert]
        if self.rounded and which in self.quantized:
            out: Tensor = RoundedProduct.apply(
                rows, a, b, adapter.scale, self.quantized[which], expert
            )
            return out
        return product(rows, a, b, adapter.scale)


class AdaptedEmbedding(nn.Module):
    """An embedding with a difference for the rows `ids`."""

    place: Tensor

    def __init__(self, base: nn.Embedding, ids: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.rows = nn.Parameter(torch.zeros(len(ids), base.embedding_dim))
        place = torch.full((base.num_embeddings,), len(ids))  # past the last row: none
        place[list(ids)] = torch.arange(len(ids))
        self.register_buffer("place", place, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.base(tokens)
        return x + F.embedding(self.place[tokens], F.pad(self.rows, (0, 0, 0, 1))).to(x.dtype)


class AdaptedUnembedding(nn.Module):
    """The unembedding with a difference for the rows `ids`."""

    ids: Tensor

    def __init__(self, base: Linear, ids: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.rows = nn.Parameter(torch.zeros(len(ids), base.weight.shape[1]))
        self.register_buffer("ids", torch.tensor(ids), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(x)
        return logits.index_add(-1, self.ids, F.linear(x, self.rows.to(x.dtype)))


def parse_targets(text: str) -> tuple[str, ...]:
    """ "attention,experts" as names, in the order of TARGETS. Raises Error for others."""
    names = {name.strip() for name in text.split(",")}
    unknown = sorted(names - set(TARGETS))
    if unknown:
        raise Error(f"lora_targets: expected names among {','.join(TARGETS)}, found {unknown[0]!r}")
    return tuple(name for name in TARGETS if name in names)


def attach(
    model: GptOss,
    targets: Collection[str],
    rank: int,
    alpha: float,
    seed: int,
    token_ids: Sequence[int] = (),
) -> None:
    """Freezes `model` and puts adapters on `targets`: all that trains from here on.

    token_ids: the rows that "tokens" is about. The router has as many rows as there are experts,
    and its rank is at most that. Raises Error for a rank above a size of another matrix.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if "tokens" in targets and token_ids:
        for name, kind in (("embedding", AdaptedEmbedding), ("unembedding", AdaptedUnembedding)):
            setattr(model, name, kind(getattr(model, name), token_ids))
    scale = alpha / rank
    for number, block in enumerate(model.blocks()):
        attn, mlp, at = block.attn, block.mlp, f"block.{number}"
        if not isinstance(mlp, Mlp):
            raise Error("architecture: expected a mixture of experts, found a dense model")
        if "attention" in targets:
            for name in ("qkv", "out"):
                base = getattr(attn, name)
                _check_rank(rank, base.weight.shape, f"{at}.attn.{name}.weight")
                setattr(attn, name, AdaptedLinear(base, rank, scale))
        if "router" in targets:
            adapted = AdaptedLinear(mlp.gate, min(rank, mlp.config.num_experts), scale)
            setattr(mlp, "gate", adapted)  # noqa: B010  (not the type it was declared with)
        if "experts" in targets:
            c = mlp.config
            _check_rank(rank, (2 * c.intermediate_size, c.hidden_size), f"{at}.mlp.mlp1_weight")
            _check_rank(rank, (c.hidden_size, c.intermediate_size), f"{at}.mlp.mlp2_weight")
            mlp.adapters = AdaptedExperts(mlp, rank, scale)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, LowRank):
            module.initialise(generator)


def _check_rank(rank: int, shape: Sequence[int], name: str) -> None:
    if not 1 <= rank <= min(shape):
        raise Error(f"lora_rank: expected 1 to {min(shape)} for {name} {list(shape)}, found {rank}")


def set_rounded(model: GptOss, on: bool) -> None:
    """Whether experts compute as they will once merged and quantized (see `RoundedProduct`)."""
    for module in model.modules():
        if isinstance(module, AdaptedExperts):
            module.rounded = on
