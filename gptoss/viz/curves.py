"""Loss over a run, of one run or of several on one plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.viz.figures import LABEL, dress, line_style, new_figure

UNITS = {"tokens": "tokens read", "step": "optimizer steps", "seconds": "seconds of training"}
_OF_PAIRS = ("margin", "accuracy")  # what a preference run logs beside its loss
_STEEP = 20  # first steps whose loss may leave the picture at the top
_MARKS = 25  # markers along a curve


@dataclass(frozen=True)
class Curve:
    """Of one run: what its log says, float64.

    step, tokens, seconds, loss: [n]; a loss is NaN where only a validation was logged, as before
    the first step of a fine-tuning. validation: text → (rows of the former, losses). Losses are
    nats per `counted`: "token", or "pair" of a preference run.
    """

    name: str
    step: NDArray[np.float64]
    tokens: NDArray[np.float64]
    seconds: NDArray[np.float64]
    loss: NDArray[np.float64]
    validation: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
    counted: str = "token"

    def along(self, unit: str) -> NDArray[np.float64]:
        """The horizontal axis: "tokens", "step" or "seconds"."""
        if unit not in UNITS:
            raise Error(f"x: expected one of {', '.join(UNITS)}; found {unit!r}")
        found: NDArray[np.float64] = getattr(self, unit)
        return found


def read_records(path: Path, made_by: str) -> list[dict[str, Any]]:
    """The JSON lines of a run's file. Raises Error, with the line, where one is not JSON.

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
    """The curve of a run directory. Raises Error where its log holds no steps, or no numbers."""
    path = run / "log.jsonl"
    records = read_records(path, "`gptoss train`")
    records = [r for r in records if "step" in r and ("loss" in r or r.get("validation"))]
    if not any("loss" in r for r in records):
        raise Error(f"{path}: expected steps with a loss, found none")
    pairs = any(name in r for r in records for name in _OF_PAIRS)
    missing = {"step": np.nan, "loss": np.nan, "tokens": 0, "seconds": 0}
    try:
        columns = {
            name: np.array([float(r.get(name, other)) for r in records])
            for name, other in missing.items()
        }
        texts = {text for r in records for text in r.get("validation", {})}
        validation = {}
        for text in sorted(texts.difference(_OF_PAIRS) if pairs else texts):
            rows = [n for n, r in enumerate(records) if text in r.get("validation", {})]
            losses = [float(records[n]["validation"][text]) for n in rows]
            validation[text] = (np.array(rows), np.array(losses))
    except (TypeError, ValueError) as error:
        raise Error(f"{path}: expected numbers, found another value: {error}") from None
    counted = "pair" if pairs else "token"
    return Curve(name=run.resolve().name, validation=validation, counted=counted, **columns)


def smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Means over the last `width` values (fewer at the beginning), [n] of [n]."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return (total[end] - total[start]) / (end - start)


def draw_curves(curves: Sequence[Curve], unit: str = "tokens", width: int = 0) -> Figure:
    """A line per run: training loss (means over `width` steps; 0 = a fiftieth), held out marked.

    The steep start may leave the picture at the top. Raises Error for runs whose losses count
    different things.
    """
    counted = sorted({curve.counted for curve in curves})
    if len(counted) > 1:
        raise Error(
            f"curves: expected losses of one kind, found those per {' and per '.join(counted)}"
        )
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    bounds: list[float] = []
    number = 0
    for order, curve in enumerate(curves):
        x = curve.along(unit)
        told = ~np.isnan(curve.loss)
        steps = width or max(1, told.sum() // 50)
        mean = smoothed(curve.loss[told], steps)
        bounds += [mean.min(), mean[min(_STEEP, len(mean) - 1) :].max()]
        prefix = f"{curve.name}: " if len(curves) > 1 else ""
        style = line_style(order)
        label = "training" if steps == 1 else f"training, mean of {steps} steps"
        axes.plot(x[told], mean, label=_plain(prefix + label), **{**style, "marker": "None"})
        for text, (rows, losses) in curve.validation.items():
            style |= {"marker": line_style(number)["marker"], "linewidth": 0.8}
            style["markevery"] = max(1, len(rows) // _MARKS)
            axes.plot(x[rows], losses, label=_plain(f"{prefix}held out, {text}"), **style)
            bounds += [losses.min(), losses.max()]
            number += 1
    room = 0.04 * (max(bounds) - min(bounds)) or 0.1
    axes.set_ylim(min(bounds) - room, max(bounds) + room)
    axes.xaxis.set_major_formatter(EngFormatter())
    dress(axes, UNITS[unit], f"loss (nats per {counted[0]})")
    axes.grid(color="0.9")
    axes.legend(fontsize=LABEL)
    return figure


def _plain(text: str) -> str:
    """Names are not formulas."""
    return text.replace("$", r"\$")
