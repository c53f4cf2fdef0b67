"""How weights and gradients are spread, layer by layer, over a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.viz.curves import read_records
from gptoss.viz.figures import LABEL, TICK, dress, line_style, new_figure

# Columns of the nine quantiles in the file that are drawn: 5%, 25%, 50%, 75%, 95%.
BANDS = ((2, 6), (3, 5))
MEDIAN = 4


@dataclass(frozen=True)
class Statistics:
    """Of the parameters of a run, over the steps at which it wrote them.

    step: [n]. names: parameters. rms, grad_rms: [n, parameters]. quantiles, grad_quantiles:
    [n, parameters, 9], at 0, 1, 5, 25, 50, 75, 95, 99 and 100 per cent.
    """

    step: NDArray[np.float64]
    names: list[str]
    rms: NDArray[np.float64]
    grad_rms: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    grad_quantiles: NDArray[np.float64]


def read_statistics(run: Path) -> Statistics:
    """From RUN/statistics.jsonl. Raises Error where the run wrote none."""
    path = run / "statistics.jsonl"
    records = read_records(path, "`gptoss train --set statistics_every=50`")
    if not records:
        raise Error(f"{path}: expected statistics of some steps, found none")
    try:
        names = list(records[0]["parameters"])

        def column(key: str, size: tuple[int, ...] = ()) -> NDArray[np.float64]:
            missing = np.full(size, np.nan)  # what got no gradient
            rows = [[r["parameters"][name].get(key, missing) for name in names] for r in records]
            return np.array(rows, dtype=np.float64).reshape(len(records), len(names), *size)

        return Statistics(
            step=np.array([r["step"] for r in records], dtype=np.float64),
            names=names,
            rms=column("rms"),
            grad_rms=column("grad_rms"),
            quantiles=column("quantiles", (9,)),
            grad_quantiles=column("grad_quantiles", (9,)),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Error(f"{path}: expected statistics of parameters, found {error!r}") from None


def layer_of(name: str) -> int | None:
    """The layer that a parameter belongs to, or None."""
    found = re.match(r"block\.(\d+)\.", name)
    return int(found[1]) if found else None


def matrices(statistics: Statistics) -> dict[str, list[int]]:
    """Kinds of weight matrices ("attn.qkv.weight", …) → their columns, in order of layers."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(statistics.names):
        if name.endswith("weight"):
            kind = re.sub(r"^block\.\d+\.", "", name)
            found.setdefault(kind, []).append(number)
    return found


def draw_statistics(statistics: Statistics) -> Figure:
    """Per kind of matrix: root mean squares of weights and gradients, a line per layer."""
    kinds = matrices(statistics)
    figure = new_figure(8, 2.0 * len(kinds) + 0.9)
    grid = figure.subplots(len(kinds), 2, squeeze=False, sharex=True)
    keys: dict[str, Line2D] = {}
    for row, (kind, columns) in zip(grid, kinds.items(), strict=True):
        for axes, values in zip(row, (statistics.rms, statistics.grad_rms), strict=True):
            for number, column in enumerate(columns):
                layer = layer_of(statistics.names[column])
                style = _style_of_layer(number, len(columns), len(statistics.step))
                (line,) = axes.plot(statistics.step, values[:, column], **style)
                if layer is not None and _named(number, len(columns)):
                    keys[f"layer {layer}"] = line
            axes.grid(color="0.92")
        dress(row[0], y="rms of weights", title=kind)
        dress(row[1], y="rms of gradients", title=kind)
        if (statistics.grad_rms[:, columns] > 0).any():
            _log_scale(row[1])
    for axes in grid[-1]:
        axes.set_xlabel("optimizer steps", fontsize=LABEL)
    _keys_on_top(figure, keys)
    return figure


_FEW = 6  # layers that lines and markers can tell apart; more are shaded by depth


def _style_of_layer(number: int, layers: int, points: int) -> dict[str, Any]:
    style = {**line_style(number), "markevery": max(1, points // 12)}
    if layers > _FEW:
        style |= {"marker": "None", "linestyle": "-", "linewidth": 1}
        style["color"] = f"{0.8 * (1 - number / (layers - 1)):.3f}"
    return style


def _named(number: int, layers: int) -> bool:
    return layers <= _FEW or number in (0, layers // 2, layers - 1)


def _log_scale(axes: Axes) -> None:
    """With few numbers, and none between the powers of ten where those are many."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatterSciNotation())
    axes.yaxis.set_minor_formatter(
        LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(1.2, 0.4))
    )


def _keys_on_top(figure: Figure, keys: Mapping[str, Artist]) -> None:
    if keys:
        figure.legend(
            list(keys.values()),
            list(keys),
            loc="outside upper center",
            ncols=_FEW,
            fontsize=LABEL,
            frameon=False,
        )


def draw_distributions(statistics: Statistics, kind: str = "attn.qkv.weight") -> Figure:
    """One kind of matrix: bands of 50% and 90% of weights and gradients per layer over the run."""
    kinds = matrices(statistics)
    if kind not in kinds:
        raise Error(f"kind: expected one of {', '.join(kinds)}; found {kind!r}")
    columns = kinds[kind]
    figure = new_figure(8, 1.8 * len(columns) + 0.9)
    grid = figure.subplots(len(columns), 2, squeeze=False, sharex=True)
    step = statistics.step
    keys: dict[str, Artist] = {}
    for row, column in zip(grid, columns, strict=True):
        layer = layer_of(statistics.names[column])
        for axes, values, what in zip(
            row,
            (statistics.quantiles, statistics.grad_quantiles),
            ("weight", "gradient"),
            strict=True,
        ):
            cuts = values[:, column]
            for (low, high), (label, style) in zip(BANDS, _BAND_STYLES.items(), strict=True):
                keys[label] = axes.fill_between(step, cuts[:, low], cuts[:, high], **style)
            (keys["median"],) = axes.plot(step, cuts[:, MEDIAN], color="black", linewidth=1.2)
            dress(axes, y=what, title=kind if layer is None else f"{kind}, layer {layer}")
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
            axes.yaxis.get_offset_text().set_fontsize(TICK)
    for axes in grid[-1]:
        axes.set_xlabel("optimizer steps", fontsize=LABEL)
    _keys_on_top(figure, keys)
    return figure


_BAND_STYLES: dict[str, dict[str, Any]] = {
    "90% of the values": {"facecolor": "0.9", "edgecolor": "0.5", "linewidth": 0.5},
    "50% of the values": {
        "facecolor": "0.7",
        "edgecolor": "0.3",
        "linewidth": 0.5,
        "hatch": "////",
    },
}
