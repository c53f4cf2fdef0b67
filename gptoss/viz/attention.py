"""Who looks at whom: attention weights, the sinks' share, the edge of the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.train.model.architecture import Architecture
from gptoss.viz.figures import (
    DARK_IS_MUCH,
    add_bar,
    dress,
    label_tokens,
    new_figure,
    require_at_most,
)
from gptoss.viz.trace import Trace

MAX_TOKENS = 512  # a picture of more could not be read


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
    """The heads asked for, of one layer or of all. Raises Error for one that does not exist.

    A weight is exp(s) / (Σ exp(s) + exp(sink)), s = q·k / √D over the keys in sight; the sink's
    share is exp(sink) over the same sum (as in OpenAI's gpt_oss/torch/model.py).
    """
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
    """Heatmaps, four or eight in a row, each with its sink's share beside it and its window's edge.

    A row of a heatmap and its sink sum to 1. Raises Error for more than MAX_TOKENS tokens.
    """
    count = len(tokens)
    require_at_most(count, MAX_TOKENS)
    columns = min(4 if len(maps) <= 16 else 8, len(maps))
    rows = -(-len(maps) // columns)
    side = 2.6 if len(maps) > 1 else min(9.0, max(4.0, 0.12 * count))
    figure = new_figure(columns * (side + 0.8) + 0.8, rows * (side + 0.5) + 0.3)
    for number, one in enumerate(maps):
        axes = figure.add_subplot(rows, columns, number + 1)
        kind = "full" if one.window is None else f"window {one.window}"
        dress(axes, "key", "query", f"layer {one.layer}, head {one.head} ({kind})")
        image = _shade(axes, one.weights)
        x, y = one.edge()
        axes.plot(x, y, color="black", linewidth=0.8)
        beside = axes.inset_axes((1.03, 0, 0.07, 1))  # as high as the picture, row beside row
        _shade(beside, one.sink[:, None], aspect="auto")
        dress(beside, title="sink")
        beside.set_xticks([])
        beside.set_yticks([])
        if len(maps) == 1 or count <= 24:
            label_tokens(axes, tokens, "x")
            label_tokens(axes, tokens, "y")
        else:
            dress(axes, "key (position)", "query (position)", axes.get_title())
    # the square root brings out small weights; the bar says so
    bar = add_bar(figure, image, figure.axes, "attention weight (square-root scale)")
    bar.set_ticks([value**0.5 for value in _MARKS], labels=[f"{value:g}" for value in _MARKS])
    return figure


_MARKS = (0, 0.01, 0.1, 0.25, 0.5, 1)


def _shade(
    axes: Axes, weights: NDArray[np.float32], aspect: Literal["equal", "auto"] = "equal"
) -> AxesImage:
    return axes.imshow(
        np.sqrt(weights),
        cmap=DARK_IS_MUCH,
        vmin=0,
        vmax=1,
        aspect=aspect,
        interpolation="nearest",
    )
