"""Grammars compiled for one vocabulary, and how far a text has come in one (llguidance)."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from gptoss.errors import Error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gptoss.tokenizer import Tokenizer
from gptoss.request import Grammar, deeply, first_line, load_llguidance, parser_limits

_REMEMBERED = 16  # compiled grammars of a vocabulary


class CompiledGrammar:
    """A grammar for one vocabulary. Raises Error where it does not fit it."""

    def __init__(self, grammar: Grammar, words: GrammarVocabulary) -> None:
        library = load_llguidance()
        self._words = words
        self._grammar = grammar
        self._matcher = deeply(
            lambda: library.LLMatcher(
                words.tokenizer,
                library.LLMatcher.grammar_from_lark(grammar.source),
                log_level=0,
                limits=parser_limits(library),
            )
        )
        if self._matcher.is_error():
            message = f"{grammar.what}: {first_line(self._matcher.get_error())}"
            raise Error(message, field=grammar.field)
        # A rule that leads to nothing but itself is found out only by asking how a text begins.
        try:
            self.begin().mask()
        except Error as error:
            raise Error(f"{error}: no text can begin", field=grammar.field) from None

    def begin(self) -> GrammarState:
        """For a text that has not begun."""
        return GrammarState(self._matcher.deep_copy(), self._grammar, self._words)


class GrammarState:
    """How far a text has come in its grammar: a `gptoss.engine.generation.Constraint`.

    Raises Error in the middle of a text only where the grammar turns out to cost too much.
    """

    def __init__(self, matcher: Any, grammar: Grammar, words: GrammarVocabulary) -> None:
        self._matcher = matcher
        self._grammar = grammar
        self._words = words

    @property
    def ended(self) -> bool:
        """Whether the text is whole and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def mask(self) -> NDArray[np.uint32]:
        """uint32 [ceil(vocab / 32)]: bit i % 32 of word i / 32 says whether token i may come."""
        import numpy as np

        mask = np.zeros(self._words.mask_words, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()
        return mask

    def push(self, token: int) -> None:
        """The token came; it was allowed."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            # Copies share the automata that llguidance builds: once these are full, all copies
            # fail. The next text gets new ones.
            self._words.forget(self._grammar)
            message = f"{self._grammar.what}: {first_line(self._matcher.get_error())}"
            raise Error(message, field=self._grammar.field)


class GrammarVocabulary:
    """A vocabulary as llguidance wants it, and the grammars lately compiled for it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Collection[int]) -> None:
        """Takes about a second for 200,000 tokens.

        vocab_size: the model's. eos_ids: tokens that may come where the text may end.
        """
        library = load_llguidance()
        if not eos_ids:
            raise Error("grammar: the model has no token that ends a text", field="grammar")
        self.mask_words = -(-vocab_size // 32)
        self.tokenizer = library.LLTokenizer(
            library.TokenizerWrapper(_Words(tokenizer, min(eos_ids))),
            n_vocab=vocab_size,
            eos_token=sorted(eos_ids),
        )
        self._compiled: dict[Grammar, CompiledGrammar] = {}
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The grammar for this vocabulary; one that was asked for lately is there already. From any
        thread; others compile theirs meanwhile.
        """
        with self._lock:
            found = self._compiled.pop(grammar, None)
        if found is None:
            for part in grammar.parts:
                CompiledGrammar(part, self)
            found = CompiledGrammar(grammar, self)
        with self._lock:
            self._compiled[grammar] = found  # the last one used is the last to go
            while len(self._compiled) > _REMEMBERED:
                self._compiled.pop(next(iter(self._compiled)))
        return found

    def forget(self, grammar: Grammar) -> None:
        """It is compiled anew when it is asked for again."""
        with self._lock:
            self._compiled.pop(grammar, None)


class _Words:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        self._tokenizer = tokenizer
        special = tokenizer.special_tokens
        self.special_token_ids = sorted(special.values())
        names = {token: name.encode() for name, token in special.items()}
        self.tokens = [
            names.get(token) or tokenizer.token_bytes(token)
            for token in range(tokenizer.vocab_size)
        ]
        self.bos_token_id = None
        self.eos_token_id = eos

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        return self._tokenizer.encode(text)
