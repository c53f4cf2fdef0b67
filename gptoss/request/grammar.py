"""What a text must be: a JSON schema, a regular expression, one of several texts, a Lark grammar.

llguidance (the extra `grammar`) turns a grammar and the tokens so far into the set of tokens that
may come next; the sampler draws from these alone. A grammar is compiled against a vocabulary and
then started afresh for each text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from gptoss.errors import Error, shown
from gptoss.extras import install_hint
from gptoss.request.deep import deeply
from gptoss.request.gbnf import lark_of
from gptoss.request.schema import schema_text
from gptoss.request.text import valid_text

MAX_SOURCE = 1 << 20  # characters of a grammar
MAX_CHOICES = 1024
_REMEMBERED = 16  # grammars that were checked lately
# Between the parts of a JSON text: enough to indent it; without an end, models write nothing else.
_BLANKS = r"( |\n[ \t]{0,64})?"
_refused = partial(Error, field="grammar")  # the option that a grammar is given by
# What a grammar may cost: of the parser's own limits those that a hostile one would use up.
_LIMITS = {
    "initial_lexer_fuel": 500_000,  # to build its automata, about a second
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_grammar_size": 500_000,
    "max_lexer_states": 30_000,  # some 50 MB
}


# What llguidance says of what is no schema, or of one that nothing fits. All else it cannot do.
_NO_SCHEMA = ("must be", "Invalid type", "Expected", "expected", "does not exist", "Unsatisfiable")


@dataclass(frozen=True)
class Grammar:
    """A grammar in the form that llguidance reads. Made by the functions below, which check it.

    source: a Lark grammar; names in angle brackets such as ``<|end|>`` are special tokens.
    what: the kind, for messages. field: what is at fault where it turns out to fit no text.
    parts: grammars that are inside of it somewhere. Each has to fit some text of its own, which is
    not found out of the whole before a text gets there.
    """

    source: str
    what: str = "grammar"
    field: str = "grammar"
    parts: tuple[Grammar, ...] = ()

    @staticmethod
    def json(
        schema: Mapping[str, Any] | str | bool | None = None, *, strict: bool = True
    ) -> Grammar:
        """Text that is JSON, and fits a schema where one is given.

        Args:
            schema: of the language of json-schema.org, as an object or as text; None: any object.
            strict: whether a schema that cannot be kept to is refused. Else keywords that are not
                known are left out, and where that is not enough, only the JSON's type is kept to.

        Raises:
            Error: it is no schema, nothing fits it, or it cannot be kept to.
        """
        value: Any = {"type": "object"} if schema is None else schema
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise _refused(f"json schema: expected JSON: {error}") from None
        if strict:
            return Grammar.lark(f"start: {json_rule(value)}", what="json schema")
        return _lenient(value)

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Text that matches all of a regular expression (Rust's syntax; no look-around)."""
        if not isinstance(pattern, str):
            raise _refused(f"regex: expected a string, found {shown(pattern)}")
        return Grammar.lark(f"start: /{_escaped(pattern)}/", what="regex")

    @staticmethod
    def choice(texts: Sequence[str]) -> Grammar:
        """One of several texts."""
        if (
            isinstance(texts, (str, bytes))
            or not isinstance(texts, Sequence)
            or not 0 < len(texts) <= MAX_CHOICES
            or not all(isinstance(text, str) and text for text in texts)
        ):
            raise _refused(f"choice: expected 1 to {MAX_CHOICES} texts, found {shown(texts)}")
        # In Lark's escapes.
        names = [json.dumps(valid_text(text)).replace("\x7f", "\\u007f") for text in texts]
        return Grammar.lark(f"start: {' | '.join(names)}", what="choice")

    @staticmethod
    def lark(source: str, what: str = "grammar") -> Grammar:
        """Text of a Lark grammar, in llguidance's dialect; its first rule is ``start``.

        Raises:
            Error: it is invalid or too large, or llguidance is not installed.
        """
        if not isinstance(source, str):
            raise _refused(f"{what}: expected a string, found {shown(source)}")
        if len(source) > MAX_SOURCE:
            raise _refused(f"{what}: expected at most {MAX_SOURCE} characters, found {len(source)}")
        source = valid_text(source)
        problem = _problem(source)
        if problem and not problem.startswith("WARNING"):
            raise _refused(f"{what}: {first_line(problem)}")
        return Grammar(source, what)

    @staticmethod
    def gbnf(source: str) -> Grammar:
        """Text of a grammar as llama.cpp has it; its first rule is ``root``.

        Raises:
            Error: it is invalid, names tokens instead of characters, or is too large.
        """
        if not isinstance(source, str):
            raise _refused(f"gbnf: expected a string, found {shown(source)}")
        if len(source) > MAX_SOURCE:
            raise _refused(f"gbnf: expected at most {MAX_SOURCE} characters, found {len(source)}")
        return Grammar.lark(lark_of(valid_text(source)), what="gbnf")

    @property
    def rule(self) -> str:
        """The same as the right side of a rule, which stands on lines of its own."""
        start, _, rest = self.source.partition("start: ")
        if self.what in ("grammar", "gbnf") or start:
            return f"%lark {{\n{self.source}\n}}"
        return rest


@lru_cache(maxsize=_REMEMBERED)
def _problem(source: str) -> str:
    """What is wrong with a grammar; empty: nothing. To find out takes some 5 ms for each schema in
    it, and the requests of a conversation have the same tools.
    """
    library = load_llguidance()

    def found() -> str:
        problem: str = library.LLMatcher.validate_grammar(
            library.LLMatcher.grammar_from_lark(source), limits=parser_limits(library)
        )
        return problem

    return deeply(found)


def json_rule(schema: Mapping[str, Any] | bool, *, strict: bool = True) -> str:
    """A part of a Lark rule: JSON that fits a schema. Raises Error when it is not a schema.

    strict: as of `Grammar.json`; the rule may still be refused.
    """
    if not isinstance(schema, (Mapping, bool)):
        raise _refused(f"json schema: expected an object, found {shown(schema)}")
    if schema is False:
        raise _refused("json schema: false fits nothing")
    options = {"whitespace_pattern": _BLANKS, **({} if strict else {"lenient": True})}
    try:
        return f"%json {schema_text(schema, {'x-guidance': options})}"
    except (TypeError, ValueError, RecursionError) as error:
        raise _refused(f"json schema: expected JSON: {error}") from None


def _lenient(schema: Any) -> Grammar:
    try:
        grammar = Grammar.lark(f"start: {json_rule(schema, strict=False)}", what="json schema")
        if _begins(grammar):
            return grammar
    except Error as error:
        if any(words in str(error) for words in _NO_SCHEMA):
            raise
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return Grammar.json({"type": kind if isinstance(kind, str) else "object"})


def _begins(grammar: Grammar) -> bool:
    """Whether any text of bytes may begin: a rule that leads to nothing but itself allows none."""
    library = load_llguidance()

    def begins() -> bool:
        matcher = library.LLMatcher(
            library.LLTokenizer("byte"),
            library.LLMatcher.grammar_from_lark(grammar.source),
            log_level=0,
            limits=parser_limits(library),
        )
        matcher.compute_logit_bias()
        return not matcher.is_error()

    return deeply(begins)


def parser_limits(library: Any) -> Any:
    return library.LLParserLimits(**_LIMITS)


def load_llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise _refused(f"grammar: llguidance is missing: {install_hint('grammar')}") from None
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


def first_line(text: str) -> str:
    """Of a message that may go on with the whole grammar and a trace.

    A line and column in a message refer to a source that is not the user's.
    """
    return re.sub(r"^at \d+\(\d+\): ", "", text.strip().split("\n", 1)[0])[:500]
