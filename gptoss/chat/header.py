"""The header of a message while it is written: fields out of text between special tokens.

A header is ``[author][ to=recipient][<|channel|>channel[ to=recipient]][ content type]`` and ends
with ``<|message|>``. Models repeat its parts, leave them out, change their order and forget the
end. What each part means is told by the special token before it and by its own form; what means
nothing is text, and is never lost.
"""

from __future__ import annotations

import re

from gptoss.chat.conversation import (
    ANALYSIS,
    BUILT_IN_TOOLS,
    CHANNELS,
    COMMENTARY,
    FINAL,
    FUNCTIONS,
    ROLES,
    Message,
)

CHANNEL, CONSTRAIN = "<|channel|>", "<|constrain|>"

_TYPES = ("json", "code", "text")
_NOBODY = (None, "assistant", "all", "user")  # recipients that make no call
# A header longer than this, or of more words, is text whose header was left out. Names of functions
# with blanks in them take some words more.
_LONGEST, _LONGEST_NAME = 256, 128
_MAX_WORDS, _MAX_NAME_WORDS = 4, 8

_ANY_ROLE, _ANY_CHANNEL = "|".join(ROLES), "|".join(CHANNELS)
_ROLE = re.compile(rf"\s*((?:{_ANY_ROLE})(?::\S*)?)(?=\s|$)")
# Behind <|start|> a tool's name is an author too, and the next word may follow a role at once.
_AUTHOR = re.compile(
    rf"\s*((?:{_ANY_ROLE})(?::\S*)?(?=\s|$)|(?:{_ANY_ROLE})(?=to=|{_ANY_CHANNEL})|assistant)"
)
_NAME = re.compile(r"\s*((?!to=)[\w.:\-]+)(?=\s|$)")
_AUTHOR_WORD = re.compile(r"[\w.:=\-]+")
_WORD = re.compile(r"[\w.\-]+")
# Only a function's name may hold blanks. What opens JSON belongs to no name.
_TO = re.compile(
    r"\s*(?:to=\s?(?=functions\.)|to=|(?=functions\.))"
    r"(functions\.[^\s{\[(\"]*(?: [\w.\-]+(?=\s|$))*|[^\s{\[(\"]*)"
)
_TYPE = re.compile(rf"\s*({'|'.join(_TYPES)})(?=\s|$)")
_CHANNEL_HERE = re.compile(rf"\s*({_ANY_CHANNEL})(?=\s|$)")
_CHANNEL_NAME = re.compile(r"\s*(?!to=|functions\.)(\S+?)(?=\s|$|to=|functions\.)")
_CONSTRAINT = re.compile(r"\s*(?!to=|functions\.)([\w/+.\-]+)(?=[\s{\[\"]|$)")
_TO_BEGUN = re.compile(r"(?:assistant)? +(?:to?)?|(?:assistant)?\s*to=\s?")
_ANYTHING = re.compile(r"\s*(\S+?)(?=\s|$|to=)")


class Header:
    """What has been written since the last message.

    begun: ``<|start|>`` came, so that an author comes first. first: nothing at all came before it;
    the prompt has named the author.
    """

    def __init__(self, begun: bool = False, first: bool = False) -> None:
        self._begun, self._first = begun, first
        self._author = ""
        self._parts: list[tuple[str, str]] = []  # (special token, text behind it)
        self._length = 0

    @property
    def untouched(self) -> bool:
        """Whether nothing at all has been written."""
        return self._first and not self._length

    def add(self, text: str) -> str:
        """Take what still belongs to a header; the rest is text of a message without one."""
        if not text:
            return ""
        before = self._author, list(self._parts), self._length
        self._put(text)
        if self.plausible():
            return ""
        # Where it stops being one must not depend on how the text is cut.
        self._author, self._parts, self._length = before
        for at, letter in enumerate(text, 1):
            self._put(letter)
            if not self.plausible():
                return text[at:]
        raise AssertionError("what no longer can be a header can be none when it goes on")

    def mark(self, token: str) -> None:
        """``<|channel|>`` or ``<|constrain|>`` came."""
        if not self._parts or self._parts[-1] != (token, ""):
            self._parts.append((token, ""))
            self._length += len(token)

    def plausible(self) -> bool:
        """Could what was written still become a header? Once it cannot, it never can."""
        if self._length > _LONGEST:
            return False
        if not self._parts:
            return _can_be_author(self._author, self._begun)
        words = " ".join(text for _, text in self._parts).split()
        named = f"to={FUNCTIONS}" in self._author or any(
            FUNCTIONS in word for word in words[:_MAX_WORDS]
        )
        return len(words) <= (_MAX_NAME_WORDS if named else _MAX_WORDS)

    def before(self) -> str:
        """Text before the first special token that is no part of a header."""
        if self._parts:
            return ""
        rest = _Reading(self, whole=True, blanks=True).author_rest
        return rest if rest.strip() else ""

    def fields(self) -> Message:
        """Of a header that ``<|message|>`` ends."""
        return _Reading(self, whole=True, blanks=True).message()

    def leftover(self, ended: bool) -> tuple[Message, str]:
        """(fields, the text among them) where ``<|message|>`` never comes.

        ended: by a special token; otherwise it was cut, and may be the beginning of a header.
        """
        possible = self.plausible()
        reading = _Reading(self, whole=False, blanks=possible, ended=ended)
        message, rest = reading.message(), reading.rest
        if self._first and not self._parts:
            return self._without_marks(message, rest, possible, ended)
        if not possible:
            return message, rest
        if self._parts and not message.is_call and self.fields().is_call:
            return self.fields(), ""  # whom to call stands behind a word that means nothing
        if self._parts:
            begun = _goes_on(rest)
        elif ended:
            begun = not rest.strip()
        else:
            begun = _goes_on(rest, ROLES)
            begun = begun or (self._begun and _AUTHOR_WORD.fullmatch(rest.strip()) is not None)
        return message, "" if begun else rest

    def _without_marks(
        self, message: Message, rest: str, possible: bool, ended: bool
    ) -> tuple[Message, str]:
        """Text that nothing but the prompt came before is the answer, word for word."""
        written, recipient = self._author, message.recipient or ""
        if not possible and (recipient.startswith(FUNCTIONS) or recipient in BUILT_IN_TOOLS):
            return message, rest
        if possible and message.recipient is not None:
            return message, ""
        if possible and (not written.strip() if ended else _TO_BEGUN.fullmatch(written)):
            return message, ""
        return Message("assistant", FINAL), written

    def _put(self, text: str) -> None:
        self._length += len(text)
        if self._parts:
            token, before = self._parts[-1]
            self._parts[-1] = (token, before + text)
        else:
            self._author += text


class _Reading:
    """The fields of a header.

    whole: ``<|message|>`` came, so that all of it is header; otherwise what means nothing is text.
    blanks: whether a function's name may hold blanks. ended: nothing more comes.
    """

    def __init__(self, header: Header, whole: bool, blanks: bool, ended: bool = False) -> None:
        self._whole, self._blanks, self._ended = whole, blanks, ended
        self._author = "assistant"
        self._channel: str | None = None
        self._recipient: str | None = None
        self._types: list[str] = []
        self._constraint = ""
        self.author_rest = self._read_author(header)
        rests = [self.author_rest]
        for token, text in header._parts:
            rests.append(self._read_channel(text) if token == CHANNEL else self._read_type(text))
        self.rest = "".join(rests)

    def message(self) -> Message:
        called = self._recipient not in _NOBODY
        channel = self._channel
        if channel is None and Message(self._author).from_model:
            channel = COMMENTARY if called else FINAL
        plain = " ".join(self._types)
        kind = plain or None
        if self._constraint:
            kind = f"{CONSTRAIN}{self._constraint}"
            if plain not in ("", self._constraint):
                kind = f"{plain} {kind}"
        return Message(self._author, channel, self._recipient, kind)

    def _read_author(self, header: Header) -> str:
        text, at = header._author, 0
        if header._begun:
            named = self._whole or bool(header._parts)
            found = _AUTHOR.match(text) or (_NAME.match(text) if named else None)
            name_only = _NAME.match(text)
            # "assistantship" before a special token is a name; before text, a forgotten header.
            if named and name_only and found and found.end() < name_only.end():
                if not text[found.end() :].startswith(("to=", *CHANNELS)):
                    found = name_only
        else:
            found = _ROLE.match(text)
            if found and not self._whole and not header._parts and found[1] != "assistant":
                found = None
        if found:
            self._author, at = found[1], found.end()
        return self._read_items(text, at, in_author=True)

    def _read_channel(self, text: str) -> str:
        found = _CHANNEL_NAME.match(text)
        if found is None:
            return self._read_items(text, 0)
        channel, length = _known_channel(found[1])
        # A second channel takes the first one's place, unless a call was named in between.
        if channel is not None and (self._channel is None or self._recipient in _NOBODY):
            self._channel = channel
        if self._whole:
            return self._read_items(text, found.end())
        if length:
            return self._read_items(text, found.start(1) + length)
        # A word that is no channel is text, unless it is the name of one that is being written.
        cut = self._blanks and not self._ended
        return "" if cut and _goes_on(self._read_items(text, found.end())) else text

    def _read_type(self, text: str) -> str:
        at = 0
        if not self._whole or _TO.search(text):
            found = _CONSTRAINT.match(text)
            if found and self._is_text(found[1]):
                found = None
            if found:
                self._constraint = found[1]
                at = found.end()
            return self._read_items(text, at)
        if self._constraint:
            self._types += text.split()
        else:
            self._constraint = text.strip()
        return ""

    def _is_text(self, kind: str) -> bool:
        """Whether what may be a content type is not: there is one, or nothing comes behind it."""
        if self._constraint not in ("", kind):
            return True
        return self._ended and self._recipient in _NOBODY and kind not in _TYPES

    def _read_items(self, text: str, at: int, in_author: bool = False) -> str:
        """Recipients and content types, in any order; what is left."""
        while True:
            end = self._read_recipient(text, at)
            if end is None and self._recipient is not None and (found := _TYPE.match(text, at)):
                self._types.append(found[1])
                end = found.end()
            if end is None and in_author and (found := _CHANNEL_HERE.match(text, at)):
                self._channel = self._channel or found[1]
                end = found.end()
            if end is None and self._whole and not in_author:
                found = _ANYTHING.match(text, at)
                if found:
                    self._types.append(found[1])
                    end = found.end()
            if end is None:
                return text[at:]
            at = end

    def _read_recipient(self, text: str, at: int) -> int | None:
        found = _TO.match(text, at)
        if found is None:
            return None
        name = found[1]
        if name.startswith(FUNCTIONS):
            words = name.split(" ")
            length = next(
                (i for i, word in enumerate(words[1:], 1)
                 if not self._blanks or word in (*_TYPES, *CHANNELS)),
                len(words),
            )  # fmt: skip
            name = " ".join(words[:length])
        if len(name) > _LONGEST_NAME and not self._whole:
            return None
        # The first one that names a tool: a call is worth more than being told that it is for us.
        if name and self._recipient in (*_NOBODY, FUNCTIONS):
            self._recipient = name if name not in _NOBODY else self._recipient or name
        return found.start(1) + len(name)


def _goes_on(text: str, names: tuple[str, ...] = ()) -> bool:
    """Whether a header may go on with this, the last word of which may be half written."""
    words = text.split() or [""]
    begun = (*CHANNELS, *_TYPES, *names, "to=", FUNCTIONS)
    return all(word in (*CHANNELS, *_TYPES) for word in words[:-1]) and any(
        name.startswith(words[-1]) for name in begun
    )


def _can_be_author(text: str, begun: bool) -> bool:
    """Whether the beginning of a header can be this, or begin with this."""
    words = text.split()
    if len(words) > _MAX_NAME_WORDS:
        return False
    recipient = function = False
    for i, word in enumerate(words):
        if word.startswith("to=") or (begun and i == 0 and "to=" in word):
            recipient = True
            function = function or f"to={FUNCTIONS}" in word
            continue
        if i == 0 and begun and _AUTHOR_WORD.fullmatch(word):
            continue
        if i == 0 and word.partition(":")[0] in ROLES:
            continue
        if function and _WORD.fullmatch(word):
            continue
        names = (*CHANNELS, *(_TYPES if recipient else ())) if i else ()
        if word in names:
            continue
        unfinished = i == len(words) - 1 and not text[-1].isspace()
        names += ("to=",) if i else (*ROLES, "to=")
        if not (unfinished and any(name.startswith(word) for name in names)):
            return False
    return True


def _known_channel(word: str) -> tuple[str | None, int]:
    """(the channel meant, how much of the word it is; 0: only resembles it).

    Names are run together or have something before them at times ("finalcommentary").
    """
    word = word.lower()
    for channel in CHANNELS:
        if word.startswith(channel):
            return channel, len(channel)
    found = [channel for channel in (ANALYSIS, COMMENTARY, FINAL) if channel in word]
    return (found[0] if found else None), 0
