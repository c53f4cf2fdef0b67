"""The house style of pictures: labelled axes, and nothing that colour alone tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gptoss.errors import Error

FORMATS = ("png", "svg")
DARK_IS_MUCH = "Greys"  # a map of one hue: prints as it looks
LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "x")
SHADES = ("0.0", "0.45", "0.25", "0.6", "0.1", "0.5")
MOST_LABELS = 64  # tokens that are written out along an axis


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches, that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def line_style(number: int) -> dict[str, Any]:
    """Line, marker and shade that tell the `number`-th curve from the others in print too."""
    return {
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
        "color": SHADES[number % len(SHADES)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def printable(text: str) -> str:
    """A token as a label: blanks and line ends shown, what has no glyph as its code point."""
    shown = []
    for char in text:
        if char == " ":
            shown.append("␣")
        elif char == "\n":
            shown.append("\\n")
        elif char == "\t":
            shown.append("\\t")
        elif char == "$":
            shown.append(r"\$")  # not the beginning of a formula
        elif char.isprintable() and ord(char) < 0x2500 and char != "�":
            shown.append(char)
        else:
            shown.append(f"U+{ord(char):04X}")
    return "".join(shown) or "∅"


def label_tokens(axes: Axes, tokens: Sequence[str], which: str) -> None:
    """Writes tokens along axis `which`, "x" or "y", all or as many as fit."""
    step = max(1, -(-len(tokens) // MOST_LABELS))
    places = list(range(0, len(tokens), step))
    names = [printable(tokens[at]) for at in places]
    if which == "x":
        axes.set_xticks(places, names, rotation=90, fontsize=6)
    else:
        axes.set_yticks(places, names, fontsize=6)


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG or SVG by the suffix of `path`. Raises Error for another one."""
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise Error(f"{path}: expected a name that ends in .png or .svg, found {path.suffix!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # no date inside: the same numbers give the same file
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(path, dpi=130, metadata=metadata)
    return path
