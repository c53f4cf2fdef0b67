"""A conversation as the prompt that gpt-oss models read: the harmony format.

Written after https://cookbook.openai.com/articles/openai-harmony; the tokens are those of OpenAI's
own renderer (the package openai-harmony) wherever it has any for a conversation.

A message is ``<|start|>author[ to=recipient][<|channel|>channel][ content type]<|message|>content``
and an end token. Each of these parts is split into tokens by itself, and only the names written
here in angle brackets are special tokens: a text that spells one stays a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from gptoss.chat.built_in import BUILT_IN
from gptoss.chat.conversation import ANALYSIS, CHANNELS, Conversation, Message
from gptoss.chat.harmony import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, START, check_vocabulary
from gptoss.chat.messages import parse_messages, parse_tools
from gptoss.chat.typescript import namespace_section
from gptoss.errors import Error
from gptoss.request import valid_text
from gptoss.tokenizer import HARMONY_SIZE, Tokenizer, load_tokenizer

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"

# (whether it is the name of a special token, text)
Segment = tuple[bool, str]


class Rendered:
    """A rendered prompt.

    Attributes:
        segments: its parts, each of them a special token's name or a text that is split alone.
        text: all of it, special tokens by name.
    """

    def __init__(self, segments: Sequence[Segment], tokenizer: Tokenizer | None = None) -> None:
        self.segments = tuple(segments)
        self._tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"Rendered({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rendered) and self.segments == other.segments

    def __hash__(self) -> int:
        return hash(self.segments)

    @cached_property
    def text(self) -> str:
        return "".join(text for _, text in self.segments)

    @cached_property
    def ids(self) -> list[int]:
        """Its token ids. Raises Error where the published vocabulary is asked for and not at hand,
        or the vocabulary lacks harmony's special tokens.
        """
        return encode(self.segments, self._tokenizer or published_tokenizer())


def render(
    messages: Sequence[Any],
    *,
    tools: Sequence[Any] = (),
    effort: str = "medium",
    tokenizer: Tokenizer | None = None,
    **more: Any,
) -> Rendered:
    """The prompt for the assistant's next message: it ends with ``<|start|>assistant``.

    Args:
        messages: as OpenAI's chat API has them, or `Message`s.
        tools: as OpenAI's chat API has them, or `Tool`s.
        effort: of reasoning: "low", "medium" or "high".
        tokenizer: of the model; None: the published vocabulary.
        more: further fields of a `Conversation`: `today`, the date that the model is told (none if
            it is left out); `built_in`; `continues`.

    Raises:
        Error: a message or a tool is invalid; it names which, what was expected and what was found.
    """
    declared = tuple(parse_tools(tools))
    parsed = parse_messages(messages, [tool.name for tool in declared])
    conversation = Conversation(tuple(parsed), declared, effort, **more)
    if tokenizer is not None:
        check_vocabulary(tokenizer)
    return Rendered(segments(conversation), tokenizer)


def segments(conversation: Conversation) -> list[Segment]:
    """The prompt for the next message, or up to the end of the last one if that is to go on."""
    messages = [*head(conversation), *body(conversation)]
    last = conversation.messages[-1] if conversation.messages else None
    if not conversation.continues:
        found = [part for message in messages for part in message_segments(message)]
        return [*found, (True, START), (False, "assistant")]
    if last is None or not last.from_model or last.is_call:
        raise Error(
            "continue_final_message: expected a last message that is the assistant's text",
            field="continue_final_message",
        )
    found = [part for message in messages[:-1] for part in message_segments(message)]
    return [*found, *message_segments(messages[-1])[:-1]]


def head(conversation: Conversation) -> list[Message]:
    """What stands before the conversation: the system message, and the developer's, which has the
    leading instructions and the tools, if there are any.
    """
    system = Message("system", content=_system(conversation))
    leading = conversation.messages[: _leading(conversation.messages)]
    instructions = "\n\n".join(message.content for message in leading if message.content.strip())
    sections = ["# Instructions", instructions] if instructions else []
    if conversation.tools:
        sections += ["# Tools", namespace_section("functions", conversation.tools)]
    developer = Message("developer", content="\n\n".join(sections))
    return [system, developer] if sections else [system]


def body(conversation: Conversation) -> list[Message]:
    """The messages behind the head, as they are shown when the next one is to be written.

    Thinking before the last answer is left out; thinking before a call whose answer is still to
    come is not. Instructions between messages stay where they are, from the developer.
    """
    messages = conversation.messages
    end = len(messages) - conversation.continues  # an answer that goes on is none yet
    answer = max((i for i in range(end) if messages[i].is_answer), default=-1)
    found = []
    for i in range(_leading(messages), len(messages)):
        message = messages[i]
        if message.channel == ANALYSIS and i < answer:
            continue
        if message.role in ("system", "developer"):
            if not message.content.strip():
                continue
            content = f"# Instructions\n\n{message.content}"
            message = replace(message, author="developer", content=content)
        found.append(message)
    return found


def message_segments(message: Message, end: str | None = None) -> list[Segment]:
    """A message as it stands in a prompt. The first two segments are ``<|start|>`` and the author.

    end: its end token; None: ``<|call|>`` after a call, else ``<|end|>``.
    """
    role, mark, name = message.author.partition(":")
    found: list[Segment] = [(True, START), (False, message.author or "tool")]
    if mark and message.role != "tool":
        found[1:] = [(False, role), (False, mark + name)]
    if message.recipient not in (None, "all"):
        found.append((False, f" to={message.recipient}"))
    if message.channel is not None:
        found += [(True, CHANNEL), (False, message.channel)]
    kind = message.content_type
    if kind is not None and kind.startswith(CONSTRAIN):
        found += [(False, " "), (True, CONSTRAIN), (False, kind.removeprefix(CONSTRAIN))]
    elif kind:
        found.append((False, f" {kind}"))
    found += [(True, MESSAGE), (False, message.content)]
    found.append((True, end or (CALL if message.is_call else END)))
    return [(special, text if special else valid_text(text)) for special, text in found if text]


def encode(parts: Sequence[Segment], tokenizer: Tokenizer) -> list[int]:
    """The ids of segments, each of them encoded by itself."""
    ids: list[int] = []
    for special, text in parts:
        if special:
            ids.append(tokenizer.special_tokens[text])
        else:
            ids += tokenizer.encode(text)
    return ids


_published: Tokenizer | None = None


def published_tokenizer() -> Tokenizer:
    """Of the published models, wherever it is at hand. Raises Error where it is not."""
    global _published
    if _published is None:
        _published = load_tokenizer(None, SimpleNamespace(vocab_size=HARMONY_SIZE))
    return _published


def _leading(messages: Sequence[Message]) -> int:
    """How many messages at the beginning are instructions."""
    for i, message in enumerate(messages):
        if message.role not in ("system", "developer"):
            return i
    return len(messages)


def _system(conversation: Conversation) -> str:
    top = [IDENTITY, f"Knowledge cutoff: {KNOWLEDGE_CUTOFF}"]
    if conversation.today is not None:
        top.append(f"Current date: {conversation.today.isoformat()}")
    sections = ["\n".join(top), f"Reasoning: {conversation.effort}"]
    built_in = sorted(set(conversation.built_in))
    if built_in:
        sections += ["# Tools", *(BUILT_IN[name] for name in built_in)]
    channels = (
        f"# Valid channels: {', '.join(CHANNELS)}. Channel must be included for every message."
    )
    if conversation.tools:
        channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return "\n\n".join([*sections, channels])
