"""Conversations as prompts: harmony for the published models, plain paragraphs for others.

Harmony prompts are rendered by OpenAI's own library (openai-harmony); what the model answers is
parsed by `gptoss.chat.harmony`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from gptoss.chat.harmony import HarmonyParser
from gptoss.chat.messages import ChatMessage, Tool
from gptoss.errors import Error, shown
from gptoss.request import Grammar, json_rule
from gptoss.tokenizer import HARMONY_SIZE, O200K_FILE, Tokenizer

EFFORTS = ("low", "medium", "high")
BUILT_IN_TOOLS = ("browser", "python")


@dataclass(frozen=True)
class ChatOptions:
    """effort: "low", "medium" or "high". built_in: "browser", "python", declared if asked for.

    today: the date that the model is told; None: none.
    """

    effort: str = "medium"
    tools: Sequence[Tool] = ()
    built_in: Sequence[str] = ()
    today: date | None = None

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise Error(
                f"reasoning effort: expected one of {', '.join(EFFORTS)}, found "
                f"{shown(self.effort)}",
                field="reasoning_effort",
            )
        for name in self.built_in:
            if name not in BUILT_IN_TOOLS:
                raise Error(
                    f"built-in tool: expected one of {', '.join(BUILT_IN_TOOLS)}, found "
                    f"{shown(name)}",
                    field="built_in",
                )


class PlainChat:
    """For models that were not trained on conversations: paragraphs that the model continues.

    stop_ids: what ends an answer.
    """

    name = "plain"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.stop_ids = tokenizer.eos_ids

    def render(self, conversation: Any) -> Any:
        from types import SimpleNamespace
        return SimpleNamespace(ids=self.prompt(conversation.messages, ChatOptions(conversation.effort, conversation.tools, conversation.built_in, conversation.today)))

    def grammar(
        self, tools: Sequence[Tool], answer: Grammar | None, must_call: bool = False, *, hold: bool=False
    ) -> Grammar | None:
        """What such a model may write, where its answer must be something: just that."""
        return answer

    def prompt(self, messages: Sequence[ChatMessage], options: ChatOptions) -> list[int]:
        """Raises Error for tools, of which such a model knows nothing."""
        if options.tools or options.built_in:
            raise Error(
                "tools: this model was not taught conversations and cannot call tools",
                field="tools",
            )
        texts = [message.content for message in messages if message.content]
        return self._tokenizer.encode("\n\n".join(texts))


class HarmonyChat:
    """The published models' format.

    stop_ids: ``<|return|>`` and ``<|call|>``; never ``<|end|>``, after which a message follows.
    """

    name = "harmony"

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises Error where openai-harmony or its vocabulary is not at hand."""
        self._encoding = _load_encoding(tokenizer)
        special = tokenizer.special_tokens
        self.stop_ids = frozenset((special["<|return|>"], special["<|call|>"]))
        self._tokenizer = tokenizer

    def parser(self, continues: bool = False) -> HarmonyParser:
        return HarmonyParser(self._tokenizer, continues)

    def render(self, conversation: Any) -> Any:
        from types import SimpleNamespace
        return SimpleNamespace(ids=self.prompt(conversation.messages, ChatOptions(conversation.effort, conversation.tools, conversation.built_in, conversation.today)))

    def grammar(
        self, tools: Sequence[Tool], answer: Grammar | None, must_call: bool = False, *, hold: bool=False
    ) -> Grammar | None:
        """What a model may write so that its answer fits a grammar, and its calls their schemas.

        Thinking stays free; headers are well-formed. None where everything is allowed.

        Args:
            tools: those that may be called.
            answer: of the final channel; None: any text.
            must_call: whether it must call one of the tools instead of answering.

        Raises:
            Error: a schema that must be kept to is invalid, or asks too much.
        """
        if answer is None and not must_call and not any(tool.strict for tool in tools):
            return None
        try:
            source = _harmony_grammar(tools, answer, must_call)
            return Grammar.lark(source, what="response format")
        except Error as error:
            # The answer's grammar was checked when it was made; only the tools' schemas are new.
            strict = any(tool.strict for tool in tools)
            raise Error(str(error), field="tools" if strict else error.field) from None

    def prompt(self, messages: Sequence[ChatMessage], options: ChatOptions) -> list[int]:
        """The tokens up to and including ``<|start|>assistant``.

        System messages and developer messages become the developer's instructions: the system
        message of harmony holds what the program says (effort, date, channels). Thinking before an
        answer is left out, thinking before a call whose answer is still to come is kept. Names of
        special tokens in texts stay text.
        """
        import openai_harmony as oh

        conversation = [oh.Message.from_role_and_content(oh.Role.SYSTEM, _system(options))]
        instructions = [m.content for m in messages if m.role in ("system", "developer")]
        if instructions or options.tools:
            developer = oh.DeveloperContent.new()
            if instructions:
                developer = developer.with_instructions("\n\n".join(instructions))
            if options.tools:
                developer = developer.with_function_tools(
                    [
                        oh.ToolDescription.new(
                            tool.name,
                            tool.description,
                            parameters=dict(tool.parameters) if tool.parameters else None,
                        )
                        for tool in options.tools
                    ]
                )
            conversation.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
        names = {call.id: call.name for message in messages for call in message.calls}
        for message in _without_old_thinking(messages):
            conversation += _harmony_messages(message, names)
        return list(
            self._encoding.render_conversation_for_completion(
                oh.Conversation.from_messages(conversation), oh.Role.ASSISTANT
            )
        )


# What comes before an answer. That its end is written is what sets it apart from the answer.
_BEFORE = """
thinking: <|channel|> "analysis" <|message|> TEXT <|end|> <|start|> "assistant"
preamble: <|channel|> "commentary" <|message|> TEXT <|end|> <|start|> "assistant"
TEXT: /(.|\\n)*/
"""
_MAX_BEFORE = 16  # messages: a model whose answer is constrained must not think for ever


def _harmony_grammar(tools: Sequence[Tool], answer: Grammar | None, must_call: bool) -> str:
    """A Lark grammar of what follows ``<|start|>assistant``."""
    endings = [] if must_call else ["final"]
    rules = [_BEFORE]
    if not must_call:
        body = "TEXT" if answer is None else answer.rule
        kind = ' (" "? <|constrain|> "json")?' if answer is not None else ""
        rules.append(f'final: <|channel|> "final"{kind} <|message|> answer <|return|>')
        rules.append(f"answer: {body}")
    for i, tool in enumerate(tools):
        endings.append(f"call_{i}")
        # Models put the recipient before the channel or after it.
        name, kind = f"to=functions.{tool.name}", '(" "? <|constrain|> "json" | " json" | " code")?'
        rules.append(
            f'call_{i}: (<|channel|> "commentary {name}" | " {name}" <|channel|> "commentary") '
            f"{kind} <|message|> arguments_{i} <|call|>"
        )
        schema = tool.parameters if tool.strict else None
        rules.append(f"arguments_{i}: {json_rule(schema or {'type': 'object'})}")
    before = "thinking | preamble" if tools else "thinking"
    start = f"start: ({before}){{0,{_MAX_BEFORE}}} ({' | '.join(endings)})"
    return "\n".join([start, *rules]) + "\n"


def _without_old_thinking(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Thinking before the last answer is no longer shown."""
    answers = [
        i for i, m in enumerate(messages) if m.role == "assistant" and m.content and not m.calls
    ]
    last = answers[-1] if answers else -1
    return [replace(m, thinking="") if i <= last else m for i, m in enumerate(messages)]


def _system(options: ChatOptions) -> Any:
    import openai_harmony as oh

    content = oh.SystemContent.new().with_reasoning_effort(
        oh.ReasoningEffort(options.effort.capitalize())
    )
    if options.today is not None:
        content = content.with_conversation_start_date(options.today.isoformat())
    if "browser" in options.built_in:
        content = content.with_browser_tool()
    if "python" in options.built_in:
        content = content.with_python_tool()
    return content


def _harmony_messages(message: ChatMessage, names: Mapping[str, str]) -> list[Any]:
    import openai_harmony as oh

    def of(role: Any, text: str) -> Any:
        return oh.Message.from_role_and_content(role, text)

    if message.role == "user":
        return [of(oh.Role.USER, message.content)]
    if message.role == "tool":
        name = message.name or names[str(message.call_id)]
        author = oh.Author.new(oh.Role.TOOL, f"functions.{name}")
        answer = oh.Message.from_author_and_content(author, message.content)
        return [answer.with_channel("commentary").with_recipient("assistant")]
    if message.role != "assistant":
        return []  # in the developer's message
    found = []
    if message.thinking:
        found.append(of(oh.Role.ASSISTANT, message.thinking).with_channel("analysis"))
    if message.content:
        # Before calls it is a preamble, which users see, and not the answer.
        channel = "commentary" if message.calls else "final"
        found.append(of(oh.Role.ASSISTANT, message.content).with_channel(channel))
    for call in message.calls:
        found.append(
            of(oh.Role.ASSISTANT, call.arguments)
            .with_channel("commentary")
            .with_recipient(f"functions.{call.name}")
            .with_content_type("<|constrain|>json")
        )
    return found


def load_chat(tokenizer: Tokenizer) -> HarmonyChat | PlainChat:
    """The format of a model's conversations: harmony with the published vocabulary, else plain."""
    return HarmonyChat(tokenizer) if tokenizer.vocab_size == HARMONY_SIZE else PlainChat(tokenizer)


def _load_encoding(tokenizer: Tokenizer) -> Any:
    try:
        import openai_harmony as oh
    except ImportError:
        raise Error(
            "chat: the package openai-harmony is missing: pip install openai-harmony"
        ) from None
    data = tokenizer.rank_file()
    # The library reads a file of this name from a folder named by the environment, or downloads it.
    before = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, O200K_FILE).write_bytes(data)
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
        try:
            return oh.load_harmony_encoding(oh.HarmonyEncodingName.HARMONY_GPT_OSS)
        except Exception as error:  # the library's own types are not Errors of ours
            raise Error(f"chat: openai-harmony cannot load its vocabulary: {error}") from None
        finally:
            if before is None:
                del os.environ["TIKTOKEN_ENCODINGS_BASE"]
            else:
                os.environ["TIKTOKEN_ENCODINGS_BASE"] = before
