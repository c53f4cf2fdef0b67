"""What is minimised: cross entropy of chosen tokens, and DPO's preference loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptoss.train.model.model import GptOss, Routing

LOGITS = 1 << 25  # that exist at a time


def token_losses(
    model: GptOss, tokens: Tensor, targets: Tensor, positions: Tensor, documents: Tensor
) -> tuple[Tensor, list[Routing]]:
    """−log p of each target in nats, float32 [B, S], 0 where it is −1; int64 [B, S] inputs.

    Logits are computed for counted places only, a chunk at a time, and again in the backward pass.
    An unembedding that does not train gets no gradient of its own size.
    """
    x, routing = model.hidden(tokens, positions, documents)
    counted = (targets.flatten() >= 0).nonzero()[:, 0]
    chosen = x.flatten(0, 1).index_select(0, counted).to(model.operand_dtype)
    wanted = targets.flatten().index_select(0, counted)
    step = max(16, LOGITS // model.config.vocab_size)
    parts = [
        checkpoint(
            _losses,
            chosen[at : at + step],
            model.unembedding,
            wanted[at : at + step],
            use_reentrant=False,
        )
        for at in range(0, len(chosen), step)
    ]
    flat = x.new_zeros(targets.numel())
    if parts:
        flat = flat.index_copy(0, counted, torch.cat(parts).to(flat.dtype))
    return flat.view_as(targets), routing


def _losses(x: Tensor, unembedding: nn.Module, targets: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.cross_entropy(unembedding(x).to(wide), targets, reduction="none")


def sequence_logps(losses: Tensor, documents: Tensor, sequences: int) -> Tensor:
    """log p of whole sequences, [B, sequences]: `losses` [B, S] summed by document number."""
    number = documents.clamp(min=0)  # filler counts nothing
    total = losses.new_zeros(len(losses), sequences)
    return -total.scatter_add(1, number, losses)


class Preference(NamedTuple):
    """Per pair, [N]: `loss`; `margin`, by how much more the chosen one is rewarded, β included."""

    loss: Tensor
    margin: Tensor


def dpo(chosen: Tensor, rejected: Tensor, reference: Tensor, beta: float) -> Preference:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    chosen, rejected: log p of the replies under the model in training, [N]; reference: log p of
    chosen and rejected under the model it started from, [N, 2].
    """
    margin = beta * ((chosen - reference[:, 0]) - (rejected - reference[:, 1]))
    return Preference(-F.logsigmoid(margin), margin)
