"""Who looks at whom: attention weights, the sinks' share, the edge of the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.train.architecture import Architecture
from gptoss.train.trace import Trace
from gptoss.viz.figures import DARK_IS_MUCH, label_tokens, new_figure

MOST_TOKENS = 512  # a picture of more could not be read


@dataclass(frozen=True)
class AttentionMap:
    """Of one head over S tokens.

    weights: float32 [S, S], row = query, column = key; a row sums to 1 − its share in `sink`.
    sink: float32 [S]. window: keys a query sees, its own included, or None for all before it.
    """

    layer: int
    head: int
    weights: NDArray[np.float32]
    sink: NDArray[np.float32]
    window: int | None

    def edge(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The line left of the window's first key, as (x, y) of a picture; empty without one.

        The first key that query q sees is q − window + 1.
        """
        if self.window is None or self.window >= len(self.sink):
            return np.zeros(0), np.zeros(0)
        queries = np.arange(self.window, len(self.sink))
        first = queries - self.window + 1
        x = np.repeat(first - 0.5, 2)
        y = np.stack([queries - 0.5, queries + 0.5], 1).ravel()
        return x, y


def attention_maps(
    trace: Trace, architecture: Architecture, layer: int | None = None, head: int | None = None
) -> list[AttentionMap]:
    """The heads asked for, of one layer or of all. Raises Error for one that there is not."""
    layers, heads = len(trace.attention), trace.sink_share.shape[1]
    for name, value, count in (("layer", layer, layers), ("head", head, heads)):
        if value is not None and not 0 <= value < count:
            raise Error(f"{name}: expected 0 to {count - 1}, found {value}")
    window = architecture.config.sliding_window
    return [
        AttentionMap(
            n, h, trace.attention[n][h], trace.sink_share[n, h],
            window if architecture.is_sliding(n) else None,
        )
        for n in (range(layers) if layer is None else [layer])
        for h in (range(heads) if head is None else [head])
    ]  # fmt: skip


def draw_attention(maps: Sequence[AttentionMap], tokens: Sequence[str]) -> Figure:
    """Heatmaps, up to four in a row, each with its sink's share beside it and its window's edge."""
    count = len(tokens)
    if count > MOST_TOKENS:
        raise Error(f"text: expected at most {MOST_TOKENS} tokens for this picture, found {count}")
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    side = 2.6 if len(maps) > 1 else 6.0
    figure = new_figure(columns * (side + 0.8) + 0.8, rows * (side + 0.5) + 0.3)
    image = None
    for number, one in enumerate(maps):
        axes = figure.add_subplot(rows, columns, number + 1)
        beside = axes.inset_axes((1.03, 0, 0.07, 1))  # as high as the picture, row beside row
        # the square root brings out small weights; the bar says so
        image = axes.imshow(
            np.sqrt(one.weights), cmap=DARK_IS_MUCH, vmin=0, vmax=1, interpolation="nearest"
        )
        x, y = one.edge()
        if len(x):
            axes.plot(x, y, color="black", linewidth=0.8, linestyle="--")
        beside.imshow(
            np.sqrt(one.sink)[:, None], cmap=DARK_IS_MUCH, vmin=0, vmax=1, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        kind = "all" if one.window is None else f"window {one.window}"
        axes.set_title(f"layer {one.layer}, head {one.head} ({kind})", fontsize=8)
        beside.set_title("sink", fontsize=7)
        beside.set_xticks([])
        beside.set_yticks([])
        if len(maps) == 1 or count <= 24:
            label_tokens(axes, tokens, "x")
            label_tokens(axes, tokens, "y")
        axes.set_xlabel("key", fontsize=8)
        axes.set_ylabel("query", fontsize=8)
        axes.tick_params(labelsize=6)
    if image is not None:
        bar = figure.colorbar(image, ax=figure.axes, shrink=0.6, pad=0.01)
        bar.set_ticks([0, 0.1**0.5, 0.5, 0.5**0.5, 1], labels=["0", "0.1", "0.25", "0.5", "1"])
        bar.set_label("weight (square-root scale)", fontsize=8)
    return figure
