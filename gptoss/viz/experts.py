"""Which experts work, which work together, and how sure the router is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.viz.figures import (
    DARK_IS_MUCH,
    LABEL,
    add_bar,
    dress,
    label_numbers,
    label_tokens,
    line_style,
    new_figure,
    require_at_most,
)
from gptoss.viz.trace import Trace

MAX_TOKENS = 1024  # a picture of more could not be read


def _chosen(trace: Trace) -> tuple[NDArray[np.int64], int]:
    if trace.chosen is None or trace.router_logits is None:
        raise Error("experts: expected a mixture of experts, found a dense model")
    return trace.chosen, trace.router_logits.shape[-1]


def expert_load(trace: Trace) -> NDArray[np.float64]:
    """Share of the chosen places that each expert got, [L, E]; 1 / E where it is even.

    f of Fedus et al. 2021 (arXiv:2101.03961), equation 5, with k places per token instead of one.
    """
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
    """H(p) = −Σ p·log p (Shannon 1948) of p = softmax over all E router logits, nats, [L, S].

    0 where one expert is certain, log E where all are alike.
    """
    _chosen(trace)
    logits = np.asarray(trace.router_logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -(np.exp(logp) * logp).sum(-1)


def draw_load(trace: Trace) -> Figure:
    """A bar per expert, a row per layer, and the line of an even load."""
    load = expert_load(trace)
    layers, experts = load.shape
    figure = new_figure(max(5.0, 0.3 * experts + 2), 1.2 * layers + 1.0)
    grid = figure.subplots(layers, 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for layer, (axes, shares) in enumerate(zip(grid, load, strict=True)):
        bars = axes.bar(np.arange(experts), shares, color="0.85", edgecolor="black", hatch="////")
        even = axes.axhline(1 / experts, color="black", linestyle="--", linewidth=1)
        dress(axes, "expert" if layer == layers - 1 else "", "share of load", f"layer {layer}")
        label_numbers(axes, experts, "x", 32)
    grid[0].set_ylim(0, max(1.5 / experts, load.max() * 1.1))
    figure.legend(
        [bars, even], ["share of the chosen places", f"even load, 1/{experts}"],
        loc="outside upper center", ncols=2, fontsize=LABEL, frameon=False,
    )  # fmt: skip
    return figure


def draw_coactivation(trace: Trace) -> Figure:
    """Per layer, how many tokens each pair of experts shares; no pair is hatched."""
    counts = coactivation(trace)
    layers, experts = counts.shape[:2]
    columns = min(4, layers)
    rows = -(-layers // columns)
    figure = new_figure(columns * 2.8 + 0.8, rows * 2.8 + 0.3)
    pairs = np.ma.masked_array(counts, np.broadcast_to(np.eye(experts, dtype=bool), counts.shape))
    top = max(1, int(counts[~pairs.mask].max(initial=1)))
    for layer in range(layers):
        axes = figure.add_subplot(rows, columns, layer + 1)
        axes.patch.set(hatch="//////", edgecolor="0.6", linewidth=0)
        image = axes.imshow(pairs[layer], cmap=DARK_IS_MUCH, vmin=0, vmax=top)
        dress(axes, "expert", "expert", f"layer {layer}")
        label_numbers(axes, experts, "x")
        label_numbers(axes, experts, "y")
        if experts <= 12:
            _write_counts(axes, counts[layer], top)
    add_bar(figure, image, figure.axes, "tokens for which both were chosen")
    return figure


def _write_counts(axes: Axes, counts: NDArray[np.int64], top: int) -> None:
    for (a, b), count in np.ndenumerate(counts):
        if a != b:
            shade = "white" if count > top * 0.6 else "black"
            axes.text(b, a, str(count), color=shade, fontsize=6, ha="center", va="center")


def draw_routing(trace: Trace, tokens: Sequence[str], layer: int) -> Figure:
    """Tokens down, experts across, the weight of each as a shade.

    Raises Error for more than MAX_TOKENS tokens.
    """
    require_at_most(len(tokens), MAX_TOKENS)
    weights = routing(trace, layer)
    count, experts = weights.shape
    figure = new_figure(max(4.0, 0.28 * experts + 2.5), min(12.0, 0.14 * count + 1.4))
    axes = figure.add_subplot()
    image = axes.imshow(
        weights, cmap=DARK_IS_MUCH, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    dress(axes, "expert", "token", f"routing in layer {layer}")
    label_numbers(axes, experts, "x", 32)
    label_tokens(axes, tokens, "y")
    add_bar(figure, image, axes, "weight of the expert's output")
    return figure


def draw_entropy(trace: Trace, tokens: Sequence[str]) -> Figure:
    """Entropy per layer (mean and range over the tokens), and per token and layer.

    Raises Error for more than MAX_TOKENS tokens.
    """
    require_at_most(len(tokens), MAX_TOKENS)
    entropy = router_entropy(trace)
    most = float(np.log(_chosen(trace)[1]))
    layers, count = entropy.shape
    figure = new_figure(max(7.0, min(12.0, 0.12 * count + 3)), 4 + 0.2 * layers)
    top, bottom = figure.subplots(2, 1, height_ratios=[2.4, 0.8 + 0.2 * layers])
    mean = entropy.mean(1)
    spread = np.stack([mean - entropy.min(1), entropy.max(1) - mean])
    top.errorbar(
        np.arange(layers), mean, spread, capsize=3, label="mean and range over the tokens",
        **line_style(0),
    )  # fmt: skip
    top.axhline(most, color="black", linestyle=":", label="log E: all experts alike")
    dress(top, "layer", "router entropy (nats)")
    label_numbers(top, layers, "x", 40)
    top.set_ylim(0, (most or 1) * 1.1)
    top.legend(fontsize=LABEL, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    image = bottom.imshow(
        entropy, cmap=DARK_IS_MUCH, vmin=0, vmax=most or 1, aspect="auto", interpolation="nearest"
    )
    dress(bottom, "token", "layer")
    label_numbers(bottom, layers, "y")
    label_tokens(bottom, tokens, "x")
    add_bar(figure, image, bottom, "router entropy (nats)")
    return figure
