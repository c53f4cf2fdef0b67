"""GBNF, the grammars of llama.cpp, as Lark grammars of llguidance's dialect.

A grammar without recursion becomes one regular expression. Any other keeps its rules, and each of
its terminals is a single character: the library cuts a text into the longest terminals that fit,
which GBNF does not, and among single characters there is nothing longer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from gptoss.errors import Error, shown

_MAX_DEPTH = 200  # of parentheses, and of rules within rules
_MAX_REPEATS = 2000
_MAX_REGEX = 1 << 16  # characters; what would be longer keeps its rules
_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_COUNTS = re.compile(r"\{\s*(\d{1,6})?\s*(,)?\s*(\d{1,6})?\s*\}")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-",
            "/": "/", "'": "'", "^": "^"}  # fmt: skip
_HEX = {"x": 2, "u": 4, "U": 8}
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True)
class _Node:
    """A part of a rule. kind: "set", one character, `text` being a class of a regular expression;
    "ref", a rule's name in `text`; "seq", "alt"; "rep", the part that `parts` has, `least` to
    `most` times.
    """

    kind: str
    text: str = ""
    parts: tuple[_Node, ...] = ()
    least: int = 0
    most: int | None = None


def lark_of(source: str) -> str:
    """The same language. Raises Error: it is no GBNF, or names tokens instead of characters."""
    rules = _Parser(source).rules()
    for name, node in rules.items():
        for each in _walk(node):
            if each.kind == "ref" and each.text not in rules:
                raise _error(f"rule {name!r} names {each.text!r}, which is no rule")
    if "root" not in rules:
        raise _error(f"expected a rule named root, found {', '.join(list(rules)[:5]) or 'none'}")
    pattern = _Pattern(rules).of("root")
    if pattern is not None:
        return f"start: /{pattern}/"
    names = {name: f"r{number}" for number, name in enumerate(rules)}
    lines = [f"start: {names['root']}"]
    lines += [f"{names[name]}: {_rule(node, names)}" for name, node in rules.items()]
    return "\n".join(lines)


def _error(message: str) -> Error:
    return Error(f"gbnf: {message}", field="grammar")


class _Parser:
    def __init__(self, source: str) -> None:
        self._text, self._at, self._depth = source, 0, 0

    def rules(self) -> dict[str, _Node]:
        found: dict[str, _Node] = {}
        self._space(True)
        while self._at < len(self._text):
            name = self._name("the name of a rule")
            self._space(False)
            if not self._take("::="):
                self._fail("::=")
            self._space(True)
            found[name] = self._alternatives(nested=False)  # of several the last, as there
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                self._fail("the end of a line")
            self._space(True)
        return found

    def _alternatives(self, nested: bool) -> _Node:
        parts = [self._sequence(nested)]
        while self._take("|"):
            self._space(True)
            parts.append(self._sequence(nested))
        return parts[0] if len(parts) == 1 else _Node("alt", parts=tuple(parts))

    def _sequence(self, nested: bool) -> _Node:
        parts: list[_Node] = []
        while (part := self._item(nested)) is not None:
            parts.append(self._repeated(part))
            self._space(nested)
        return parts[0] if len(parts) == 1 else _Node("seq", parts=tuple(parts))

    def _item(self, nested: bool) -> _Node | None:
        if self._take('"'):
            return self._literal()
        if self._take("["):
            return self._class()
        if self._take("."):
            return _Node("set", r"[\x{0}-\x{10ffff}]")
        if self._take("("):
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise _error(f"expected parentheses at most {_MAX_DEPTH} deep")
            self._space(True)
            inside = self._alternatives(nested=True)
            if not self._take(")"):
                self._fail(")")
            self._depth -= 1
            return inside
        if self._text.startswith(("<", "!<"), self._at):
            raise _error("it names tokens (<...>), which texts of this server are not made of")
        if _NAME.match(self._text, self._at):
            return _Node("ref", self._name("a name"))
        return None

    def _repeated(self, part: _Node) -> _Node:
        while True:
            if self._take("*"):
                counts: tuple[int, int | None] = (0, None)
            elif self._take("+"):
                counts = (1, None)
            elif self._take("?"):
                counts = (0, 1)
            elif match := _COUNTS.match(self._text, self._at):
                self._at = match.end()
                least, comma, most = match.groups()
                if least is None and most is None:
                    self._fail("a number of repetitions")
                counts = (int(least or 0), int(most) if most else None if comma else int(least))
            else:
                return part
            if counts[1] is not None and counts[0] > counts[1]:
                self._fail("repetitions in order")
            if max(counts[0], counts[1] or 0) > _MAX_REPEATS:
                raise _error(f"expected at most {_MAX_REPEATS} repetitions")
            part = _Node("rep", parts=(part,), least=counts[0], most=counts[1])

    def _literal(self) -> _Node:
        parts = []
        while not self._take('"'):
            parts.append(_Node("set", f"[{_escaped(self._character())}]"))
        return _Node("seq", parts=tuple(parts))

    def _class(self) -> _Node:
        negated, ranges = self._take("^"), []
        while not self._take("]"):
            first = last = self._character()
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                last = self._character()
            if last < first:
                self._fail("a range in order")
            ranges.append(f"{_escaped(first)}-{_escaped(last)}")
        if not ranges:
            if negated:
                return _Node("set", r"[\x{0}-\x{10ffff}]")
            raise _error("expected characters in [], found none")
        return _Node("set", f"[{'^' if negated else ''}{''.join(ranges)}]")

    def _character(self) -> str:
        if self._at >= len(self._text):
            self._fail("the end of a literal or a class")
        letter = self._text[self._at]
        self._at += 1
        if letter != "\\":
            return letter
        kind = self._text[self._at : self._at + 1]
        self._at += 1
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        digits = self._text[self._at : self._at + _HEX.get(kind, 0)]
        if not digits or not re.fullmatch(r"[0-9a-fA-F]+", digits) or len(digits) < _HEX[kind]:
            self._fail("an escape")
        self._at += len(digits)
        code = int(digits, 16)
        if code > 0x10FFFF or code in _SURROGATES:
            self._fail("an escape of a character")
        return chr(code)

    def _name(self, expected: str) -> str:
        match = _NAME.match(self._text, self._at)
        if match is None:
            self._fail(expected)
        self._at = match.end()
        return match.group()

    def _space(self, lines: bool) -> None:
        """Blanks and comments; lines: ends of lines too."""
        blanks = " \t\r\n" if lines else " \t"
        while self._at < len(self._text):
            if self._text[self._at] in blanks:
                self._at += 1
            elif self._text[self._at] == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            else:
                return

    def _take(self, mark: str) -> bool:
        if self._text.startswith(mark, self._at):
            self._at += len(mark)
            return True
        return False

    def _fail(self, expected: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        found = self._text[self._at : self._at + 20] or "the end"
        raise _error(f"line {line}: expected {expected}, found {shown(found)}")


@dataclass
class _Pattern:
    """Rules as regular expressions, where they do not lead back to themselves."""

    rules: dict[str, _Node]
    made: dict[str, str | None] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def of(self, name: str) -> str | None:
        if name not in self.made:
            if name in self.open or len(self.open) >= _MAX_DEPTH:
                return None
            self.open.append(name)
            self.made[name] = self._pattern(self.rules[name])
            self.open.pop()
        return self.made[name]

    def _pattern(self, node: _Node) -> str | None:
        if node.kind == "set":
            return node.text
        if node.kind == "ref":
            return self.of(node.text)
        parts: list[str] = []
        length = 0
        for each in node.parts:
            part = self._pattern(each)
            length += len(part or "")
            if part is None or length > _MAX_REGEX:
                return None
            parts.append(part)
        if node.kind == "rep":
            return f"(?:{parts[0]}){_counts(node)}"
        return f"(?:{'|'.join(parts)})" if node.kind == "alt" else "".join(parts)


def _rule(node: _Node, names: dict[str, str]) -> str:
    """The right side of a rule of Lark."""
    if node.kind == "set":
        return f"/{node.text}/"
    if node.kind == "ref":
        return names[node.text]
    if node.kind == "rep":
        return f"({_rule(node.parts[0], names)}){_counts(node)}"
    if node.kind == "alt":
        return f"({' | '.join(_rule(each, names) for each in node.parts)})"
    return " ".join(_rule(each, names) for each in node.parts) or '""'


def _counts(node: _Node) -> str:
    known: dict[tuple[int, int | None], str] = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    most = "" if node.most is None else node.most
    return known.get((node.least, node.most), f"{{{node.least},{most}}}")


def _walk(node: _Node) -> list[_Node]:
    found, at = [node], 0
    while at < len(found):
        found += found[at].parts
        at += 1
    return found


def _escaped(letter: str) -> str:
    return f"\\x{{{ord(letter):x}}}"
