"""The house style of pictures: labelled axes, and nothing told by colour alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from gptoss.errors import Error
from gptoss.files import write_in_one_piece

FORMATS = ("png", "svg")
DARK_IS_MUCH = "Greys"  # a map of one hue: prints as it looks
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "x")
SHADES = ("0.0", "0.45", "0.25", "0.6", "0.1", "0.5")
MAX_LABELS = 64  # tokens that are written out along an axis
LONGEST_LABEL = 14  # characters of a token that are written out
TITLE, LABEL, TICK = 9, 8, 7  # sizes of writing, points


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches, that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """What stands on the axes, in the sizes of all pictures."""
    axes.set_xlabel(x, fontsize=LABEL)
    axes.set_ylabel(y, fontsize=LABEL)
    axes.set_title(title, fontsize=TITLE)
    axes.tick_params(labelsize=TICK, which="both")


def line_style(number: int) -> dict[str, Any]:
    """Line, marker and shade that tell the `number`-th curve from the others in print too.

    The first 36 differ by line or marker.
    """
    return {
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[(number + number // len(LINES)) % len(MARKERS)],
        "color": SHADES[number % len(SHADES)],
        "markersize": 4,
        "linewidth": 1.2,
    }


@cache
def _has_glyph(char: str) -> bool:
    return bool(get_font(findfont(FontProperties())).get_char_index(ord(char)))


_SEEN = {" ": "␣", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, longest: int | None = None, any_font: bool = False) -> str:
    """A token as it can be seen: blanks and line ends shown, an empty one as ∅.

    What cannot be seen, or has no glyph in the font of pictures (unless `any_font`), is shown as
    its code point. Cut to `longest` characters.
    """
    shown = []
    for char in text:
        if char in _SEEN:
            shown.append(_SEEN[char])
        elif char.isprintable() and (any_font or (char != "\ufffd" and _has_glyph(char))):
            shown.append(char)
        else:
            shown.append(f"U+{ord(char):04X}")
    whole = "".join(shown) or "∅"
    if longest is None or len(whole) <= longest:
        return whole
    return whole[: longest - 1] + "…"


def label_tokens(axes: Axes, tokens: Sequence[str], which: str) -> None:
    """Writes all tokens along axis `which`, "x" or "y"; where they are too many, positions stay."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if len(tokens) > MAX_LABELS:
        axis.set_label_text(f"{axis.get_label_text()} (position)")
        axis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        return
    labels = axis.set_ticks(range(len(tokens)), [printable(t, LONGEST_LABEL) for t in tokens])
    for tick in labels:
        for label in (tick.label1, tick.label2):
            label.set(fontsize=TICK - 1, parse_math=False, rotation=90 if which == "x" else 0)


def label_numbers(axes: Axes, count: int, which: str, most: int = 12) -> None:
    """Writes 0 … count − 1 along axis `which`, every n-th where they are more than `most`."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(range(0, count, -(-count // most)))


def add_bar(figure: Figure, image: AxesImage, axes: Axes | list[Axes], label: str) -> Colorbar:
    """Says beside `axes` what the shades of `image` mean; at most five inches high."""
    width, height = figure.get_size_inches()
    bar = figure.colorbar(image, ax=axes, pad=0.12 / width, shrink=min(1.0, 5 / height))
    bar.ax.tick_params(labelsize=TICK)
    bar.set_label(label, fontsize=LABEL)
    return bar


def require_at_most(count: int, most: int) -> None:
    """Raises Error for a text of more tokens than a picture can show."""
    if count > most:
        raise Error(f"text: expected at most {most} tokens for this picture, found {count}")


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG or SVG by the suffix of `path`, whole or not at all. Error for another suffix.

    The same numbers give the same file.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise Error(f"{path}: expected a name that ends in .png or .svg, found {path.suffix!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "gptoss"}):  # else ids are random
        write_in_one_piece(
            path,
            lambda file: figure.savefig(file, format=kind, dpi=130, metadata=metadata),
        )
    return path
