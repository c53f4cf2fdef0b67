"""The loss on text that was held out."""

from __future__ import annotations

import torch
from torch import Tensor

from gptoss.train.data import Batch, TextRows
from gptoss.train.model.model import GptOss
from gptoss.train.run.distributed import World


def to_tensors(batch: Batch, rows: slice = slice(None)) -> list[Tensor]:
    """tokens, targets, positions, documents of some rows of a batch: int64 [rows, length]."""
    arrays = (batch.tokens, batch.targets, batch.positions, batch.documents)
    return [torch.from_numpy(a[rows]) for a in arrays]


@torch.no_grad()
def evaluate(
    model: GptOss, rows: TextRows, count: int = 8, limit: int = 0, world: World | None = None
) -> tuple[float, int]:
    """Mean loss in nats per token over `rows` (the first `limit` if not 0), and the tokens.

    `count` rows at a time; each process of `world` takes as many, and all return the same.
    """
    device = model.norm.scale.device
    world = world or World(0, 1, device)
    training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for number, batch in enumerate(rows.sequential(count * world.size)):
        kept = len(batch.tokens)
        if limit:
            kept = min(kept, limit - number * count * world.size)
        if kept <= 0:
            break
        mine = slice(world.rank * count, min(kept, (world.rank + 1) * count))
        part = to_tensors(batch, mine)
        if len(part[0]) == 0:  # nothing left for this process, but a shard must run along
            part = to_tensors(batch, slice(0, 1))
            part[1] = torch.full_like(part[1], -1)
        loss, _ = model(*(t.to(device) for t in part))
        total += loss.item()
        tokens += int((part[1] >= 0).sum())
    model.train(training)
    total, counted = world.sum([total, float(tokens)])
    return total / max(1.0, counted), int(counted)
