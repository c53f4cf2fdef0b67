"""What a text must be: a JSON schema, a regular expression, one of several texts, a Lark grammar.

llguidance (the extra `grammar`) turns a grammar and the tokens so far into the set of tokens that
may come next; the sampler draws from these alone. A grammar is compiled against a vocabulary and
then begun anew for each text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptoss.errors import Error, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gptoss.tokenizer import Tokenizer

MOST_SOURCE = 1 << 20  # characters of a grammar
MOST_CHOICES = 1024
# Between the parts of a JSON text: enough to indent it; without an end, models write nothing else.
_BLANKS = r"( |\n[ \t]{0,64})?"
_REMEMBERED = 16  # compiled grammars of a vocabulary
# What a grammar may cost: of the parser's own limits those that a hostile one would use up.
_LIMITS = {
    "initial_lexer_fuel": 500_000,  # to build its automata, about a second
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_grammar_size": 500_000,
    "max_lexer_states": 30_000,  # some 50 MB
}


@dataclass(frozen=True)
class Grammar:
    """A grammar in the form that llguidance reads. Made by the functions below, which check it.

    source: a Lark grammar; names in angle brackets such as ``<|end|>`` are special tokens.
    what: the kind, for messages.
    """

    source: str
    what: str = "grammar"

    @staticmethod
    def json(schema: Mapping[str, Any] | str | bool | None = None) -> Grammar:
        """Text that is JSON, and fits a schema where one is given.

        schema: of the language of json-schema.org, as an object or as text; None: any object.
        """
        value: Any = {"type": "object"} if schema is None else schema
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise Error(f"json schema: expected JSON: {error}") from None
        return Grammar.lark(f"start: {json_rule(value)}", what="json schema")

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Text that matches all of a regular expression (Rust's syntax; no look-around)."""
        if not isinstance(pattern, str):
            raise Error(f"regex: expected a string, found {shown(pattern)}")
        return Grammar.lark(f"start: /{_escaped(pattern)}/", what="regex")

    @staticmethod
    def choice(texts: Sequence[str]) -> Grammar:
        """One of several texts."""
        if (
            isinstance(texts, (str, bytes))
            or not isinstance(texts, Sequence)
            or not 0 < len(texts) <= MOST_CHOICES
            or not all(isinstance(text, str) and text for text in texts)
        ):
            raise Error(f"choice: expected 1 to {MOST_CHOICES} texts, found {shown(texts)}")
        names = [json.dumps(text).replace("\x7f", "\\u007f") for text in texts]  # Lark's escapes
        return Grammar.lark(f"start: {' | '.join(names)}", what="choice")

    @staticmethod
    def lark(source: str, what: str = "grammar") -> Grammar:
        """Text of a Lark grammar, in llguidance's dialect; its first rule is ``start``.

        Raises:
            Error: it is none, or too large; llguidance is not there.
        """
        if not isinstance(source, str):
            raise Error(f"{what}: expected a string, found {shown(source)}")
        if len(source) > MOST_SOURCE:
            raise Error(f"{what}: expected at most {MOST_SOURCE} characters, found {len(source)}")
        library = _library()
        problem = library.LLMatcher.validate_grammar(
            library.LLMatcher.grammar_from_lark(source), limits=_limits(library)
        )
        if problem and not problem.startswith("WARNING"):
            raise Error(f"{what}: {_first_line(problem)}")
        return Grammar(source, what)

    @property
    def rule(self) -> str:
        """The same as the right side of a rule, which stands on lines of its own."""
        start, _, rest = self.source.partition("start: ")
        if self.what == "grammar" or start:
            return f"%lark {{\n{self.source}\n}}"
        return rest


def json_rule(schema: Mapping[str, Any] | bool) -> str:
    """A part of a Lark rule: JSON that fits a schema. Raises Error when it is no schema."""
    if not isinstance(schema, (Mapping, bool)):
        raise Error(f"json schema: expected an object, found {shown(schema)}")
    if schema is False:
        raise Error("json schema: false fits nothing")
    options = {"x-guidance": {"whitespace_pattern": _BLANKS}}
    try:
        return f"%json {json.dumps({**(schema if isinstance(schema, Mapping) else {}), **options})}"
    except (TypeError, ValueError, RecursionError) as error:
        raise Error(f"json schema: expected JSON: {error}") from None


class CompiledGrammar:
    """A grammar for one vocabulary. Raises Error where it does not fit it."""

    def __init__(self, grammar: Grammar, words: GrammarVocabulary) -> None:
        library = _library()
        self._words = words
        self._what = grammar.what
        self._matcher = library.LLMatcher(
            words.tokenizer,
            library.LLMatcher.grammar_from_lark(grammar.source),
            log_level=0,
            limits=_limits(library),
        )
        if self._matcher.is_error():
            raise Error(f"{grammar.what}: {_first_line(self._matcher.get_error())}")

    def begin(self) -> GrammarState:
        """For a text that has not begun."""
        return GrammarState(self._matcher.deep_copy(), self._what, self._words)


class GrammarState:
    """How far a text has come in its grammar: a `gptoss.jobs.Constraint`.

    Raises Error in the middle of a text only where the grammar turns out to cost too much.
    """

    def __init__(self, matcher: Any, what: str, words: GrammarVocabulary) -> None:
        self._matcher = matcher
        self._what = what
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
            raise Error(f"{self._what}: {_first_line(self._matcher.get_error())}")


class GrammarVocabulary:
    """A vocabulary as llguidance wants it, and the grammars lately compiled for it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Collection[int]) -> None:
        """Takes about a second for 200,000 tokens.

        vocab_size: the model's. eos_ids: tokens that may come where the text may end.
        """
        library = _library()
        if not eos_ids:
            raise Error("grammar: the model has no token that ends a text")
        self.mask_words = -(-vocab_size // 32)
        self.tokenizer = library.LLTokenizer(
            library.TokenizerWrapper(_Words(tokenizer, min(eos_ids))),
            n_vocab=vocab_size,
            eos_token=sorted(eos_ids),
        )
        self._compiled: dict[Grammar, CompiledGrammar] = {}

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The grammar for this vocabulary; one that was asked for lately is there already."""
        found = self._compiled.pop(grammar, None)
        if found is None:
            found = CompiledGrammar(grammar, self)
        while len(self._compiled) >= _REMEMBERED:
            self._compiled.pop(next(iter(self._compiled)))
        self._compiled[grammar] = found  # the last one used is the last to go
        return found


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


def _limits(library: Any) -> Any:
    return library.LLParserLimits(**_LIMITS)


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise Error("grammar: llguidance is missing: pip install 'gptoss[grammar]'") from None
    return llguidance


def _escaped(pattern: str) -> str:
    """A pattern between slashes: those inside it, and line ends, are written as escapes."""
    out: list[str] = []
    escaped = False
    for letter in pattern:
        if letter == "/" and not escaped:
            out.append("\\/")
        elif letter == "\n":
            out.append("n" if escaped else "\\n")
        else:
            out.append(letter)
        escaped = letter == "\\" and not escaped
    return "".join(out)


def _first_line(text: str) -> str:
    """Of a message that may go on with the whole grammar and a trace.

    Where a message says at which line and column, it is of a source that is not the user's.
    """
    return re.sub(r"^at \d+\(\d+\): ", "", text.strip().split("\n", 1)[0])[:500]
