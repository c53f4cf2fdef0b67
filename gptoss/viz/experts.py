"""Which experts work, which work together, and how sure the router is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.train.trace import Trace
from gptoss.viz.figures import DARK_IS_MUCH, label_tokens, line_style, new_figure


def _chosen(trace: Trace) -> tuple[NDArray[np.int64], int]:
    if trace.chosen is None or trace.router_logits is None:
        raise Error("experts: expected a mixture of experts, found a dense model")
    return trace.chosen, trace.router_logits.shape[-1]


def expert_load(trace: Trace) -> NDArray[np.float64]:
    """Share of the chosen places that each expert got, [L, E]; 1 / E where it is even."""
    chosen, experts = _chosen(trace)
    counts = np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in chosen])
    return counts / counts.sum(1, keepdims=True)


def coactivation(trace: Trace) -> NDArray[np.int64]:
    """Tokens for which both experts were chosen, [L, E, E]; in the diagonal, tokens of each."""
    chosen, experts = _chosen(trace)
    picked = np.zeros((*chosen.shape[:2], experts), np.int64)
    np.put_along_axis(picked, chosen, 1, axis=2)
    return np.einsum("lse,lsf->lef", picked, picked)


def routing(trace: Trace, layer: int) -> NDArray[np.float32]:
    """Weight of each expert for each token, [S, E]; 0 where it was not chosen."""
    chosen, experts = _chosen(trace)
    if not 0 <= layer < len(chosen):
        raise Error(f"layer: expected 0 to {len(chosen) - 1}, found {layer}")
    assert trace.expert_weights is not None
    found = np.zeros((chosen.shape[1], experts), np.float32)
    np.put_along_axis(found, chosen[layer], trace.expert_weights[layer], axis=1)
    return found


def router_entropy(trace: Trace) -> NDArray[np.float64]:
    """−Σ p·log p in nats of the softmax over all router logits, [L, S]; log E where p is even."""
    _chosen(trace)
    logits = np.asarray(trace.router_logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -(np.exp(logp) * logp).sum(-1)


def draw_load(trace: Trace) -> Figure:
    """A bar per expert, a row per layer, and the line of an even load."""
    load = expert_load(trace)
    layers, experts = load.shape
    figure = new_figure(max(5.0, 0.3 * experts + 2), 1.2 * layers + 0.8)
    for layer, shares in enumerate(load):
        axes = figure.add_subplot(layers, 1, layer + 1)
        axes.bar(np.arange(experts), shares, color="0.75", edgecolor="black", hatch="//")
        axes.axhline(1 / experts, color="black", linestyle="--", linewidth=1, label="even load")
        axes.set_ylim(0, max(2.2 / experts, load.max() * 1.1))
        axes.set_xticks(np.arange(experts))
        axes.tick_params(labelsize=7)
        axes.set_ylabel(f"layer {layer}\nshare of places", fontsize=7)
        if layer == 0:
            axes.legend(fontsize=7, loc="upper right")
    figure.axes[-1].set_xlabel("expert")
    return figure


def draw_coactivation(trace: Trace) -> Figure:
    """Per layer, how many tokens each pair of experts shares; the diagonal is left white."""
    counts = coactivation(trace)
    layers, experts = counts.shape[:2]
    columns = min(4, layers)
    rows = -(-layers // columns)
    figure = new_figure(columns * 2.8 + 0.8, rows * 2.8 + 0.3)
    pairs = counts.astype(float)
    pairs[:, np.arange(experts), np.arange(experts)] = np.nan
    top = max(1.0, float(np.nanmax(pairs)) if experts > 1 else 1.0)
    image = None
    for layer in range(layers):
        axes = figure.add_subplot(rows, columns, layer + 1)
        image = axes.imshow(pairs[layer], cmap=DARK_IS_MUCH, vmin=0, vmax=top)
        axes.set_title(f"layer {layer}", fontsize=9)
        if experts <= 32:
            axes.set_xticks(np.arange(experts))
            axes.set_yticks(np.arange(experts))
        axes.set_xlabel("expert", fontsize=8)
        axes.set_ylabel("expert", fontsize=8)
        axes.tick_params(labelsize=7)
        if experts <= 12:
            for a in range(experts):
                for b in range(experts):
                    if a != b:
                        shade = "white" if counts[layer, a, b] > top * 0.6 else "black"
                        axes.text(
                            b, a, str(counts[layer, a, b]), color=shade, fontsize=6,
                            ha="center", va="center",
                        )  # fmt: skip
    if image is not None:
        figure.colorbar(image, ax=figure.axes, shrink=0.7, label="tokens")
    return figure


def draw_routing(trace: Trace, tokens: Sequence[str], layer: int) -> Figure:
    """Tokens down, experts across, the weight of each as a shade."""
    weights = routing(trace, layer)
    count, experts = weights.shape
    figure = new_figure(0.28 * experts + 3, min(40.0, 0.14 * count + 1.2))
    axes = figure.add_subplot()
    image = axes.imshow(
        weights, cmap=DARK_IS_MUCH, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    axes.set_title(f"layer {layer}", fontsize=9)
    axes.set_xlabel("expert")
    axes.set_ylabel("token")
    axes.set_xticks(np.arange(experts))
    label_tokens(axes, tokens, "y")
    figure.colorbar(image, ax=axes, label="weight", shrink=min(1.0, 12 / max(12, count * 0.14)))
    return figure


def draw_entropy(trace: Trace, tokens: Sequence[str]) -> Figure:
    """Entropy per layer (mean and range over the tokens), and per token and layer."""
    entropy = router_entropy(trace)
    _, experts = _chosen(trace)
    layers, count = entropy.shape
    figure = new_figure(max(7.0, min(20.0, 0.12 * count + 3)), 5.5)
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 2])
    mean = entropy.mean(1)
    spread = np.stack([mean - entropy.min(1), entropy.max(1) - mean])
    top.errorbar(
        np.arange(layers), mean, spread, capsize=3, label="mean and range", **line_style(0)
    )
    top.axhline(np.log(experts), color="black", linestyle=":", label=f"log {experts} (even)")
    top.set_xticks(np.arange(layers))
    top.set_xlabel("layer")
    top.set_ylabel("router entropy (nats)")
    top.set_ylim(0, np.log(experts) * 1.1)
    top.legend(fontsize=8, loc="lower right")
    image = bottom.imshow(
        entropy, cmap=DARK_IS_MUCH, vmin=0, vmax=np.log(experts), aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    bottom.set_xlabel("token")
    bottom.set_ylabel("layer")
    bottom.set_yticks(np.arange(layers))
    label_tokens(bottom, tokens, "x")
    figure.colorbar(image, ax=bottom, label="nats")
    return figure
