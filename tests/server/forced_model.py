"""A model that speaks harmony though its weights are random: grammars say what it writes.

    python tests/server/forced_model.py serve -m "synthetic:tiny?vocab=201088&layers=1"

The server, the engine, the prompts and the parser are the product's own; only the grammar of an
answer is another. By it the model thinks, then calls the first tool that it may call, with
arguments of its schema; when the tool has said something, or where there is none, it answers.
Words in the last message of the user choose otherwise:

    !answer      no call, though there are tools
    !call NAME   that tool
    !preamble    something is said to the user before the call
    !builtin     a call of browser.search, declared or not
    !real        whatever the product's own grammar allows

The published vocabulary must be at hand (TIKTOKEN_ENCODINGS_BASE).
"""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from gptoss import Engine
from gptoss.chat import Conversation, HarmonyChat, Rendered, Tool
from gptoss.request import Grammar
from gptoss.server.api import app as server
from gptoss.tokenizer import Tokenizer

CHECKPOINT = "synthetic:tiny?vocab=201088&layers=1"
THINKING = "We need to think. Then we act."
PREAMBLE = "I will look that up."
ANSWER = "Hello! The answer is 42, and that is all."
BUILT_IN = "browser.search"
BUILT_IN_ARGUMENTS = {"query": "x"}

_NEXT = '<|end|> <|start|> "assistant"'
_MAX_KEPT = 1000  # prompts


class ForcedChat(HarmonyChat):
    """The format of a forced model.

    prompts: the texts that it was shown, the last ones, in order.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.prompts: deque[str] = deque(maxlen=_MAX_KEPT)
        self._asked = threading.local()  # a prompt and its grammar are made by one thread

    def render(self, conversation: Conversation) -> Rendered:
        rendered = super().render(conversation)
        self._asked.messages = conversation.messages
        self.prompts.append(rendered.text)
        return rendered

    def grammar(
        self,
        tools: Sequence[Tool],
        answer: Grammar | None,
        must_call: bool = False,
        *,
        hold: bool = True,
        continues: bool = False,
    ) -> Grammar | None:
        messages = self._asked.messages
        said = next((m.content for m in reversed(messages) if m.role == "user"), "")
        if "!real" in said:
            return super().grammar(tools, answer, must_call, hold=hold, continues=continues)
        if continues:
            return Grammar.lark(_lark([f"{_quoted(ANSWER)} <|return|>"]))
        answered = messages[-1].role == "tool"
        return Grammar.lark(forced(said, answered, tools, answer, must_call))


def forced(
    said: str,
    answered: bool,
    tools: Sequence[Tool],
    answer: Grammar | None = None,
    must_call: bool = False,
) -> str:
    """A Lark grammar of what follows ``<|start|>assistant``.

    said: by the user. answered: whether what comes last is what a tool said. tools: those that may
    be called.
    """
    parts = [f'<|channel|> "analysis" <|message|> {_quoted(THINKING)} {_NEXT}']
    builtin = "!builtin" in said and not answered
    calls = builtin or (tools and (must_call or not (answered or "!answer" in said)))
    if not calls:
        if answer is None:
            parts.append(f'<|channel|> "final" <|message|> {_quoted(ANSWER)} <|return|>')
            return _lark(parts)
        parts.append('<|channel|> "final" " " <|constrain|> "json" <|message|> written <|return|>')
        return _lark(parts, _tame_rule(answer.rule))
    if "!preamble" in said:
        parts.append(f'<|channel|> "commentary" <|message|> {_quoted(PREAMBLE)} {_NEXT}')
    name, schema = BUILT_IN, {"const": BUILT_IN_ARGUMENTS}
    if not builtin:
        named = [tool for tool in tools if f"!call {tool.name}" in said]
        tool = (named or tools)[0]
        name, schema = f"functions.{tool.name}", tame(tool.parameters or {"type": "object"})
    header = _quoted(f"commentary to={name} ")
    parts.append(f'<|channel|> {header} <|constrain|> "json" <|message|> written <|call|>')
    return _lark(parts, _json_rule(schema))


# What llguidance can hold a text to; a tool that is not strict may have anything in its schema.
_KEPT = {
    "type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems",
    "maxItems", "anyOf", "oneOf", "allOf", "enum", "const", "$ref", "$defs", "definitions",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
    "maxLength", "pattern", "format",
}  # fmt: skip
_FORMATS = {
    "date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid",
}  # fmt: skip
_DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


def tame(schema: Any) -> Any:
    """A schema whose texts are short, as random weights do not stop by themselves, and fit the
    given one as far as a grammar can say."""
    if not isinstance(schema, Mapping):
        return _DIGIT if schema is True else schema
    tamed = {key: each for key, each in _joined(schema).items() if key in _KEPT}
    if tamed.get("format") not in _FORMATS:
        tamed.pop("format", None)
    for key in ("properties", "$defs", "definitions"):
        if key in tamed:
            tamed[key] = {name: tame(each) for name, each in tamed[key].items()}
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if key in tamed:
            tamed[key] = [tame(each) for each in tamed[key]]
    if "items" in tamed:
        tamed["items"] = tame(tamed["items"])
    if not {"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "properties"} & set(tamed):
        return {**tamed, **_DIGIT}
    kinds = tamed.get("type", "object" if "properties" in tamed else [])
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if "number" in kinds:
        kinds = ["integer" if kind == "number" else kind for kind in kinds]
        tamed["type"] = kinds
    if "integer" in kinds and "exclusiveMinimum" not in tamed and "exclusiveMaximum" not in tamed:
        if "maximum" in tamed:
            tamed.setdefault("minimum", tamed["maximum"] - 99)
        tamed.setdefault("minimum", 0)
        tamed.setdefault("maximum", tamed["minimum"] + 99)
    if "string" in kinds and not {"pattern", "enum", "const", "format"} & set(tamed):
        tamed.setdefault("maxLength", max(8, tamed.get("minLength", 0)))
    if "array" in kinds:
        tamed.setdefault("items", _DIGIT)
        tamed.setdefault("maxItems", max(2, tamed.get("minItems", 0)))
    if "object" in kinds:
        others = tamed.get("additionalProperties", True)
        if not tamed.get("properties") and others is not False:
            tamed["properties"] = {"a": tame(others)}
        tamed["additionalProperties"] = False
    return tamed


def _joined(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """An object whose properties stand in the parts of `allOf`, as one: parts cannot be closed
    each."""
    parts = schema.get("allOf", ())
    if not parts or not all("properties" in part for part in parts):
        return schema
    joined = {key: each for key, each in schema.items() if key != "allOf"}
    for part in parts:
        joined["properties"] = {**joined.get("properties", {}), **part["properties"]}
        joined["required"] = [*joined.get("required", ()), *part.get("required", ())]
    return joined


def _tame_rule(rule: str) -> str:
    """The right side of an answer's rule."""
    kind, _, source = rule.partition(" ")
    return _json_rule(tame(json.loads(source))) if kind == "%json" else rule


def _json_rule(schema: Any) -> str:
    tight = {"x-guidance": {"whitespace_flexible": False}}
    return f"%json {json.dumps({**schema, **tight})}"


def _lark(parts: list[str], written: str = "") -> str:
    rule = f"written: {written}\n" if written else ""
    return f"start: {' '.join(parts)}\n{rule}"


def _quoted(text: str) -> str:
    return json.dumps(text)


@contextmanager
def forced_models() -> Iterator[list[ForcedChat]]:
    """Servers that are made inside the block have forced models; what it yields lists their
    formats."""
    made: list[ForcedChat] = []

    def load_chat(tokenizer: Tokenizer) -> ForcedChat:
        made.append(ForcedChat(tokenizer))
        return made[-1]

    with mock.patch.object(server, "load_chat", load_chat):
        yield made


@contextmanager
def forced_app(name: str = "gpt-oss-20b") -> Iterator[Any]:
    """An ASGI application; `.state.chat` is its ForcedChat."""
    with (
        Engine(CHECKPOINT, activation="f32", kv_bytes=256 << 20, threads=1) as engine,
        forced_models() as made,
    ):
        app = server.create_app(engine, server.ServerOptions(name))
        app.state.chat = made[0]
        yield app


if __name__ == "__main__":
    from gptoss.cli import main

    with forced_models():
        sys.exit(main(sys.argv[1:]))
