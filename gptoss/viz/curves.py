"""Loss over a run, of one run or several, and the load of its experts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.viz.figures import line_style, new_figure

UNITS = {"tokens": "tokens", "step": "steps", "seconds": "seconds of training"}


@dataclass(frozen=True)
class Curve:
    """Of one run: what its log says at every step, float64, and at those with a validation.

    step, tokens, seconds, loss: [n], loss in nats per token. validation: text → (rows of the
    former, losses).
    """

    name: str
    step: NDArray[np.float64]
    tokens: NDArray[np.float64]
    seconds: NDArray[np.float64]
    loss: NDArray[np.float64]
    validation: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]

    def along(self, unit: str) -> NDArray[np.float64]:
        """The horizontal axis: "tokens", "step" or "seconds"."""
        if unit not in UNITS:
            raise Error(f"x: expected one of {', '.join(UNITS)}; found {unit!r}")
        found: NDArray[np.float64] = getattr(self, unit)
        return found


def read_records(path: Path, made_by: str) -> list[dict[str, Any]]:
    """The JSON lines of a run's file. Raises Error, with the line, for what is none.

    A last line without its end is left out: the run may be writing it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Error(f"{path}: expected what {made_by} writes, found nothing") from None
    records = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise Error(f"{path}:{number}: expected a JSON object, found {error}") from None
        if not isinstance(record, dict):
            raise Error(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
        records.append(record)
    return records


def read_curve(run: Path) -> Curve:
    """The curve of a run directory. Raises Error where its log holds no steps."""
    path = run / "log.jsonl"
    steps = [r for r in read_records(path, "`gptoss train`") if "loss" in r and "step" in r]
    if not steps:
        raise Error(f"{path}: expected steps with a loss, found none")
    columns = {
        name: np.array([float(r.get(name, np.nan)) for r in steps])
        for name in ("step", "tokens", "seconds", "loss")
    }
    texts = sorted({text for r in steps for text in r.get("validation", {})})
    validation = {}
    for text in texts:
        rows = [n for n, r in enumerate(steps) if text in r.get("validation", {})]
        losses = np.array([steps[n]["validation"][text] for n in rows])
        validation[text] = (np.array(rows), losses)
    return Curve(name=run.name, validation=validation, **columns)


def smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Means over the last `width` values (fewer at the beginning), [n] of [n]."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return (total[end] - total[start]) / (end - start)


def draw_curves(curves: Sequence[Curve], unit: str = "tokens", width: int = 0) -> Figure:
    """Training loss as lines (means over `width` steps; 0 = a fiftieth), validation as markers."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    number = 0
    lowest = np.inf
    for curve in curves:
        x = curve.along(unit)
        mean = smoothed(curve.loss, width or max(1, len(x) // 50))
        style = line_style(number)
        style["marker"] = "None"
        prefix = f"{curve.name}: " if len(curves) > 1 else ""
        axes.plot(x, mean, label=f"{prefix}training", **style)
        number += 1
        lowest = min(lowest, mean.min())
        for text, (rows, losses) in curve.validation.items():
            style = {**line_style(number), "linewidth": 0.8}
            axes.plot(x[rows], losses, label=f"{prefix}held-out {text}", **style)
            number += 1
            lowest = min(lowest, losses.min())
    highest = max(curve.loss[min(len(curve.loss) - 1, 20) :].max() for curve in curves)
    axes.set_ylim(lowest * 0.95, highest * 1.02)
    axes.set_xlabel(UNITS[unit])
    axes.set_ylabel("loss (nats per token)")
    axes.grid(color="0.9")
    axes.legend(fontsize=8)
    return figure
