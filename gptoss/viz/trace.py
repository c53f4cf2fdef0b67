"""Everything that happens inside a model on one text, as arrays to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptoss.errors import Error
from gptoss.train.model.model import GptOss, Mlp


@dataclass(frozen=True)
class Trace:
    """Of S tokens through L layers with E experts, k of them chosen; float32 and int64 arrays.

    residuals: [L + 1, S, H], the embedding first, then the stream after each block.
    attention: per layer [heads, S, S]; a row sums to 1 − the sink's share.
    sink_share: [L, heads, S].
    router_logits, chosen, expert_weights: [L, S, E], [L, S, k], [L, S, k]; None for dense models.
    logits: [S, V].
    """

    tokens: list[int]
    residuals: np.ndarray
    attention: list[np.ndarray]
    sink_share: np.ndarray
    router_logits: np.ndarray | None
    chosen: np.ndarray | None
    expert_weights: np.ndarray | None
    logits: np.ndarray


@torch.no_grad()
def trace(model: GptOss, tokens: Sequence[int]) -> Trace:
    """Runs `model` over one document of token ids and keeps what `Trace` lists.

    Raises Error for no tokens, ids outside the vocabulary, or more tokens than the context.
    """
    context, vocabulary = model.config.context_length, model.config.vocab_size
    if not 1 <= len(tokens) <= context:
        raise Error(f"tokens: expected 1 to {context} (the context), found {len(tokens)}")
    wrong = [t for t in tokens if not 0 <= t < vocabulary]
    if wrong:
        raise Error(f"tokens: expected ids below {vocabulary}, found {wrong[0]}")
    training = model.training
    model.eval()
    ids = torch.tensor([list(tokens)], device=model.norm.scale.device)
    positions = torch.arange(len(tokens), device=ids.device)[None]
    x, dtype = model.embed(ids, positions), model.operand_dtype
    place = model.place(positions, torch.zeros_like(ids), x.dtype)
    residuals, attention, shares, routes = [x], [], [], []
    for block in model.blocks():
        weights = block.attn.weights(x, place, dtype)[0].float()
        attention.append(weights[..., :-1].cpu().numpy())
        shares.append(weights[..., -1])
        x = block.attn(x, place, dtype)
        if isinstance(block.mlp, Mlp):
            routes.append(block.mlp.route(block.mlp.norm(x)[0]))
        x, _ = block.mlp(x, dtype)
        residuals.append(x)
    logits = model.unembedding(model.norm(x).to(dtype))[0]
    model.train(training)
    routing = [torch.stack(part).cpu().numpy() for part in zip(*routes, strict=True)]
    router_logits, chosen, expert_weights = routing or (None, None, None)
    return Trace(
        tokens=list(tokens),
        residuals=torch.cat(residuals).float().cpu().numpy(),
        attention=attention,
        sink_share=torch.stack(shares).cpu().numpy(),
        router_logits=router_logits,
        chosen=chosen,
        expert_weights=expert_weights,
        logits=logits.float().cpu().numpy(),
    )
