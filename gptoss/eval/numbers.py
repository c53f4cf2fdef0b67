"""Distributions over a vocabulary, compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """How far distributions are from reference ones, over T places.

    Attributes:
        kl: mean Kullback-Leibler divergence from the reference, nats a token.
        largest: the largest of any place.
        top1: share of places with the same most likely token.
    """

    kl: float
    largest: float
    top1: float


def log_softmax(logits: NDArray[np.floating]) -> Float:
    """float64 of the same shape: logarithms of probabilities, along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def distance(exact: NDArray[np.floating], near: NDArray[np.floating]) -> Distance:
    """Of the distributions that logits [T, vocabulary] stand for; row by row, to spare memory.

    A row with a value that is no number makes `kl` and `largest` NaN.
    """
    divergence = np.empty(len(exact))
    same = 0
    for i, (reference, found) in enumerate(zip(exact, near, strict=True)):
        p, q = log_softmax(reference), log_softmax(found)
        divergence[i] = np.sum(np.exp(p) * (p - q))
        same += int(p.argmax() == q.argmax())
    return Distance(float(divergence.mean()), float(divergence.max()), same / len(exact))


def most_common_share(tokens: list[int]) -> float:
    """The share of the most frequent token; 0 of none at all."""
    if not tokens:
        return 0.0
    return float(np.unique(tokens, return_counts=True)[1].max()) / len(tokens)


def repeated_share(tokens: list[int], length: int = 4) -> float:
    """Of the stretches of `length` tokens, the share that stood there before."""
    grams = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
