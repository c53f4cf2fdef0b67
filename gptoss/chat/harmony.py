"""What a model writes in the harmony format, parsed while it is written.

A message is a header, ``<|message|>``, its content and an end token. Models get it wrong now and
then. The parser never fails, loses no text and invents none: what cannot be a header is content,
what has no channel is the answer, and of a header that was cut nothing was written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gptoss.chat.conversation import ANALYSIS as ANALYSIS
from gptoss.chat.conversation import CHANNELS as CHANNELS
from gptoss.chat.conversation import COMMENTARY as COMMENTARY
from gptoss.chat.conversation import FINAL as FINAL
from gptoss.chat.conversation import ROLES as ROLES
from gptoss.chat.conversation import Message
from gptoss.chat.header import CHANNEL as CHANNEL
from gptoss.chat.header import CONSTRAIN as CONSTRAIN
from gptoss.chat.header import Header
from gptoss.errors import Error
from gptoss.tokenizer import Tokenizer

START, END, MESSAGE = "<|start|>", "<|end|>", "<|message|>"
RETURN, CALL = "<|return|>", "<|call|>"
REQUIRED = (START, END, MESSAGE, CHANNEL, RETURN, CALL, CONSTRAIN)

EndedBy = Literal["end", "return", "call"]
_ENDS: dict[str, EndedBy] = {END: "end", RETURN: "return", CALL: "call", "<|endoftext|>": "end"}
_NO_ARGUMENTS = "{}"


@dataclass(frozen=True)
class Piece:
    """New text of a message.

    Attributes:
        number: which message, from 0.
        message: its fields; content is empty.
        text: what is new; may be empty where the message begins or ends.
        begins, ends: whether it is the message's first piece, its last.
        ended_by: in the last piece, the special token: "end", "return" or "call"; "end" also where
            another message begins without one. None: the text was cut.
    """

    number: int
    message: Message
    text: str
    begins: bool = False
    ends: bool = False
    ended_by: EndedBy | None = None


class MarkedParser:
    """Messages out of what follows ``<|start|>assistant``: text, and names of special tokens.

    Fields are kept whatever their order, as often as they come: of several recipients the first,
    of several channels the last before a recipient. A content type is kept as it is written:
    "json", or "<|constrain|>json" where the special token was. A call that ends without arguments
    has the content "{}".
    """

    def __init__(self, continues: Message | None = None) -> None:
        """continues: the message that the prompt ended in, whose content goes on."""
        self._header: Header | None = Header(first=True)
        self._whole: list[Message] = []
        self._fields: Message | None = None
        self._texts: list[str] = []
        self._begun = False  # the message being written has given a piece
        self._opened: Header | None = None  # its header, which may go on while there is no content
        if continues is not None:
            self._begin(replace(continues, content=""))

    @property
    def messages(self) -> list[Message]:
        """All of them so far, the one being written last."""
        if self._fields is None:
            return list(self._whole)
        return [*self._whole, replace(self._fields, content="".join(self._texts))]

    def text(self, text: str) -> list[Piece]:
        """The pieces that a text adds; names of special tokens in it are text."""
        if self._header is None:
            return self._give(text)
        if not text:
            return []
        rest = self._header.add(text)
        if self._header.plausible():
            return []
        message, begun = self._header.leftover(ended=False)
        self._begin(message)
        return self._give(begun + rest)

    def special(self, name: str) -> list[Piece]:
        """The pieces that a special token adds. Those that mean nothing are left out."""
        if name in _ENDS:
            return self._end(_ENDS[name])
        if name == START:
            pieces = self._end("end", calls=False)
            self._header = Header(begun=True)
            return pieces
        if name not in (MESSAGE, CHANNEL, CONSTRAIN):
            return []
        pieces = []
        if self._header is None:
            if name == MESSAGE:
                return []  # a second one inside a message is noise
            if self._opened is not None and not any(self._texts):
                self._header, self._fields = self._opened, None  # <|message|> came too early
            elif name == CONSTRAIN:
                return []
            else:  # the next message, its <|end|> and <|start|> left out
                pieces = self._end("end")
        elif self._header.before():
            pieces = self._end("end")
        assert self._header is not None
        if name == MESSAGE:
            self._begin(self._header.fields(), self._header)
        else:
            self._header.mark(name)
        return pieces

    def finish(self) -> list[Piece]:
        """The last pieces: nothing more comes."""
        return self._end(None)

    def _begin(self, message: Message, header: Header | None = None) -> None:
        self._fields, self._texts, self._begun = message, [], False
        self._header, self._opened = None, header

    def _give(self, text: str) -> list[Piece]:
        if not text:
            return []
        assert self._fields is not None
        self._texts.append(text)
        piece = Piece(len(self._whole), self._fields, text, begins=not self._begun)
        self._begun = True
        return [piece]

    def _end(self, ended_by: EndedBy | None, calls: bool = True) -> list[Piece]:
        """End the message that is being written, or the header.

        calls: whether a header alone that names whom to call is a call.
        """
        pieces: list[Piece] = []
        if self._header is not None:
            message, text = self._header.leftover(ended=ended_by is not None)
            if not text and not (calls and ended_by and message.is_call):
                if not self._header.untouched:
                    self._header = Header()
                return []
            self._begin(message)
            pieces = self._give(text)
        fields, content = self._fields, "".join(self._texts)
        assert fields is not None
        text = _NO_ARGUMENTS if ended_by and fields.is_call and not content.strip() else ""
        piece = Piece(len(self._whole), fields, text, not self._begun, True, ended_by)
        self._whole.append(replace(fields, content=content + text))
        self._fields, self._header = None, Header()
        return [*pieces, piece]


def check_vocabulary(tokenizer: Tokenizer) -> None:
    """Raises Error where a vocabulary lacks special tokens of harmony."""
    missing = [name for name in REQUIRED if name not in tokenizer.special_tokens]
    if missing:
        raise Error(f"tokenizer: expected harmony's special tokens, lacks {' '.join(missing)}")


class HarmonyParser:
    """Messages out of the tokens that follow a prompt which ends with ``<|start|>assistant``.

    Special tokens do not become text; bytes that are not UTF-8 become U+FFFD, in the message where
    they stand. What is kept of the fields: see `MarkedParser`.
    """

    def __init__(self, tokenizer: Tokenizer, continues: Message | None = None) -> None:
        """continues: the message that the prompt ended in, whose content goes on.

        Raises:
            Error: the vocabulary lacks harmony's special tokens.
        """
        check_vocabulary(tokenizer)
        self._names = {token: name for name, token in tokenizer.special_tokens.items()}
        self._new_decoder = tokenizer.stream
        self._decoder = tokenizer.stream()
        self._parser = MarkedParser(continues)

    @property
    def messages(self) -> list[Message]:
        """All of them so far, the one being written last."""
        return self._parser.messages

    def is_special(self, token: int) -> bool:
        """Whether a token marks headers and ends, and so is not text."""
        return token in self._names

    def push(self, token: int) -> list[Piece]:
        """The pieces of text that are complete now that `token` has come."""
        name = self._names.get(token)
        if name is None:
            return self._parser.text(self._decoder.push(token))
        rest = self._parser.text(self._decoder.flush())
        self._decoder = self._new_decoder()
        return rest + self._parser.special(name)

    def finish(self) -> list[Piece]:
        """The last pieces: nothing more comes."""
        return self._parser.text(self._decoder.flush()) + self._parser.finish()
