"""What a model writes in the harmony format, parsed while it is written.

A message is ``<|start|>author[ to=recipient][<|channel|>channel[ to=recipient]][ content type]
<|message|>content`` and an end token. Models get it wrong now and then. The parser never fails and
never loses text: what cannot be a header is content, what has no channel is the answer, and a
message that is not ended is one all the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gptoss.errors import Error
from gptoss.tokenizer import Tokenizer

START, END, MESSAGE, CHANNEL = "<|start|>", "<|end|>", "<|message|>", "<|channel|>"
RETURN, CALL, CONSTRAIN = "<|return|>", "<|call|>", "<|constrain|>"
REQUIRED = (START, END, MESSAGE, CHANNEL, RETURN, CALL, CONSTRAIN)

ANALYSIS, COMMENTARY, FINAL = "analysis", "commentary", "final"
CHANNELS = (ANALYSIS, COMMENTARY, FINAL)
ROLES = ("system", "developer", "user", "assistant", "tool")

# A header longer than this, or of more words, is text whose header was left out.
_LONGEST_HEADER, _MAX_WORDS = 256, 4
_ENDS = {END: "end", RETURN: "return", CALL: "call", "<|endoftext|>": "end"}
_RECIPIENT = re.compile(r"(?:^|\s)to=(\S+)")
# What may stand before <|message|>; the rest of it is text.
_AUTHOR = re.compile(rf"(?:\s*(?:{'|'.join(ROLES)})(?::\S+)?(?=\s|$))?(?:\s*to=\S+)?")
_AUTHOR_FIRST = re.compile(rf"\s*(?:{'|'.join(ROLES)})?(?:\s*to=\S+)?")
_CHANNEL = re.compile(rf"(?:\s*(?:{'|'.join(CHANNELS)}))?(?:\s+to=\S+)?(?:\s+(?:json|code)\b)?")


@dataclass
class Message:
    """A message as far as it has been written.

    channel: "analysis", "commentary" or "final". recipient: whom a call goes to, such as
    "functions.weather". ended_by: "end", "return", "call", or None where the text was cut.
    """

    channel: str = FINAL
    recipient: str | None = None
    content_type: str | None = None
    content: str = ""
    ended_by: str | None = None

    @property
    def is_call(self) -> bool:
        return self.recipient is not None and self.recipient != "assistant"


@dataclass(frozen=True)
class Piece:
    """New text of a message; `begins` with its first piece, `ends` with its last."""

    message: Message
    text: str
    begins: bool = False
    ends: bool = False


@dataclass
class _Header:
    """The text of a header, split at its special tokens: before, after channel, …"""

    author: str = ""
    begun: bool = False  # after a <|start|>: an author comes first, whatever follows it
    channel: str | None = None
    constrain: str | None = None
    written: str = ""

    def add(self, text: str) -> None:
        self.written += text
        if self.constrain is not None:
            self.constrain += text
        elif self.channel is not None:
            self.channel += text
        else:
            self.author += text

    def mark(self, token: str) -> None:
        self.written += token
        if token == CONSTRAIN:
            self.constrain = self.constrain or ""
        else:  # a second channel takes the first one's place
            self.channel = ""

    def plausible(self) -> bool:
        """Could what was written still become a header?"""
        if len(self.written) > _LONGEST_HEADER:
            return False
        if self.channel is not None:
            return len(f"{self.channel} {self.constrain or ''}".split()) <= _MAX_WORDS
        unfinished = bool(self.author) and not self.author[-1].isspace()
        words = self.author.split()
        for i, word in enumerate(words):
            last = unfinished and i == len(words) - 1
            begins = last and any(name.startswith(word) for name in (*ROLES, "to="))
            author = i == 0 and word.split(":")[0] in ROLES
            if not (begins or author or word.startswith("to=")):
                return False
        return True

    def text(self) -> str:
        """What is not part of a header."""
        if self.channel is None:
            pattern = _AUTHOR_FIRST if self.begun else _AUTHOR
            return self.author[_end_of(pattern, self.author) :]
        written = self.channel + (self.constrain or "")
        return written[_end_of(_CHANNEL, written) :]

    def is_cut(self) -> bool:
        """Whether it ends in the middle of a word of a header."""
        word = self.text().strip()
        names = ROLES if self.channel is None else CHANNELS
        return any(name.startswith(word) for name in (*names, "to="))

    def message(self) -> Message:
        words = (self.channel or "").split()
        recipients = _RECIPIENT.findall(f"{self.author} {self.channel or ''}")
        recipient = recipients[0] if recipients else None
        plain = [word for word in words if not word.startswith("to=")]
        channel = _known_channel(plain[0] if plain else "", recipient)
        kind = self.constrain.strip() if self.constrain is not None else " ".join(plain[1:])
        return Message(channel, recipient, kind or None)


def _known_channel(name: str, recipient: str | None) -> str:
    """The channel meant: names are cut or run together at times ("finalcommentary")."""
    for channel in CHANNELS:
        if name == channel:
            return channel
    for channel in CHANNELS:
        if name.startswith(channel):
            return channel
    return COMMENTARY if recipient is not None else FINAL


class HarmonyParser:
    """Messages out of the tokens that follow a prompt which ends with ``<|start|>assistant``.

    messages: all of them so far, the one being written last. Special tokens do not become text;
    bytes that are not UTF-8 become U+FFFD, in the message where they stand.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises Error where the vocabulary lacks harmony's special tokens."""
        missing = [name for name in REQUIRED if name not in tokenizer.special_tokens]
        if missing:
            raise Error(f"tokenizer: expected harmony's special tokens, lacks {' '.join(missing)}")
        self._names = {token: name for name, token in tokenizer.special_tokens.items()}
        self._new_decoder = tokenizer.stream
        self._decoder = tokenizer.stream()
        self._header: _Header | None = _Header()
        self._begun = False  # the message being written has given a piece
        self.messages: list[Message] = []

    def is_special(self, token: int) -> bool:
        """Whether a token marks headers and ends, and so is not text."""
        return token in self._names

    def push(self, token: int) -> list[Piece]:
        """The pieces of text that are complete now that `token` has come."""
        name = self._names.get(token)
        if name is None:
            return self._text(self._decoder.push(token))
        rest = self._text(self._decoder.flush())
        self._decoder = self._new_decoder()
        return rest + self._special(name)

    def finish(self) -> list[Piece]:
        """The last pieces: nothing more comes."""
        return self._text(self._decoder.flush()) + self._end(None)

    def _text(self, text: str) -> list[Piece]:
        if self._header is None:
            return self._give(text)
        self._header.add(text)
        return [] if self._header.plausible() else self._header_was_text()

    def _special(self, name: str) -> list[Piece]:
        if name in _ENDS:
            return self._end(_ENDS[name])
        if name == START:
            pieces = self._end(None) if self._header is None or self._header.written else []
            self._header = _Header(begun=True)
            return pieces
        if name == MESSAGE:
            if self._header is not None:
                self._begin(self._header.message())
            return []  # a second one inside a message is noise
        if name in (CHANNEL, CONSTRAIN):
            pieces = []
            if self._header is None:  # the next message, its <|end|> and <|start|> left out
                pieces = self._end(None)
                self._header = _Header()
            assert self._header is not None
            self._header.mark(name)
            return pieces
        return []  # reserved ones mean nothing

    def _begin(self, message: Message) -> None:
        self.messages.append(message)
        self._header = None
        self._begun = False

    def _header_was_text(self) -> list[Piece]:
        """What was taken for a header is content: of the channel that it names, or the answer."""
        header = self._header
        assert header is not None
        self._begin(Message() if header.channel is None else header.message())
        return self._give(header.text())

    def _give(self, text: str) -> list[Piece]:
        if not text:
            return []
        message = self.messages[-1]
        message.content += text
        piece = Piece(message, text, begins=not self._begun)
        self._begun = True
        return [piece]

    def _end(self, ended_by: str | None) -> list[Piece]:
        pieces: list[Piece] = []
        if self._header is not None:
            if self._header.is_cut():  # nothing was being written: <|return|> after <|end|>
                self._header = _Header()
                return []
            pieces = self._header_was_text()
        message = self.messages[-1]
        message.ended_by = ended_by
        pieces.append(Piece(message, "", begins=not self._begun, ends=True))
        self._header = _Header()
        return pieces


def _end_of(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    assert match is not None  # all of it is optional
    return match.end()
