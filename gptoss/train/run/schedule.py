"""The learning rate over a run, and which parameters decay."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from gptoss.train.run.settings import Settings


def learning_rate(step: int, settings: Settings) -> float:
    """Rate of step 0 … steps − 1: linear warm-up, then what `settings.schedule` says.

    "cosine": half a wave down to the final rate (Loshchilov & Hutter 2017, arXiv:1608.03983).
    "wsd": constant, then down by 1 − √x, x from 0 to 1 (Hägele et al. 2024, arXiv:2405.18392).
    """
    s = settings
    if step < s.warmup:
        return s.learning_rate * (step + 1) / s.warmup
    if s.schedule == "constant":
        return s.learning_rate
    begin = s.warmup if s.schedule == "cosine" else max(s.warmup, round(s.decay_from * s.steps))
    x = min(1.0, max(0.0, (step - begin) / max(1, s.steps - begin)))
    high = 0.5 * (1 + math.cos(math.pi * x)) if s.schedule == "cosine" else 1 - math.sqrt(x)
    low = s.final_learning_rate
    return s.learning_rate * (low + (1 - low) * high)


def decays(name: str) -> bool:
    """Weight decay is for matrices alone: not for norms, biases, sinks and embeddings."""
    return name.endswith("weight") and not name.startswith(("embedding", "positions"))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The two groups of the optimizer: those that decay, and the rest."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if decays(name)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
    ]
