"""What is done to a document before it is learned from, and why some are left out."""

from __future__ import annotations

import re
from dataclasses import dataclass

# All but letters, digits, blanks and the marks of ordinary writing.
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()\-–—…]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_CONTROL_PICTURES = {"\u2028": "\n", "\u2029": "\n\n", "\x85": "\n"}


@dataclass(frozen=True)
class Cleaning:
    """Limits of what is kept.

    `min_chars`, `max_chars` (0 = no limit): length after cleaning. `max_symbols`: the largest share
    of characters that are not letters, digits, blanks or common marks. `drop_prefixes`: documents
    that begin with one of these are left out.
    """

    min_chars: int = 80
    max_chars: int = 0
    max_symbols: float = 0.25
    drop_prefixes: tuple[str, ...] = ()


def clean(text: str) -> str:
    """Repairs wrongly decoded characters, straightens quotes, and drops invisible characters.

    Encoding repair is ftfy's. Control characters go, line ends become \\n, blanks at line ends go,
    runs of blanks become one, and of blank lines one is left.
    """
    import ftfy

    for odd, plain in _CONTROL_PICTURES.items():
        text = text.replace(odd, plain)
    text = ftfy.fix_text(text.replace("\r\n", "\n").replace("\r", "\n"), unescape_html=False)
    text = _CONTROL.sub("", text)
    text = re.sub(r"[ \t\u00a0]+\n", "\n", text)
    text = re.sub(r"[ \t\u00a0]{2,}", " ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def symbol_ratio(text: str) -> float:
    """The share of characters that are not those of ordinary writing."""
    return len(_SYMBOL.findall(text)) / max(1, len(text))


def objection(text: str, limits: Cleaning) -> str | None:
    """Why a cleaned document is left out: "empty", "short", "long", "symbols" or "prefix"."""
    if not text:
        return "empty"
    if len(text) < limits.min_chars:
        return "short"
    if limits.max_chars and len(text) > limits.max_chars:
        return "long"
    if text.startswith(limits.drop_prefixes):
        return "prefix"
    if symbol_ratio(text) > limits.max_symbols:
        return "symbols"
    return None
