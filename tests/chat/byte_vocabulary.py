"""The smallest vocabulary that conversations can be written in."""

import re

from gptoss.chat.harmony import REQUIRED
from gptoss.tokenizer.tokenizer import StreamDecoder

NAMES = (*REQUIRED, "<|endoftext|>", "<|startoftext|>")


class Bytes:
    """A vocabulary of single bytes, then the special tokens, then an id that maps to nothing."""

    special_tokens = {name: 256 + i for i, name in enumerate(NAMES)}  # noqa: RUF012
    nothing = 256 + len(NAMES)
    vocab_size = nothing + 1
    _table = [bytes([i]) for i in range(256)] + [name.encode() for name in NAMES] + [b""]

    def stream(self):
        return StreamDecoder(self._table)

    def decode(self, tokens):
        return b"".join(self._table[token] for token in tokens).decode(errors="replace")

    def encode(self, text):
        """Names of special tokens are the tokens."""
        found = []
        for part in re.split("(" + "|".join(map(re.escape, NAMES)) + ")", text):
            special = self.special_tokens.get(part)
            found += [special] if special is not None else part.encode()
        return found


WORDS = Bytes()
