"""What a model wrote in the harmony format, parsed at once."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from types import SimpleNamespace
from typing import SupportsIndex

from gptoss.chat.conversation import Message
from gptoss.chat.harmony import REQUIRED, MarkedParser, check_vocabulary
from gptoss.errors import Error, shown
from gptoss.request import valid_text
from gptoss.tokenizer import HARMONY_SIZE, Tokenizer, load_tokenizer

# Of the published vocabulary: those that mark messages, and those that mean nothing here.
_PUBLISHED = re.compile(
    "("
    + "|".join(map(re.escape, (*REQUIRED, "<|endoftext|>", "<|startoftext|>", "<|endofprompt|>")))
    + r"|<\|reserved_\d+\|>)"
)


def parse(
    tokens_or_text: str | Iterable[SupportsIndex], tokenizer: Tokenizer | None = None
) -> list[Message]:
    """The messages in what a model wrote behind ``<|start|>assistant``.

    Nothing that can be written fails or is lost: see `gptoss.chat.HarmonyParser`. A text that
    begins with ``<|start|>assistant`` itself is read as well.

    Args:
        tokens_or_text: ids of tokens; or text, in which names of special tokens are these tokens.
            Lone surrogates become U+FFFD.
        tokenizer: whose special tokens and ids they are; None: the published vocabulary's.

    Raises:
        Error: it is neither, an id is not in the vocabulary, the vocabulary is not harmony's; or
            ids are given and the published vocabulary is not at hand.
    """
    if isinstance(tokens_or_text, str):
        return _parse_text(tokens_or_text, tokenizer)
    tokenizer = tokenizer or _published()
    check_vocabulary(tokenizer)
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    parser = MarkedParser()
    tokens = _checked(tokens_or_text, tokenizer.vocab_size)
    for special, run in groupby(tokens, key=names.__contains__):
        if special:
            for token in run:
                parser.special(names[token])
        else:
            parser.text(tokenizer.decode(run))
    parser.finish()
    return parser.messages


def _parse_text(text: str, tokenizer: Tokenizer | None) -> list[Message]:
    names = _PUBLISHED
    if tokenizer is not None:
        check_vocabulary(tokenizer)
        longest_first = sorted(tokenizer.special_tokens, key=len, reverse=True)
        names = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
    text = valid_text(text)
    parser = MarkedParser()
    for i, part in enumerate(names.split(text)):
        if i % 2:
            parser.special(part)
        else:
            parser.text(part)
    parser.finish()
    return parser.messages


def _checked(tokens: Iterable[SupportsIndex], size: int) -> Iterator[int]:
    if isinstance(tokens, (bytes, bytearray)) or not isinstance(tokens, Iterable):
        raise Error(f"parse: expected text or token ids, found {shown(tokens)}")
    for token in tokens:
        try:
            index = operator.index(token)
        except TypeError:
            raise Error(f"parse: expected token ids, found {shown(token)}") from None
        if isinstance(token, bool) or not 0 <= index < size:
            raise Error(f"parse: expected token ids from 0 to {size - 1}, found {shown(token)}")
        yield index


@lru_cache(maxsize=1)
def _published() -> Tokenizer:
    return load_tokenizer(None, SimpleNamespace(vocab_size=HARMONY_SIZE))
