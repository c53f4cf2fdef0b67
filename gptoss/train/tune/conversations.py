"""Conversations as token ids, and which of them the model has to write itself.

Prompts are those that the server and `gptoss chat` make, rendered by the same code
(`gptoss.chat.render`). What the model is trained to write is what it will have to write
when it is used: there the prompt ends with ``<|start|>assistant``, so everything after that counts,
up to the end token; and when an assistant message follows an assistant message (thinking, then the
answer), its ``<|start|>assistant`` counts too. Nothing of anybody else's messages does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from gptoss.chat import (
    ANALYSIS,
    REQUIRED,
    RETURN,
    START,
    Conversation,
    Message,
    body,
    encode,
    head,
    message_segments,
)
from gptoss.errors import Error
from gptoss.tokenizer import Tokenizer
from gptoss.train.data import TextTokenizer

NOTHING = -1  # no target


@dataclass(frozen=True)
class Example:
    """A sequence to learn from: int64 [n] each.

    targets[i] is the id to be written after tokens[0 … i], or −1 where nothing is learned.
    """

    tokens: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


class Teacher:
    """Makes examples of conversations with the vocabulary of one model."""

    def __init__(self, tokenizer: TextTokenizer, raw: bool = False) -> None:
        """`raw`: messages are written one after the other as they are, with none of ours.

        Raises Error when the vocabulary lacks tokens that conversations need.
        """
        missing = [name for name in REQUIRED if name not in tokenizer.special]
        if missing:
            raise Error(
                "tokenizer: conversations need the special tokens of harmony; this model's "
                f"vocabulary lacks {' '.join(missing)} (--method text does without them)"
            )
        self.special = {name: tokenizer.special[name] for name in REQUIRED}
        self.raw = raw
        self._words = _Remembering(tokenizer)
        # All that rendering asks of a tokenizer is there.
        self._tokenizer = cast(Tokenizer, self._words)

    def prompt(self, conversation: Conversation) -> list[int]:
        """The ids up to and including ``<|start|>assistant``, as the model meets them in use."""
        return [*self._ids(self._head(conversation)), *self._behind_head(conversation)]

    def _head(self, conversation: Conversation) -> list[Message]:
        return [] if self.raw else head(conversation)

    def _behind_head(self, conversation: Conversation) -> list[int]:
        messages = conversation.messages
        if not self.raw:
            shown = body(conversation)
        else:  # the same without a word changed
            answer = max((i for i, m in enumerate(messages) if m.is_answer), default=-1)
            shown = [m for i, m in enumerate(messages) if i > answer or m.channel != ANALYSIS]
        return [*self._ids(shown), self.special[START], *self._words.encode("assistant")]

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        parts = [part for message in messages for part in message_segments(message)]
        return encode(parts, self._tokenizer)

    def examples(self, conversation: Conversation, where: str) -> list[Example]:
        """What there is to learn from one conversation: every assistant message counts once.

        In use, the thinking of an earlier turn is no longer shown once that turn has its answer. So
        a turn with thinking that others follow becomes an example of its own, cut off after it;
        later examples hold its answer as context only. Raises Error without anything to learn.
        """
        self._words.forget()
        try:
            opening = self._ids(self._head(conversation))  # of every prompt below
        except Error as error:
            raise Error(f"{where}: {error}") from None
        found: list[Example] = []
        ids: list[int] = []
        wanted: list[int] = []
        for stretch in _stretches(conversation.messages):
            written = conversation.messages[stretch.start : stretch.stop]
            if not any(message.weight for message in written):
                continue
            before = conversation.messages[: stretch.start]
            prompt = [*opening, *self._behind_head(replace(conversation, messages=before))]
            if ids and ids != prompt[: len(ids)]:  # something of it is no longer shown
                found.append(_example(ids, wanted))
                ids, wanted = [], []
            wanted += [NOTHING] * (len(prompt) - len(ids))
            ids = prompt
            for number, message in enumerate(written):
                made = message_segments(message)
                part = encode(made if number else made[2:], self._tokenizer)  # the prompt has them
                targets = [*part] if message.weight else [NOTHING] * len(part)
                if message.weight and message.is_answer:
                    # Histories have <|end|> here, but what ends an answer is <|return|>.
                    targets[-1] = self.special[RETURN]
                ids += part
                wanted += targets
        if ids:
            found.append(_example(ids, wanted))
        if not found:
            raise Error(f"{where}: expected an assistant message to learn from, found none")
        return found

    def reply(self, conversation: Conversation, where: str) -> Example:
        """The one example of a conversation whose last turn alone is learned. Raises Error."""
        found = self.examples(conversation, where)
        if len(found) > 1:
            raise Error(f"{where}: expected a reply of one turn, found {len(found)}")
        return found[0]


class _Remembering:
    """A tokenizer that encodes a text once for all the prompts of a conversation.

    Each of them is rendered from the beginning, so that it is the server's to the last token.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.vocab_size = tokenizer.vocab_size
        self.special_tokens = dict(tokenizer.special)
        self.eos_ids: frozenset[int] = frozenset()
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = self._tokenizer.encode(text)
        return list(found)

    def forget(self) -> None:
        self._known.clear()


def _stretches(messages: Sequence[Message]) -> Iterator[range]:
    """What the model writes at one go each: assistant messages, up to one after which it stops."""
    start = 0
    for index, message in enumerate(messages):
        if not message.from_model:
            start = index + 1
            continue
        after = messages[index + 1 : index + 2]
        if message.is_call or message.is_answer or not after or not after[0].from_model:
            yield range(start, index + 1)
            start = index + 1


def _example(ids: Sequence[int], wanted: Sequence[int]) -> Example:
    """What is to be written at each place, moved to the place before it; up to the last of them."""
    end = max(index for index, target in enumerate(wanted) if target != NOTHING)
    return Example(np.array(ids[:end], np.int64), np.array(wanted[1 : end + 1], np.int64))
