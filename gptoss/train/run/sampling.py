"""A sample of text during training: without a cache, for a look, not for use."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from gptoss.train.model.model import GptOss


@torch.no_grad()
def sample(
    model: GptOss,
    ids: Sequence[int],
    count: int,
    stop: Collection[int],
    temperature: float = 0.7,
    seed: int = 0,
) -> list[int]:
    """Up to `count` ids that continue `ids`, ending before one of `stop`.

    Each id is drawn from softmax(logits / temperature); 0 takes the most likely one. The same seed
    gives the same ids. A text longer than the model's context is cut at its beginning.
    """
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    model.eval()
    device = model.norm.scale.device
    out = list(ids)
    for _ in range(count):
        seen = torch.tensor([out[-model.config.context_length :]], device=device)
        logits = model.logits(seen)[0, -1].float().cpu()
        if temperature > 0:
            weights = (logits / temperature).softmax(-1)
            token = int(torch.multinomial(weights, 1, generator=generator))
        else:
            token = int(logits.argmax())
        if token in stop:
            break
        out.append(token)
    model.train(training)
    return out[len(ids) :]
