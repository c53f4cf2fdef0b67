"""How weights and gradients are spread, layer by layer, over a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.viz.curves import read_records
from gptoss.viz.figures import line_style, new_figure

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
    names = list(records[0]["parameters"])

    def column(key: str, size: tuple[int, ...] = ()) -> NDArray[np.float64]:
        missing = np.full(size, np.nan)
        rows = [[r["parameters"][name].get(key, missing) for name in names] for r in records]
        return np.array(rows, dtype=np.float64)

    return Statistics(
        step=np.array([r["step"] for r in records], dtype=np.float64),
        names=names,
        rms=column("rms"),
        grad_rms=column("grad_rms"),
        quantiles=column("quantiles", (9,)),
        grad_quantiles=column("grad_quantiles", (9,)),
    )


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
    figure = new_figure(8, 2.1 * len(kinds) + 0.6)
    grid = figure.subplots(len(kinds), 2, squeeze=False)
    for row, (kind, columns) in enumerate(kinds.items()):
        for side, (values, what) in enumerate(
            ((statistics.rms, "weight"), (statistics.grad_rms, "gradient"))
        ):
            axes = grid[row, side]
            for number, column in enumerate(columns):
                layer = layer_of(statistics.names[column])
                label = "" if layer is None else f"layer {layer}"
                axes.plot(statistics.step, values[:, column], label=label, **line_style(number))
            axes.set_yscale("log")
            axes.set_title(kind, fontsize=8)
            axes.set_ylabel(f"{what} rms", fontsize=8)
            axes.set_xlabel("step", fontsize=8)
            axes.tick_params(labelsize=7, which="both")
            axes.grid(color="0.92")
            if len(columns) > 1 and side == 0:
                axes.legend(fontsize=6, ncols=2)
    return figure


def draw_distributions(statistics: Statistics, kind: str = "attn.qkv.weight") -> Figure:
    """One kind of matrix: bands of 50% and 90% of weights and gradients per layer over the run."""
    kinds = matrices(statistics)
    if kind not in kinds:
        raise Error(f"kind: expected one of {', '.join(kinds)}; found {kind!r}")
    columns = kinds[kind]
    figure = new_figure(8, 1.9 * len(columns) + 0.6)
    grid = figure.subplots(len(columns), 2, squeeze=False, sharex=True)
    for row, column in enumerate(columns):
        for side, (values, what) in enumerate(
            ((statistics.quantiles, "weights"), (statistics.grad_quantiles, "gradients"))
        ):
            axes = grid[row, side]
            cuts = values[:, column]
            for (low, high), shade, label in zip(BANDS, ("0.85", "0.65"), ("90%", "50%"), strict=True):  # fmt: skip  # noqa: E501
                axes.fill_between(
                    statistics.step, cuts[:, low], cuts[:, high], color=shade, label=label
                )
            axes.plot(statistics.step, cuts[:, MEDIAN], color="black", linewidth=1, label="median")
            layer = layer_of(statistics.names[column])
            where = kind if layer is None else f"layer {layer}, {kind}"
            axes.set_title(where, fontsize=8)
            axes.set_ylabel(what, fontsize=8)
            axes.tick_params(labelsize=7)
            if row == 0:
                axes.legend(fontsize=6)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=8)
    return figure
