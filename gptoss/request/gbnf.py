"""llama.cpp's GBNF grammars, written anew as Lark grammars in llguidance's dialect.

GBNF describes characters. Each literal, class and dot becomes lexemes of one character, so that
no lexer decides by the longest match what the grammar leaves open. Format:
https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import json
import re
from functools import partial

from gptoss.errors import Error, shown

_MAX_NESTED = 64
_MAX_REPEATED = 2000  # as in llama.cpp
_refused = partial(Error, field="grammar")

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_REPEATED = re.compile(r"\{[ \t]*(\d{0,9})[ \t]*(,?)[ \t]*(\d{0,9})[ \t]*\}")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX = {"x": 2, "u": 4, "U": 8}
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")


def gbnf_to_lark(source: str) -> str:
    """The same grammar for llguidance. Its first rule is ``start``, which is GBNF's ``root``.

    Raises:
        Error: it is not a GBNF grammar; says in which line, what was expected and found.
    """
    reader = _Reader(source)
    rules = reader.rules()
    if "root" not in rules:
        raise _refused("grammar: expected a rule root, found none")
    for name in reader.wanted:
        if name not in rules:
            raise _refused(f"grammar: expected a rule {shown(name)}, found none")
    lines = [f"{reader.name(name)}: {body}" for name, body in rules.items()]
    return "\n".join([f"start: {reader.name('root')}", *lines]) + "\n"


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._names: dict[str, str] = {}
        self.wanted: dict[str, None] = {}  # rules that are referred to

    def name(self, rule: str) -> str:
        """What a rule is called in Lark, where names have fewer characters."""
        return self._names.setdefault(rule, f"rule_{len(self._names)}")

    def rules(self) -> dict[str, str]:
        found: dict[str, str] = {}
        self._skip(lines=True)
        while self._at < len(self._source):
            name = self._read_name()
            self._skip(lines=False)
            if not self._source.startswith("::=", self._at):
                raise self._wrong("::=")
            if name in found:
                raise _refused(f"grammar: the rule {shown(name)} is there twice")
            self._at += 3
            self._skip(lines=True)
            found[name] = self._alternatives(0)
            if self._at < len(self._source) and self._source[self._at] not in "\r\n":
                raise self._wrong("the end of a line")
            self._skip(lines=True)
        return found

    def _alternatives(self, depth: int) -> str:
        if depth > _MAX_NESTED:
            raise _refused(f"grammar: expected at most {_MAX_NESTED} nested groups, found more")
        parts = [self._sequence(depth)]
        while self._source.startswith("|", self._at):
            self._at += 1
            self._skip(lines=True)
            parts.append(self._sequence(depth))
        return " | ".join(parts)

    def _sequence(self, depth: int) -> str:
        parts: list[str] = []
        while self._at < len(self._source):
            char = self._source[self._at]
            if char == '"':
                parts += self._literal()
                count = self._repetition()
                if count and self._length > 1:
                    parts[-self._length :] = [f"({' '.join(parts[-self._length :])}){count}"]
                elif count and self._length:
                    parts[-1] += count
            elif char == "[":
                parts.append(self._class() + self._repetition())
            elif char == ".":
                self._at += 1
                parts.append("/(?s:.)/" + self._repetition())
            elif char == "(":
                self._at += 1
                self._skip(lines=True)
                inner = self._alternatives(depth + 1)
                if not self._source.startswith(")", self._at):
                    raise self._wrong(")")
                self._at += 1
                parts.append(f"({inner}){self._repetition()}")
            elif _NAME.match(char):
                rule = self._read_name()
                self.wanted[rule] = None
                parts.append(self.name(rule) + self._repetition())
            elif char in "|)\r\n":
                break
            else:  # llama.cpp's tokens, <[1000]>, mean nothing with another vocabulary
                raise self._wrong('a literal, a class, a group, "." or the name of a rule')
            self._skip(lines=depth > 0)
        return " ".join(parts) or '""'

    def _repetition(self) -> str:
        mark = self._source[self._at : self._at + 1]
        if mark and mark in "*+?":
            self._at += 1
            return mark
        if mark != "{":
            return ""
        found = _REPEATED.match(self._source, self._at)
        if found is None or not (found[1] or found[3]):
            raise self._wrong("a repetition such as {2,5}")
        least = int(found[1] or 0)
        most = least if not found[2] else int(found[3]) if found[3] else None
        if max(least, most or 0) > _MAX_REPEATED or (most is not None and most < least):
            raise self._wrong(f"a repetition of at most {_MAX_REPEATED} times")
        self._at = found.end()
        return f"{{{least},{'' if most is None else most}}}"

    def _literal(self) -> list[str]:
        self._at += 1
        found = []
        while not self._source.startswith('"', self._at):
            found.append(_quoted(self._char('"')))
        self._at += 1
        self._length = len(found)
        return found

    def _class(self) -> str:
        self._at += 1
        negated = self._source.startswith("^", self._at)
        self._at += negated
        ranges = []
        while not self._source.startswith("]", self._at):
            first = last = self._char("]")
            if self._source.startswith("-", self._at) and not self._source.startswith(
                "-]", self._at
            ):
                self._at += 1
                last = self._char("]")
            if last < first:
                raise self._wrong(f"a range that does not go backwards ({first}-{last})")
            ranges.append((ord(first), ord(last)))
        self._at += 1
        if not ranges:
            return "/(?s:.)/" if negated else "/[^\\x{0}-\\x{10FFFF}]/"
        inside = "".join(f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in ranges)
        return f"/[{'^' if negated else ''}{inside}]/"

    def _char(self, end: str) -> str:
        """One character of a literal or a class, which `end` closes."""
        char = self._source[self._at : self._at + 1]
        if not char or char in "\r\n":
            raise self._wrong(end)
        self._at += 1
        if char != "\\":
            return char
        kind = self._source[self._at : self._at + 1]
        if kind in _HEX:
            digits = self._source[self._at + 1 : self._at + 1 + _HEX[kind]]
            if re.fullmatch(rf"[0-9A-Fa-f]{{{_HEX[kind]}}}", digits):
                point = int(digits, 16)
                if point < 0x110000 and not 0xD800 <= point < 0xE000:
                    self._at += 1 + _HEX[kind]
                    return chr(point)
        elif kind in _ESCAPES:
            self._at += 1
            return _ESCAPES[kind]
        raise self._wrong("an escape such as \\n or \\x41")

    def _read_name(self) -> str:
        found = _NAME.match(self._source, self._at)
        if found is None:
            raise self._wrong("the name of a rule")
        self._at = found.end()
        return found[0]

    def _skip(self, lines: bool) -> None:
        found = (_SPACE_AND_LINES if lines else _SPACE).match(self._source, self._at)
        assert found is not None  # it may be empty
        self._at = found.end()

    def _wrong(self, expected: str) -> Error:
        line = self._source.count("\n", 0, self._at) + 1
        found = self._source[self._at : self._at + 20]
        return _refused(
            f"grammar: line {line}: expected {expected}, found {shown(found) if found else 'none'}"
        )


def _quoted(char: str) -> str:
    return json.dumps(char, ensure_ascii=False).replace("\x7f", "\\u007f")
