"""Conversations of any kind: as the chat API has them, and as OpenAI's own library has them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

NAMES = (
    "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>",
    "<|endoftext|>", "<|startoftext|>", "<|reserved_200014|>",
)  # fmt: skip
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=30),
    st.lists(
        st.sampled_from(
            [*NAMES, "Hello", " world", "\n\n", "  ", " to=", "123456", "don't", "Ünï", "文字",
             "👩\u200d👧", "\r\n", "# Tools", "}", '"', "// "]
        ),
        max_size=6,
    ).map("".join),
)  # fmt: skip
SAID = TEXTS.filter(bool)
FUNCTION_NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
# Names in a history are whatever a model made up.
ODD_NAMES = st.one_of(
    FUNCTION_NAMES,
    st.sampled_from(["", "a b", "mcp.server.read", "ü", "<|end|>", "a\nb", "to=x", "Web Search"]),
    st.text(CHARACTERS, max_size=8).filter(
        lambda name: name.partition(".")[0] not in ("browser", "container", "python")
    ),
).filter(lambda name: not name.startswith("functions."))


@dataclass
class Case:
    """A conversation twice.

    raw: for `render`. said: (role, name, channel, recipient, content type, text) of each message
    behind the instructions, `answers` the places in it of answers.
    """

    instructions: list[tuple[str, str]] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)
    said: list[tuple[Any, ...]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def all_raw(self) -> list[dict[str, Any]]:
        leading = [{"role": role, "content": text} for role, text in self.instructions]
        return [*leading, *self.raw]

    def shown(self) -> list[tuple[Any, ...]]:
        """Without the thinking before the last answer."""
        last = max(self.answers, default=-1)
        return [
            message for i, message in enumerate(self.said) if message[2] != "analysis" or i > last
        ]


@st.composite
def cases(draw: st.DrawFn, middle: bool = True) -> Case:
    """middle: whether instructions may stand between messages."""
    case = Case(
        draw(st.lists(st.tuples(st.sampled_from(["system", "developer"]), SAID), max_size=2))
    )
    user(draw, case)
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["user", "turn", "turn", "instructions"]))
        if kind == "turn":
            turn(draw, case)
        elif kind == "instructions" and middle:
            text = draw(SAID)
            case.raw.append(
                {"role": draw(st.sampled_from(["system", "developer"])), "content": text}
            )
            case.said.append(("developer", None, None, None, None, f"# Instructions\n\n{text}"))
        user(draw, case)
    if draw(st.booleans()):
        turn(draw, case, draw(st.booleans()))
    return case


def user(draw: st.DrawFn, case: Case) -> None:
    text = draw(TEXTS)
    named = draw(st.sampled_from([{}, {"name": "John Smith"}]))
    case.raw.append({"role": "user", "content": text, **named})
    case.said.append(("user", None, None, None, None, text))


def turn(draw: st.DrawFn, case: Case, answered: bool = True) -> None:
    """What an assistant does until it answers, or as far as it came."""
    for number in range(draw(st.integers(0 if answered else 1, 2))):
        calling(draw, case, number)
    if answered:
        message: dict[str, Any] = {"role": "assistant", "content": draw(SAID)}
        thinking = draw(st.none() | SAID)
        if thinking is not None:
            message[draw(st.sampled_from(["reasoning", "reasoning_content", "thinking"]))] = (
                thinking
            )
            case.said.append(("assistant", None, "analysis", None, None, thinking))
        case.raw.append(message)
        case.answers.append(len(case.said))
        case.said.append(("assistant", None, "final", None, None, message["content"]))


def calling(draw: st.DrawFn, case: Case, number: int) -> None:
    """Thinking, a preamble, calls, and what the tools said, in any order."""
    thinking, preamble = draw(st.none() | SAID), draw(st.none() | SAID)
    names = draw(st.lists(ODD_NAMES, min_size=1, max_size=3))
    message: dict[str, Any] = {"role": "assistant", "content": preamble, "tool_calls": []}
    if thinking is not None:
        message["reasoning"] = thinking
        case.said.append(("assistant", None, "analysis", None, None, thinking))
    if preamble is not None:
        case.said.append(("assistant", None, "commentary", None, None, preamble))
    for i, name in enumerate(names):
        arguments = draw(st.sampled_from(["{}", '{"a": 1}', "<|end|>", '{"city": "Köln"}']))
        function = {"name": name, "arguments": arguments}
        message["tool_calls"].append({"id": f"c{i}", "type": "function", "function": function})
        case.said.append(
            ("assistant", None, "commentary", f"functions.{name}", "<|constrain|>json", arguments)
        )
    case.raw.append(message)
    for i in draw(st.permutations(range(len(names)))):
        text = draw(TEXTS)
        case.raw.append({"role": "tool", "tool_call_id": f"c{i}", "content": text})
        case.said.append(("tool", f"functions.{names[i]}", "commentary", "assistant", None, text))


# What OpenAI's library makes of them.


def theirs(
    library: Any,
    encoding: Any,
    case: Case,
    *,
    tools: list[dict[str, Any]] = (),  # type: ignore[assignment]
    effort: str = "medium",
    today: Any = None,
    built_in: tuple[str, ...] = (),
    drop: bool | None = None,
) -> list[int]:
    """Token ids. drop: whether it drops thinking by its own rule; None: by ours."""
    system = library.SystemContent.new().with_reasoning_effort(
        library.ReasoningEffort(effort.capitalize())
    )
    if today is not None:
        system = system.with_conversation_start_date(today.isoformat())
    for name in built_in:
        system = getattr(system, f"with_{name}_tool")()
    developer = library.DeveloperContent.new()
    if case.instructions:
        developer = developer.with_instructions("\n\n".join(text for _, text in case.instructions))
    if tools:
        functions = [tool["function"] for tool in tools]
        developer = developer.with_function_tools(
            [
                library.ToolDescription.new(
                    f["name"], f.get("description", ""), f.get("parameters")
                )
                for f in functions
            ]
        )
    messages = [library.Message.from_role_and_content(library.Role.SYSTEM, system)]
    if case.instructions or tools:
        messages.append(library.Message.from_role_and_content(library.Role.DEVELOPER, developer))
    for role, name, channel, recipient, content_type, text in (
        case.said if drop is not None else case.shown()
    ):
        author = library.Author(role=library.Role(role), name=name)
        message = library.Message.from_author_and_content(author, text)
        message.channel, message.recipient, message.content_type = channel, recipient, content_type
        messages.append(message)
    config = library.RenderConversationConfig(auto_drop_analysis=bool(drop))
    ids: list[int] = encoding.render_conversation_for_completion(
        library.Conversation.from_messages(messages), library.Role.ASSISTANT, config
    )
    return ids


# Tools that it can write.


def json_values() -> st.SearchStrategy[Any]:
    return st.one_of(st.integers(-99, 99), st.booleans(), st.none(), TEXTS, st.just(1.5))


@st.composite
def plain_schemas(draw: st.DrawFn, depth: int = 3, element: bool = False) -> dict[str, Any]:
    """Of the part of JSON schema that OpenAI's library writes.

    element: of an array, whose elements it takes to be not nullable, and does not describe. Nor
    has it a null for properties of several variants.
    """
    kinds = ["string", "number", "integer", "boolean", "enum", "types"]
    kind = draw(st.sampled_from(kinds + ["object", "array", "oneOf"] * (depth > 0)))
    nullable = not element
    schema: dict[str, Any] = {"type": kind}
    if kind == "enum":
        schema = {
            "type": "string",
            "enum": draw(st.lists(TEXTS, min_size=1, max_size=3, unique=True)),
        }
    elif kind == "types":
        types = ["string", "number", "integer", "boolean", "null"]
        schema = {"type": draw(st.lists(st.sampled_from(types), min_size=1, max_size=3))}
    elif kind == "array":
        if draw(st.booleans()):
            schema["items"] = draw(plain_schemas(depth - 1, element=True))
    elif kind == "oneOf":
        nullable = False
        schema = {"oneOf": draw(st.lists(plain_schemas(depth - 1), min_size=1, max_size=3))}
    elif kind == "object":
        schema.update(draw(objects(depth - 1)))
    if draw(st.integers(0, 3)) == 0 and not (element and kind != "object"):
        schema["description"] = draw(TEXTS)
    if draw(st.integers(0, 5)) == 0:
        schema["title"] = draw(TEXTS)
    if draw(st.integers(0, 5)) == 0:
        schema["examples"] = draw(st.lists(TEXTS, max_size=2))
    if nullable and draw(st.integers(0, 5)) == 0:
        schema["nullable"] = draw(st.booleans())
    if draw(st.integers(0, 3)) == 0:
        schema["default"] = draw(json_values())
    return schema


@st.composite
def objects(draw: st.DrawFn, depth: int = 3) -> dict[str, Any]:
    properties = draw(st.dictionaries(TEXTS, plain_schemas(depth), max_size=4))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if draw(st.booleans()):
        schema["required"] = [name for name in properties if draw(st.booleans())]
    return schema


@st.composite
def plain_tools(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for name in draw(st.lists(FUNCTION_NAMES, max_size=3, unique=True)):
        function: dict[str, Any] = {"name": name, "description": draw(TEXTS)}
        if draw(st.booleans()):
            function["parameters"] = json.loads(json.dumps(draw(objects())))
        found.append({"type": "function", "function": function})
    return found
