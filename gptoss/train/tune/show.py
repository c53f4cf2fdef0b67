"""Rows of a file of examples as text, with what is learned marked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gptoss.train.data import TextTokenizer
from gptoss.train.tune.conversations import Example
from gptoss.train.tune.examples import Row

LEARNED, PLAIN = "\x1b[1;32m", "\x1b[0m"
MARKS = ("⟦", "⟧")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show_row(row: Row, tokenizer: TextTokenizer, length: int, colour: bool) -> str:
    """A row: where it is, how it was read, and each example, with what is learned marked."""
    lines = [f"── {row.where} · {row.form}"]
    for number, (whole, item) in enumerate(zip(row.items, row.fitted, strict=True), start=1):
        title = f"example {number} of {len(row.items)} · " if len(row.items) > 1 else ""
        for sequence, name in zip(item or whole, _names(whole), strict=True):
            lines.append(f"{title}{name}{_size(sequence)}{_fate(whole, item, length)}")
            lines.append(mark(sequence, tokenizer, colour))
    if not row.items:
        lines.append("nothing is learned of it: its answers were cut off")
    return "\n".join(lines) + "\n"


def _names(item: tuple[Example, ...]) -> tuple[str, ...]:
    return ("chosen: ", "rejected: ") if len(item) == 2 else ("",)


def _size(sequence: Example) -> str:
    learned = int((sequence.targets >= 0).sum())
    return f"{len(sequence)} tokens, {learned} of them learned"


def _fate(whole: tuple[Example, ...], item: tuple[Example, ...] | None, length: int) -> str:
    if item is None:
        longest = max(map(len, whole))
        return f" · left out: longer than a row, {longest} tokens of at most {length}"
    if item is not whole:
        return f" · cut to {length} of {max(map(len, whole))} tokens"
    return ""


def mark(example: Example, tokenizer: TextTokenizer, colour: bool) -> str:
    """The text of an example, what is learned in colour, or else between brackets.

    Where something else is learned than what then stands there (``<|return|>`` at the end of an
    answer that others follow), both are shown.
    """
    begin, end = (LEARNED, PLAIN) if colour else MARKS
    parts = []
    for learned, ids in _runs(example):
        text = readable(tokenizer.decode(ids))
        if learned and colour:  # ended with each line: pagers show them one by one
            text = text.replace("\n", f"{end}\n{begin}")
        parts.append(f"{begin}{text}{end}" if learned else text)
    return "".join(parts)


def _runs(example: Example) -> Iterator[tuple[bool, list[int]]]:
    """(whether it is learned, ids), the longest stretches of one kind."""
    before, run = False, [int(example.tokens[0])]
    tokens = [*map(int, example.tokens[1:]), -1]  # what follows the last is not kept
    for target, token in zip(map(int, example.targets), tokens, strict=True):
        shown: Iterable[tuple[bool, int]] = [(False, token)]
        if target >= 0:
            shown = [(True, target)] if token in (target, -1) else [(True, target), (False, token)]
        for learned, each in shown:
            if learned != before:
                if run:
                    yield before, run
                before, run = learned, []
            if each >= 0:
                run.append(each)
    if run:
        yield before, run


def readable(text: str) -> str:
    """`text` without characters that command a terminal: their pictures stand for them."""
    return _CONTROL.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    number = ord(match.group())
    return chr(0x2400 + number) if number < 32 else "␡" if number == 127 else "\ufffd"
