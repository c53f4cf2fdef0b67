"""/v1/chat/completions: answers in a conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from gptoss.chat import Conversation, HarmonyChat, Message, PlainChat, parse_messages, parse_tools
from gptoss.engine import AsyncEngine
from gptoss.server.api.answer import (
    Answer,
    Begin,
    Event,
    Finish,
    Finished,
    Kind,
    Part,
    Piece,
    counts,
    head,
)
from gptoss.server.api.fields import Caller
from gptoss.server.api.logprobs import logprob_object
from gptoss.server.api.options import Options, read_options
from gptoss.server.api.token_logprobs import check_size, prompt_logprobs
from gptoss.server.api.tool_choice import ToolChoice, choose
from gptoss.server.errors import ApiError

# Between messages of a kind, which this API has one text for.
_BETWEEN = "\n\n"


@dataclass(frozen=True)
class _Shown:
    """What of an answer is printed, and how.

    thinking: whether it is. token_ids: whether those of prompt and answer are. usage: whether a
    last chunk tells the numbers of tokens; each_usage: whether every chunk does.
    """

    thinking: bool = True
    token_ids: bool = False
    usage: bool = False
    each_usage: bool = False
    echoed: str = ""  # what the answer begins with, before the model's own words


class ChatRequest:
    """A request that has been checked and submitted; a `Surface`."""

    named = False

    def __init__(
        self,
        engine: AsyncEngine,
        chat: HarmonyChat | PlainChat,
        body: Mapping[str, Any],
        caller: Caller,
        model: str,
    ) -> None:
        """model: what clients call it. Raises Error, ApiError."""
        options = read_options(body, "chat")
        self.ignored: Sequence[str] = options.ignored
        self.form = options.form_name()
        self.streams: bool = options["stream"]
        self._model, self._engine = model, engine
        self._prompt_logprobs: int | None = options["prompt_logprobs"]
        if self._prompt_logprobs is not None and self.streams:
            raise ApiError("prompt_logprobs: expected no stream with it", field="prompt_logprobs")
        with options.named(prompt="messages"):
            params = options.sampling()
            conversation, chosen = read_conversation(options)
            self._shown = _shown(options, conversation.messages)
            self.answer = Answer.chat(
                engine,
                chat,
                conversation,
                params,
                caller=caller,
                priority=caller.priority(options["priority"]),
                salt=caller.salt(options["cache_salt"]),
                answer=options.form()[1],
                may_call=chosen.may_call,
                must_call=chosen.must_call,
                hold=not options["allow_undeclared_calls"],
                one_call=not options["parallel_tool_calls"],
            )
        if self._prompt_logprobs is not None:
            check_size(self.answer, "prompt_logprobs", self._prompt_logprobs)

    async def whole(self) -> Event:
        """The answer, when it is done. Raises Error."""
        choices: dict[int, _Message] = {}
        async for piece in self.answer:
            if isinstance(piece, Begin):
                choices[piece.choice] = _Message(self._shown)
            else:
                choices[piece.choice].add(piece)
        whole = {
            **head("chatcmpl", "chat.completion", self._model),
            "choices": [{"index": i, **choices[i].choice()} for i in sorted(choices)],
            "usage": counts(self.answer.usage),
        }
        if self._prompt_logprobs is not None:
            score = self.answer.streams[0].prompt
            assert score is not None
            whole["prompt_logprobs"] = prompt_logprobs(
                self._engine.engine, score, self._prompt_logprobs
            )
        if self._shown.token_ids:
            whole["prompt_token_ids"] = list(self.answer.prompt_ids[0])
        return whole

    async def events(self) -> AsyncIterator[Event]:
        """The chunks of a stream."""
        shown = self._shown
        start = head("chatcmpl", "chat.completion.chunk", self._model)
        choices: dict[int, _Deltas] = {}
        async for piece in self.answer:
            first = not choices
            if isinstance(piece, Begin):
                choices[piece.choice] = _Deltas(shown)
            for delta in choices[piece.choice].of(piece):
                chunk = {**start, "choices": [{"index": piece.choice, **delta}]}
                if first and shown.token_ids:
                    chunk["prompt_token_ids"] = list(self.answer.prompt_ids[0])
                if shown.usage:
                    chunk["usage"] = counts(self.answer.usage) if shown.each_usage else None
                first = False
                yield chunk
        if shown.usage:
            yield {**start, "choices": [], "usage": counts(self.answer.usage)}

    def failed(self, error: dict[str, Any]) -> list[Event]:
        """What ends a stream that an error ended."""
        return [{"error": error}]


class _Spaced:
    """The texts of an answer's messages as one for each kind, a blank line between messages."""

    def __init__(self, shown: _Shown) -> None:
        # The message that each kind's last text was of; the first one goes on with what is echoed.
        self._last: dict[Kind, int] = {"text": 0} if shown.echoed else {}

    def of(self, part: Part) -> str:
        if not part.text or part.kind == "call":
            return part.text
        before = self._last.get(part.kind, part.number)
        self._last[part.kind] = part.number
        return part.text if before == part.number else _BETWEEN + part.text


class _Message:
    """One answer, collected."""

    def __init__(self, shown: _Shown) -> None:
        self._shown, self._spaced = shown, _Spaced(shown)
        self._texts: dict[Kind, str] = {"text": shown.echoed}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[dict[str, Any]] = []
        self._ids: list[int] = []
        self._finish: Finish | None = None

    def add(self, piece: Part | Finished) -> None:
        self._ids += piece.token_ids
        if isinstance(piece, Finished):
            self._finish = piece.reason
        elif piece.kind == "call":
            call = self._calls.setdefault(piece.number, _call(piece, ""))
            call["function"]["arguments"] += piece.text
        else:
            self._texts[piece.kind] = self._texts.get(piece.kind, "") + self._spaced.of(piece)
            if piece.kind == "text":
                self._logprobs += map(logprob_object, piece.logprobs)

    def choice(self) -> dict[str, Any]:
        content = self._texts["text"]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if self._calls else ""),
            "refusal": None,
            "annotations": [],
        }
        thinking = self._texts.get("thinking")
        if thinking and self._shown.thinking:
            message |= _thinking(thinking)
        if self._calls:
            message["tool_calls"] = list(self._calls.values())
        found = {
            "message": message,
            "logprobs": _all(self._logprobs),
            "finish_reason": self._finish,
        }
        return {**found, "token_ids": self._ids} if self._shown.token_ids else found


class _Deltas:
    """One answer, as it comes."""

    def __init__(self, shown: _Shown) -> None:
        self._shown, self._spaced = shown, _Spaced(shown)
        self._calls: dict[int, int] = {}  # of each message that is one: which of the calls
        self._ids: list[int] = []  # that were not printed yet

    def of(self, piece: Piece) -> list[dict[str, Any]]:
        """What a piece adds, as choices of a chunk without their index."""
        if isinstance(piece, Begin):
            first = self._choice({"role": "assistant", "content": ""})
            echoed = self._shown.echoed
            return [first, self._choice({"content": echoed})] if echoed else [first]
        self._ids += piece.token_ids
        if isinstance(piece, Finished):
            return [self._choice({}, finish=piece.reason)]
        delta = self._delta(piece)
        if not delta:
            return []
        logprobs = list(map(logprob_object, piece.logprobs)) if piece.kind == "text" else []
        return [self._choice(delta, logprobs)]

    def _delta(self, part: Part) -> dict[str, Any]:
        text = self._spaced.of(part)
        if part.kind == "call":
            if part.begins:
                number = self._calls[part.number] = len(self._calls)
                return {"tool_calls": [{"index": number, **_call(part, text)}]}
            function = {"arguments": text}
            calls = [{"index": self._calls[part.number], "function": function}]
            return {"tool_calls": calls} if text else {}
        if part.kind == "thinking":
            return _thinking(text) if text and self._shown.thinking else {}
        return {"content": text} if text or part.logprobs else {}

    def _choice(
        self,
        delta: dict[str, Any],
        logprobs: Sequence[dict[str, Any]] = (),
        finish: Finish | None = None,
    ) -> dict[str, Any]:
        found: dict[str, Any] = {
            "delta": delta,
            "logprobs": _all(logprobs),
            "finish_reason": finish,
        }
        if self._shown.token_ids:
            found["token_ids"], self._ids = self._ids, []
        return found


def _thinking(text: str) -> dict[str, str]:
    """Under the name that vLLM and Ollama have for it, and that of llama.cpp and DeepSeek."""
    return {"reasoning": text, "reasoning_content": text}


def _call(part: Part, arguments: str) -> dict[str, Any]:
    function = {"name": part.name, "arguments": arguments}
    return {"id": part.call_id, "type": "function", "function": function}


def _all(logprobs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return {"content": list(logprobs), "refusal": None} if logprobs else None


def read_conversation(options: Options) -> tuple[Conversation, ToolChoice]:
    """The conversation of a request, and which of its tools may be called. Raises Error."""
    tools = parse_tools(options["tools"])
    messages = tuple(parse_messages(options["messages"], [tool.name for tool in tools]))
    chosen = choose(tools, options["tool_choice"])
    conversation = Conversation(
        messages,
        chosen.declared,
        options.effort(),
        date.today(),
        continues=_continues(options),
    )
    return conversation, chosen


def _shown(options: Options, messages: Sequence[Message]) -> _Shown:
    last = messages[-1] if messages else None
    echoes = options["echo"] and last is not None and last.is_answer
    return _Shown(
        thinking=options["include_reasoning"],
        token_ids=options["return_token_ids"],
        usage=options["stream_options.include_usage"],
        each_usage=options["stream_options.continuous_usage_stats"],
        echoed=last.content if last is not None and echoes else "",
    )


def _continues(options: Options) -> bool:
    """Whether the last message is to be gone on with, as vLLM's clients ask for it."""
    continues: bool = options["continue_final_message"]
    adds = options["add_generation_prompt"]
    if adds is not None and continues == adds:
        wanted = "false with" if continues else "true without"
        raise ApiError(
            f"add_generation_prompt: expected {wanted} continue_final_message",
            field="add_generation_prompt",
        )
    return continues
