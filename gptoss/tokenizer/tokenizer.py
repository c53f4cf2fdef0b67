"""Text to token ids and back: byte-level BPE through tiktoken, with no need of a network.

The vocabulary is looked for beside the checkpoint first (a rank file, then tokenizer.json), and for
models with the published vocabulary where tiktoken and openai-harmony look for theirs.
"""

from __future__ import annotations

import codecs
import operator
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property, lru_cache
from typing import SupportsIndex

import tiktoken
import tiktoken.load

from gptoss.errors import Error, shown
from gptoss.tokenizer import vocabulary
from gptoss.tokenizer.vocabulary import (
    Vocabulary,
)

# tiktoken's regular expressions give up on about a million blanks in a row; text is cut inside runs
# of at least this many characters, so that the tokens of all other text are exactly tiktoken's.
_LONG_RUN = 1 << 18
# A pattern that leaves characters out would lose them without a word.
_PROBE = "".join(map(chr, range(0x250))) + (
    "Once upon a time, 3 bears' 1234567 http://x.y/?z=1\r\n\t  \n\n   indented  \u3000\u2028 "
    "e\u0301 Ĳ ǅ ʰ Ж ע ك ก 中文 한국 ½ ٣ Ⅷ €→∀ 😀👩\u200d👧 "
    "\u200b\ue000\ufeff\ufffd\U000e0001\U0010ffff end "
)


class StreamDecoder:
    """Turns tokens into text one at a time, holding back incomplete UTF-8.

    The strings that `push` and `flush` return, joined, are exactly the tokens' bytes decoded with
    errors="replace": nothing is lost, and no half of a character is ever shown.
    """

    def __init__(self, table: list[bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: SupportsIndex, /) -> str:
        """The text that is complete now that `token` has come."""
        return self._decoder.decode(_bytes_of(self._table, token))

    def flush(self) -> str:
        """U+FFFD for what was left incomplete, else nothing. The decoder can then be used anew."""
        return self._decoder.decode(b"", final=True)


class Tokenizer:
    """The tokenizer of one model. May be used by several threads at once.

    vocab_size: ids in the model's tables, some of which may map to nothing. special_tokens: name →
    id. eos_ids: ids that end a text. conversation_format: how the model takes conversations, as its
    files say it: "harmony", "none" where it was taught none, or None where they say nothing.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises Error where the pattern is not a regular expression or leaves characters out."""
        self.vocab_size = vocabulary.vocab_size
        self.special_tokens = dict(vocabulary.special_tokens)
        self.eos_ids = vocabulary.eos_ids
        self.conversation_format = vocabulary.conversation_format
        self._source = vocabulary.source
        self._table = vocabulary.token_table()
        self._plain = dict(vocabulary.plain_tokens)
        try:
            self._encoding = tiktoken.Encoding(
                vocabulary.source,
                pat_str=vocabulary.pattern,
                mergeable_ranks=dict(vocabulary.ranks),
                special_tokens={},  # they are found here, the longest first
            )
        except ValueError as error:
            raise Error(
                f"{self._source}: pattern: expected a regular expression, found "
                f"{shown(vocabulary.pattern)}: {error}"
            ) from None
        self._check_pattern(vocabulary.pattern)

    def __repr__(self) -> str:
        return f"<Tokenizer {self._source}: {self.vocab_size} ids>"

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """The token ids of `text`. Nothing is added before or after it.

        Names of special tokens are plain text unless `allowed_special` lists them; "all" allows
        every one. Surrogate pairs become the character they encode, lone surrogates U+FFFD. Raises
        Error for a name that is not a special token's.
        """
        if not isinstance(text, str):
            raise Error(f"text: expected str, found {type(text).__name__}")
        search = self._search(allowed_special)
        if search is None:
            return self._encode_ordinary(text)
        ids: list[int] = []
        start = 0
        for match in search.finditer(text):
            name = match.group()
            ids += self._encode_ordinary(text[start : match.start()])
            ids.append(self._plain[name] if name in self._plain else self.special_tokens[name])
            start = match.end()
        return ids + self._encode_ordinary(text[start:])

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token, the names of special ones included."""
        names = max((len(name.encode()) for name in self.special_tokens), default=1)
        return max(names, max(map(len, filter(None, self._table)), default=1))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of `ids`, special tokens by name; U+FFFD where their bytes are not UTF-8."""
        return b"".join(_bytes_of(self._table, token) for token in ids).decode("utf-8", "replace")

    def token_bytes(self, token: SupportsIndex) -> bytes:
        """The bytes of one token; b"" for an id that maps to nothing. Error for negative ids."""
        return _bytes_of(self._table, token)

    def rank_file(self) -> bytes:
        """The tokens that are not special as a rank file, the form of o200k_base.tiktoken."""
        special = {*self.special_tokens.values(), *self._plain.values()}
        ranks = {
            token: rank for rank, token in enumerate(self._table) if token and rank not in special
        }
        return vocabulary.dump_ranks(ranks)

    def stream(self) -> StreamDecoder:
        """A decoder for one text that arrives token by token."""
        return StreamDecoder(self._table)

    def _search(self, allowed: Collection[str]) -> re.Pattern[str] | None:
        """What finds the tokens that are not plain text; None where there are none."""
        if allowed == "all":
            allowed = self.special_tokens
        elif isinstance(allowed, str):
            raise Error(f"allowed_special: expected names or 'all', found {shown(allowed)}")
        names = frozenset(allowed)
        unknown = sorted(str(name) for name in names if name not in self.special_tokens)
        if unknown:
            raise Error(f"allowed_special: {shown(unknown[0])} is no special token of this model")
        names |= frozenset(self._plain)
        return _search_for(names) if names else None

    def _encode_ordinary(self, text: str) -> list[int]:
        if len(text) <= _LONG_RUN:
            return self._encode_piece(text)
        return [token for piece in _cut_long_runs(text) for token in self._encode_piece(piece)]

    def _encode_piece(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._encoding.encode_ordinary(text)  # mends surrogates itself
        except BaseException as error:
            # tiktoken's failures inside Rust are not even Exceptions, and would end a thread
            if type(error).__name__ != "PanicException":
                raise
            raise Error(
                f"{self._source}: the pattern cannot split the text {shown(text)}: {error}"
            ) from None
        return ids

    def _check_pattern(self, pattern: str) -> None:
        found = self.decode(self._encode_piece(_PROBE))
        if found != _PROBE:
            pairs = zip(found, _PROBE, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(found))
            raise Error(
                f"{self._source}: pattern: expected to match any text, found that "
                f"{shown(pattern)} leaves out {shown(_PROBE[at])}"
            )


@lru_cache(maxsize=32)
def _search_for(names: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)))


def _bytes_of(table: list[bytes], token: SupportsIndex) -> bytes:
    index = operator.index(token)
    if index < 0:
        raise Error(f"token ids: expected 0 or more, found {index}")
    return table[index] if index < len(table) else b""


def _cut_long_runs(text: str) -> Iterator[str]:
    """`text` in pieces with no more than twice _LONG_RUN blanks in a row.

    It is cut after each aligned stretch of _LONG_RUN characters that holds nothing but blanks.
    """
    start = 0
    for at in range(_LONG_RUN, len(text), _LONG_RUN):
        if text[at - _LONG_RUN : at].isspace():
            yield text[start:at]
            start = at
    yield text[start:]
