"""An answer while it is written: what runs in the engine, read as pieces.

Surfaces print pieces, each in its own form:

    answer = Answer.chat(engine, chat, conversation, params, caller=caller)
    async for piece in answer:
        …  # Begin, Part or Finished, each with the number of its choice
    answer.usage

A surface itself is a `Surface`, which is what the routes know of it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Protocol

from gptoss import __version__
from gptoss.chat import Conversation, HarmonyChat, HarmonyParser, Message, PlainChat, Tool
from gptoss.engine import Account, AsyncEngine, AsyncStream, Prompt
from gptoss.errors import Error
from gptoss.request import Delta, Grammar, SamplingParams, Timing
from gptoss.server.api.choice import Choice
from gptoss.server.api.fields import Caller
from gptoss.server.api.logprobs import bounded
from gptoss.server.api.merge import Merged
from gptoss.server.api.pieces import Begin as Begin
from gptoss.server.api.pieces import Finish as Finish
from gptoss.server.api.pieces import Finished as Finished
from gptoss.server.api.pieces import Kind as Kind
from gptoss.server.api.pieces import Part as Part
from gptoss.server.api.pieces import Piece as Piece
from gptoss.server.api.pieces import Usage as Usage

Event = dict[str, Any]


class Surface(Protocol):
    """A request of one API, checked and submitted; what it answers is read once, either way.

    Attributes:
        answer: what runs for it.
        streams: whether the client wants it as it is written.
        ignored: keys of the request that mean nothing here, told to the client in a header.
        form: the option that said, or would have said, what the answer must be.
        named: whether its events are sent with their "type" as name, and no "[DONE]" ends them.
    """

    answer: Answer
    streams: bool
    ignored: Sequence[str]
    form: str
    named: bool

    async def whole(self) -> Event:
        """The answer, when it is done. Raises Error."""
        ...

    def events(self) -> AsyncIterator[Event]:
        """The objects of a stream, in order."""
        ...

    def failed(self, error: dict[str, Any]) -> list[Event]:
        """What ends a stream that an error ended. error: {"message", "type", "param", "code"}."""
        ...


class Answer:
    """The answers to one request, of one prompt or several.

    To be iterated once, by one task: pieces of all choices as they come. Choice c of prompt p of n
    choices each has the number p·n + c. A stop string that was met in all choices of a prompt ends
    its work.

    Attributes:
        prompt_ids: the tokens of each prompt, where they are known here: of a conversation.
        streams: what runs in the engine, one for each prompt.
        told: how many log-probabilities of tokens that are drawn there will be at most.
        prompt_parts: how many of prompts there are.
    """

    def __init__(
        self,
        streams: Sequence[AsyncStream],
        *,
        parser: Callable[[], HarmonyParser] | None = None,
        stop: tuple[str, ...] = (),
        includes_stop: bool = False,
        min_tokens: int = 0,
        can_call: bool = False,
        one_call: bool = False,
        prompt_ids: Sequence[Sequence[int]] = (),
        told: int = 0,
        each: int = 1,
    ) -> None:
        """parser, stop, includes_stop, min_tokens, can_call, one_call: as of `Choice`."""
        self.streams = streams
        self.prompt_ids = prompt_ids
        self.told = told
        self.prompt_parts = 0
        self._each = each
        self._parser, self._stop = parser, stop
        self._includes_stop, self._min_tokens = includes_stop, min_tokens
        self._can_call, self._one_call = can_call, one_call
        self._merged: Merged[Delta] = Merged(streams)
        self._choices: dict[tuple[int, int], Choice] = {}  # by stream and number in it
        self._completion = 0

    @classmethod
    def chat(
        cls,
        engine: AsyncEngine,
        chat: HarmonyChat | PlainChat,
        conversation: Conversation,
        params: SamplingParams,
        *,
        caller: Caller,
        priority: int = 0,
        salt: str = "",
        answer: Grammar | None = None,
        may_call: Sequence[Tool] | None = None,
        must_call: bool = False,
        hold: bool = True,
        one_call: bool = False,
    ) -> Answer:
        """The answer to a conversation.

        Args:
            chat: how the model takes conversations.
            params: without a grammar; stop strings are looked for in text for the user alone.
            answer: what that text must be; None: anything.
            may_call: of the conversation's tools those that may be called; None: all of them.
            must_call: whether one of them must be.
            hold: whether calls of tools that are not declared are made impossible.
            one_call: whether a choice ends with its first call.

        Raises:
            Error: conversation or parameters do not suit the model.
        """
        engine.engine.check_text("prompt", _letters(conversation))
        rendered = chat.render(conversation)
        continued = conversation.messages[-1] if conversation.continues else None
        if continued is not None:
            _check_continued(continued, answer, must_call)
        tools = conversation.tools if may_call is None else may_call
        grammar = chat.grammar(
            tools, answer, must_call, hold=hold, continues=conversation.continues
        )
        if grammar is not None and grammar != answer:
            grammar = replace(grammar, parts=_parts(tools, answer))
        harmony = isinstance(chat, HarmonyChat)
        stop = params.stop_strings if harmony else ()
        if harmony:
            params = replace(params, stop=())
        params, told = bounded(params, 1, engine.engine)
        stream = engine.stream(
            rendered.ids,
            replace(params, grammar=grammar),
            loop=caller.loop,
            priority=priority,
            client=caller.client,
            salt=salt,
        )

        def parser() -> HarmonyParser:
            assert isinstance(chat, HarmonyChat)
            return chat.parser(continued)

        return cls(
            [stream],
            parser=parser if harmony else None,
            stop=stop,
            includes_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            can_call=bool(conversation.tools),
            one_call=one_call,
            prompt_ids=[rendered.ids],
            told=told,
            each=1 + (params.logprobs or 0),
        )

    @classmethod
    def texts(
        cls,
        engine: AsyncEngine,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        caller: Caller,
        priority: int = 0,
        salt: str = "",
    ) -> Answer:
        """How texts go on: all that comes is text. However many, they count as one request.

        Raises Error, with none of them running, where one does not suit the model.
        """
        account = Account()
        params, told = bounded(params, len(prompts), engine.engine)
        streams: list[AsyncStream] = []
        try:
            for prompt in prompts:
                streams.append(
                    engine.stream(
                        prompt,
                        params,
                        loop=caller.loop,
                        priority=priority,
                        client=caller.client,
                        account=account,
                        salt=salt,
                    )
                )
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        answer = cls(streams, told=told, each=1 + (params.logprobs or 0))
        if params.prompt_logprobs is not None:
            tokens = sum(stream.prompt_tokens for stream in streams)
            answer.prompt_parts = params.n * tokens * (params.prompt_logprobs + 1)
        return answer

    @property
    def usage(self) -> Usage:
        """So far; tokens of the prompt that were cached are known when a choice has ended."""
        return Usage(
            prompt=sum(stream.prompt_tokens for stream in self.streams),
            # Of each prompt those that its choice which came first did not have to compute.
            cached=sum(
                min((timing.cached_tokens for timing in stream.timings), default=0)
                for stream in self.streams
            ),
            completion=self._completion,
            thinking=sum(choice.thinking for choice in self._choices.values()),
        )

    @property
    def parts(self) -> int:
        """Tokens so far, with each of their log-probabilities, those of prompts that are told of
        included.
        """
        return self._completion * self._each + self.prompt_parts

    def timings(self) -> list[Timing]:
        """Of the texts that came to their end."""
        return [timing for stream in self.streams for timing in stream.timings]

    def cancelled(self) -> list[tuple[int, int]]:
        """Of each text that was: tokens of the prompt that were read, tokens that were written."""
        return [done for stream in self.streams for done in stream.cancelled]

    def fail(self, error: Error) -> None:
        """End it with an error; called on the loop's thread."""
        for stream in self.streams:
            stream.fail(error)

    def cancel(self) -> None:
        """Stop what is still running; called on the loop's thread."""
        self._merged.cancel()
        for stream in self.streams:
            stream.cancel()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async for place, delta in self._merged:
            choice = self._choices.get((place, delta.index))
            if choice is None:
                choice = self._begin(place, delta.index)
                yield Begin(choice.index)
            if choice.ended:
                continue  # after a stop string
            self._completion += len(delta.token_ids)
            for piece in choice.take(delta):
                yield piece
            if choice.ended:
                self._stop_if_done(place)

    def _begin(self, place: int, index: int) -> Choice:
        """place: of its stream."""
        before = sum(stream.choices for stream in self.streams[:place])
        choice = self._choices[place, index] = Choice(
            before + index,
            None if self._parser is None else self._parser(),
            self._stop,
            includes_stop=self._includes_stop,
            min_tokens=self._min_tokens,
            can_call=self._can_call,
            one_call=self._one_call,
        )
        return choice

    def _stop_if_done(self, place: int) -> None:
        """Where a stop string met in a text is more than the engine knows of."""
        stream = self.streams[place]
        known = [self._choices.get((place, index)) for index in range(stream.choices)]
        if all(choice is not None and choice.ended for choice in known):
            stream.end()


def _letters(conversation: Conversation) -> int:
    return sum(len(message.content) for message in conversation.messages)


def _check_continued(message: Message, answer: Grammar | None, must_call: bool) -> None:
    """Raises Error where what is asked for cannot follow in a message that goes on."""
    if must_call:
        raise Error(
            "tool_choice: expected auto or none with continue_final_message", field="tool_choice"
        )
    if answer is not None and not message.is_answer:
        raise Error("expected none where the message that goes on is thinking", field="grammar")


def _parts(tools: Iterable[Tool], answer: Grammar | None) -> tuple[Grammar, ...]:
    """What is enforced behind thinking and headers."""
    schemas = [
        replace(Grammar.json(tool.parameters), what=f"tools: {tool.name}", field="tools")
        for tool in tools
        if tool.strict and tool.parameters is not None
    ]
    return tuple(schemas) if answer is None else (answer, *schemas)


def counts(usage: Usage) -> dict[str, Any]:
    """Numbers of tokens, as chat completions and completions have them."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.thinking},
    }


def head(prefix: str, kind: str, model: str) -> Event:
    """What every object of an answer begins with. prefix: of its id. kind: its "object"."""
    return {
        "id": f"{prefix}-{secrets.token_hex(16)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint(model),
    }


def fingerprint(model: str) -> str:
    """Changes when answers to the same request with the same seed may."""
    return f"fp_{blake2b(f'{__version__} {model}'.encode(), digest_size=5).hexdigest()}"
