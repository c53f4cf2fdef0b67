"""/v1/chat/completions: answers in a conversation."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from datetime import date
from typing import Any

from gptoss.chat import (
    ANALYSIS,
    ChatOptions,
    HarmonyChat,
    HarmonyParser,
    Message,
    PlainChat,
    Tool,
    parse_messages,
    parse_tools,
)
from gptoss.engine import AsyncEngine, StopMatcher
from gptoss.errors import Error, shown
from gptoss.request import Delta, Timing, TokenLogprob
from gptoss.server.api.fields import (
    Caller,
    answer_grammar,
    field_names,
    flag,
    priority_of,
    refuse_unsupported,
    sampling_params,
    stop_strings,
    wants_usage,
)
from gptoss.server.errors import ApiError

_UNSUPPORTED = ("audio", "functions", "function_call", "prediction")
_FUNCTIONS = "functions."


class ChatRequest:
    """A request that has been checked and submitted; `chunks` gives the answer piece by piece."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(
        self,
        engine: AsyncEngine,
        chat: HarmonyChat | PlainChat,
        body: Mapping[str, Any],
        caller: Caller,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """names: what the API calls fields for which it has other names than chat completions."""
        refuse_unsupported(body, _UNSUPPORTED)
        names = names or {}
        asks, answer = answer_grammar(body, names.get("response_format", "response_format"))
        priority = priority_of(body)
        self.streams = flag(body, "stream")
        self.usage_wanted = wants_usage(body)
        self._chat = chat
        self._logprobs = flag(body, "logprobs")
        harmony = isinstance(chat, HarmonyChat)
        limit = "max_completion_tokens"
        if body.get(limit) is None:
            limit = "max_tokens"
        made_of = {"prompt": "messages", "logprobs": "top_logprobs", "grammar": asks}
        with field_names({**made_of, "max_tokens": limit, **names}):
            stop = stop_strings(body)
            # In harmony stop strings are looked for in the answer, not in thinking or headers.
            self._stop = stop if harmony else ()
            options = sampling_params(
                body,
                max_tokens=body.get(limit),
                logprobs=(body.get("top_logprobs") or 0) if self._logprobs else None,
                stop=() if harmony else stop,
            )
            messages = parse_messages(body.get("messages"))
            tools, may_call, must_call = _chosen(
                parse_tools(body.get("tools")), body.get("tool_choice")
            )
            prompt = chat.prompt(
                messages,
                ChatOptions(
                    effort=body.get("reasoning_effort") or "medium",
                    tools=tools,
                    today=date.today(),
                ),
            )
            self._has_tools = bool(tools)
            self._stream = engine.stream(
                prompt,
                replace(options, grammar=chat.grammar(may_call, answer, must_call)),
                loop=caller.loop,
                priority=priority,
                client=caller.client,
            )
        self.usage: dict[str, Any] = {}
        self._completion = self._thinking = 0

    def timings(self) -> list[Timing]:
        """Of the texts that came to their end."""
        return list(self._stream.timings)

    def fail(self, error: Error) -> None:
        """End it with an error."""
        self._stream.fail(error)

    def cancel(self) -> None:
        """Stop what is still running."""
        self._stream.cancel()

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Choices with something new in them, in the form of a streamed answer."""
        choices: dict[int, _Choice] = {}
        async for delta in self._stream:
            self._completion += len(delta.token_ids)
            choice = choices.get(delta.index)
            if choice is None:
                choice = choices[delta.index] = self._choice(delta.index)
                yield choice.first()
            if choice.ended:
                continue  # after a stop string
            for piece in choice.take(delta):
                yield piece
            self._thinking += choice.thinks and len(delta.token_ids)
            if all(c.ended for c in choices.values()) and len(choices) == self._stream.choices:
                self._stream.cancel()
        prompt = self._stream.prompt_tokens
        self.usage = {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": _cached(self._stream.timings)},
            "completion_tokens_details": {"reasoning_tokens": self._thinking},
        }

    def _choice(self, index: int) -> _Choice:
        parser = self._chat.parser() if isinstance(self._chat, HarmonyChat) else None
        return _Choice(index, parser, self._stop, self._logprobs, self._has_tools)

    @staticmethod
    def join(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The choices of a whole answer, out of the pieces."""
        whole: dict[int, dict[str, Any]] = {}
        for piece in choices:
            message: dict[str, Any] = {"role": "assistant", "content": None}
            mine = whole.setdefault(piece["index"], {"index": piece["index"], "message": message,
                                                     "logprobs": None})  # fmt: skip
            message, delta = mine["message"], piece["delta"]
            for name in ("content", "reasoning_content"):
                if delta.get(name) is not None:
                    message[name] = (message.get(name) or "") + delta[name]
            for call in delta.get("tool_calls", ()):
                calls = message.setdefault("tool_calls", [])
                if call["index"] == len(calls):
                    function = dict(call["function"])
                    calls.append({"id": call["id"], "type": "function", "function": function})
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            if piece["logprobs"]:
                mine["logprobs"] = mine["logprobs"] or {"content": []}
                mine["logprobs"]["content"] += piece["logprobs"]["content"]
            mine["finish_reason"] = piece["finish_reason"]
        for choice in whole.values():
            message = choice["message"]
            message["content"] = message["content"] or (None if "tool_calls" in message else "")
        return [whole[index] for index in sorted(whole)]


class _Choice:
    """One answer while it is written."""

    def __init__(
        self,
        index: int,
        parser: HarmonyParser | None,
        stop: tuple[str, ...],
        logprobs: bool,
        has_tools: bool,
    ) -> None:
        self.index = index
        self.ended = False
        self.thinks = False  # the last token was of thinking
        self._parser = parser
        self._stop = StopMatcher(stop)
        self._logprobs = logprobs
        self._has_tools = has_tools
        self._calls: list[Message] = []
        self._held: list[TokenLogprob] = []  # of tokens whose text is still to come

    def first(self) -> dict[str, Any]:
        """The piece that says who speaks."""
        return self._piece({"role": "assistant", "content": ""})

    def take(self, delta: Delta) -> list[dict[str, Any]]:
        """The pieces that a token adds; the last one has a finish_reason."""
        if self._parser is None:
            logprobs = delta.logprobs if self._logprobs else None
            changes = {"content": delta.text} if delta.text or logprobs else {}
            self.ended = delta.finish_reason is not None
            if not changes and not self.ended:
                return []
            return [self._piece(changes, logprobs, delta.finish_reason)]
        pieces: list[dict[str, Any]] = []
        written = [piece for token in delta.token_ids for piece in self._parser.push(token)]
        if delta.finish_reason is not None:
            written += self._parser.finish()
        written = [piece for piece in written if piece.message.from_model]
        self.thinks = any(piece.message.channel == ANALYSIS for piece in written)
        special = any(map(self._parser.is_special, delta.token_ids))
        if self._logprobs and not special:
            self._held += delta.logprobs or ()
        for piece in written:
            changes = self._changes(piece.message, piece.text)
            if changes:
                pieces.append(self._piece(changes, self._take_held("content" in changes)))
            if self.ended:
                return [*pieces, self._piece({}, finish="stop")]
        if special:
            self._take_held(False)  # of a header
        if delta.finish_reason is not None:
            rest = self._stop.flush()
            if rest:
                pieces.append(self._piece({"content": rest}, self._take_held(True)))
            self.ended = True
            finish = "tool_calls" if self._calls else delta.finish_reason
            pieces.append(self._piece({}, finish=finish))
        return pieces

    def _take_held(self, in_answer: bool) -> tuple[TokenLogprob, ...] | None:
        """What was held back: of all tokens since the last text, if that is the answer's."""
        held, self._held = self._held, []
        return tuple(held) if in_answer else None

    def _changes(self, message: Message, text: str) -> dict[str, Any]:
        # A call where nothing can be called is shown as what it is: text of the model.
        if message.is_call and self._has_tools:
            return self._call(message, text)
        if not text:
            return {}
        if message.channel == ANALYSIS:
            return {"reasoning_content": text}
        text, self.ended = self._stop.push(text)
        return {"content": text} if text else {}

    def _call(self, message: Message, text: str) -> dict[str, Any]:
        begins = not any(call is message for call in self._calls)
        if begins:
            self._calls.append(message)
        elif not text:
            return {}
        number = next(i for i, call in enumerate(self._calls) if call is message)
        call: dict[str, Any] = {"index": number, "function": {"arguments": text}}
        if begins:
            name = (message.recipient or "").removeprefix(_FUNCTIONS)
            call |= {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
            call["function"] = {"name": name, "arguments": text}
        return {"tool_calls": [call]}

    def _piece(
        self,
        changes: dict[str, Any],
        logprobs: tuple[TokenLogprob, ...] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        found = {"content": [_logprob(token) for token in logprobs]} if logprobs else None
        return {
            "index": self.index,
            "delta": changes,
            "logprobs": found,
            "finish_reason": finish,
        }


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return {**_one(token), "top_logprobs": [_one(top) for top in token.top]}


def _one(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}


def _cached(timings: Iterable[Timing]) -> int:
    """Tokens of the prompt that the prefix cache had for the choice that came first."""
    return min((timing.cached_tokens for timing in timings), default=0)


def _chosen(tools: list[Tool], choice: object) -> tuple[list[Tool], list[Tool], bool]:
    """(tools that are declared, those of them that may be called, whether one must be)."""
    if choice is None or choice == "auto":
        return tools, tools, False
    if choice == "none":
        return [], [], False
    if choice == "required":
        may_call = tools
    else:
        may_call, must_call = _named(tools, choice)
        if not must_call:
            return may_call, may_call, False
    if not may_call:
        raise ApiError("tool_choice: expected tools to choose from, found none", field="tools")
    return tools, may_call, True


def _named(tools: list[Tool], choice: object) -> tuple[list[Tool], bool]:
    """(the tools that a choice names, whether one must be called)."""
    if not isinstance(choice, Mapping) or choice.get("type") not in ("function", "allowed_tools"):
        raise ApiError(
            f"tool_choice: expected auto, none, required or a function, found {shown(choice)}",
            field="tool_choice",
        )
    listed: object = [choice]
    must_call = True
    if choice["type"] == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)  # the responses API has no inner object
        listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
        must_call = isinstance(allowed, Mapping) and allowed.get("mode") == "required"
    if not isinstance(listed, list):
        raise ApiError("tool_choice.tools: expected a list", field="tool_choice")
    known = {tool.name: tool for tool in tools}
    found = []
    for each in listed:
        function = each.get("function", each) if isinstance(each, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or name not in known:
            raise ApiError(
                f"tool_choice: expected one of {', '.join(known) or 'no tools'}, found "
                f"{shown(name)}",
                field="tool_choice",
            )
        found.append(known[name])
    return found, must_call
