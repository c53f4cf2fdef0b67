"""/v1/completions: texts that go on, and how likely texts are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from gptoss.engine import AsyncEngine, AsyncStream, Prompt
from gptoss.errors import shown
from gptoss.request import SamplingParams
from gptoss.server.api.answer import Answer, Begin, Event, Finished, Piece, counts, head
from gptoss.server.api.fields import Caller
from gptoss.server.api.options import Options, read_options
from gptoss.server.api.token_logprobs import TokenLogprobs, check_size, prompt_logprobs
from gptoss.server.errors import ApiError

_MAX_PROMPTS = 64
_INLINE = 1 << 12  # log-probabilities of prompts that are put together on the loop's thread


class CompletionRequest:
    """A request that has been checked and submitted; a `Surface`."""

    named = False

    def __init__(
        self, engine: AsyncEngine, body: Mapping[str, Any], caller: Caller, model: str
    ) -> None:
        """model: what clients call it. Raises Error, ApiError."""
        options = read_options(body, "completions")
        self.ignored: Sequence[str] = options.ignored
        self.form = options.form_name()
        self.streams: bool = options["stream"]
        self._options, self._model, self._engine = options, model, engine
        if options["best_of"] not in (None, options["n"]):
            raise ApiError(
                f"best_of: expected as many as n ({options['n']}), found {options['best_of']}",
                field="best_of",
                code="unsupported_parameter",
            )
        prompts = _prompts(options["prompt"])
        with options.named(prompt_logprobs=_asks_for_scores(options)):
            self._params = _params(options)
            self.answer = Answer.texts(
                engine,
                prompts,
                self._params,
                caller=caller,
                priority=caller.priority(options["priority"]),
                salt=caller.salt(options["cache_salt"]),
            )
        if self._params.prompt_logprobs is not None:
            check_size(
                self.answer,
                _asks_for_scores(options),
                self._params.prompt_logprobs,
                times=self._params.n,
            )

    async def whole(self) -> Event:
        """The answer, when it is done. Raises Error."""
        choices: dict[int, _Choice] = {}
        parts: dict[int, list[dict[str, Any]]] = {}
        async for piece in self.answer:
            found = await self._of(self._choice(choices, piece), piece)
            parts.setdefault(piece.choice, []).extend(found)
        for index, choice in choices.items():
            parts[index] += await asyncio.to_thread(choice.rest)
        return {
            **head("cmpl", "text_completion", self._model),
            "choices": [_joined(parts[index]) for index in sorted(parts)],
            "usage": counts(self.answer.usage),
        }

    async def events(self) -> AsyncIterator[Event]:
        """The chunks of a stream."""
        options = self._options
        start = head("cmpl", "text_completion", self._model)
        usage, each = (options[f"stream_options.{name}"]
                       for name in ("include_usage", "continuous_usage_stats"))  # fmt: skip
        choices: dict[int, _Choice] = {}

        def chunk(choice: dict[str, Any]) -> Event:
            told = {"usage": counts(self.answer.usage) if each else None} if usage else {}
            return {**start, "choices": [choice], **told}

        async for piece in self.answer:
            for choice in await self._of(self._choice(choices, piece), piece):
                yield chunk(choice)
        for late in choices.values():
            for choice in await asyncio.to_thread(late.rest):
                yield chunk(choice)
        if usage:
            yield {**start, "choices": [], "usage": counts(self.answer.usage)}

    async def _of(self, choice: _Choice, piece: Piece) -> list[dict[str, Any]]:
        """What a piece adds to a choice. Where it may be all that is told of a prompt, it is put
        together on another thread: that takes up to a second.
        """
        if self.answer.prompt_parts <= _INLINE or not choice.tells_of_prompt:
            return choice.of(piece)
        return await asyncio.to_thread(choice.of, piece)

    def failed(self, error: dict[str, Any]) -> list[Event]:
        """What ends a stream that an error ended."""
        return [{"error": error}]

    def _choice(self, choices: dict[int, _Choice], piece: Piece) -> _Choice:
        if piece.choice not in choices:
            stream = self.answer.streams[piece.choice // self._params.n]
            choices[piece.choice] = _Choice(
                piece.choice, self._options, self._params, stream, self._engine
            )
        return choices[piece.choice]


class _Choice:
    """One text, as it comes."""

    def __init__(
        self,
        index: int,
        options: Options,
        params: SamplingParams,
        stream: AsyncStream,
        engine: AsyncEngine,
    ) -> None:
        self._index, self._options, self._params = index, options, params
        self._stream, self._engine = stream, engine
        self._logprobs: TokenLogprobs | None = None
        self._held: list[Piece] = []  # until the prompt's scores are there
        self._ids: list[int] = []  # that were not printed yet
        self._begun = False

    @property
    def tells_of_prompt(self) -> bool:
        """Whether what comes next may tell of the prompt."""
        return not self._begun

    def of(self, piece: Piece) -> list[dict[str, Any]]:
        """What a piece adds, as choices of a chunk."""
        self._held.append(piece)
        if self._params.prompt_logprobs is not None and self._stream.prompt is None:
            return []  # another choice of the prompt computes them
        return self.rest()

    def rest(self) -> list[dict[str, Any]]:
        """What waited for the prompt's scores, which may come after the choice's own last piece."""
        held, self._held = self._held, []
        return [choice for each in held for choice in self._printed(each)]

    def _printed(self, piece: Piece) -> list[dict[str, Any]]:
        if isinstance(piece, Begin):
            return self._begin()
        if isinstance(piece, Finished):
            return []  # said by the part that ends
        self._ids += piece.token_ids
        logprobs = None
        if self._logprobs is not None and piece.logprobs:
            logprobs = self._logprobs.of(piece.logprobs)
        finish = ("stop" if piece.whole else "length") if piece.ends else None
        if not (piece.text or logprobs or finish):
            return []
        return [self._choice(piece.text, logprobs, finish)]

    def _begin(self) -> list[dict[str, Any]]:
        self._begun = True
        options, stream = self._options, self._stream
        if options["logprobs"] is not None:
            self._logprobs = TokenLogprobs(
                self._engine.engine, options["return_tokens_as_token_ids"]
            )
        found = self._choice("")
        if options["echo"]:
            found["text"] = self._engine.engine.tokenizer.decode(stream.prompt_ids)
            if self._logprobs is not None:
                assert stream.prompt is not None
                found["logprobs"] = self._logprobs.of_prompt(
                    stream.prompt_ids, stream.prompt, options["logprobs"]
                )
        if options["prompt_logprobs"] is not None:
            assert stream.prompt is not None
            found["prompt_logprobs"] = prompt_logprobs(
                self._engine.engine, stream.prompt, options["prompt_logprobs"]
            )
        if options["return_token_ids"]:
            found["prompt_token_ids"] = list(stream.prompt_ids)
        return [found] if len(found) > len(_KEYS) or found["text"] else []

    def _choice(
        self, text: str, logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        values = (self._index, text, logprobs, finish)
        found: dict[str, Any] = dict(zip(_KEYS, values, strict=True))
        if self._options["return_token_ids"]:
            found["token_ids"], self._ids = self._ids, []
        return found


_KEYS = ("index", "text", "logprobs", "finish_reason")


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """A choice out of what its pieces added."""
    whole = {name: value for part in reversed(parts) for name, value in part.items()}
    whole["text"] = "".join(part["text"] for part in parts)
    whole["finish_reason"] = parts[-1]["finish_reason"]
    found = [part["logprobs"] for part in parts if part["logprobs"]]
    whole["logprobs"] = None
    if found:
        whole["logprobs"] = {
            name: [value for each in found for value in each[name]] for name in found[0]
        }
    if "token_ids" in whole:
        whole["token_ids"] = [token for part in parts for token in part["token_ids"]]
    return whole


def _params(options: Options) -> SamplingParams:
    """Raises Error, ApiError."""
    scores = options["prompt_logprobs"]
    if options["echo"]:
        scores = max((n for n in (scores, options["logprobs"]) if n is not None), default=None)
    if scores is None and options.given.get("max_tokens") == 0 and options["echo"]:
        scores = 0  # the prompt is read, as it is asked for, and nothing more
    if options["prompt_logprobs"] is not None and options["stream"]:
        raise ApiError(
            "prompt_logprobs: expected no stream with it; echo and logprobs may be streamed",
            field="prompt_logprobs",
        )
    return options.sampling(grammar=options.form()[1], prompt_logprobs=scores)


def _asks_for_scores(options: Options) -> str:
    """Which option the number of a prompt's log-probabilities is of."""
    mine, echoed = options["prompt_logprobs"], options["logprobs"] if options["echo"] else None
    larger = mine is None or (echoed is not None and echoed > mine)
    return "logprobs" if larger else "prompt_logprobs"


def _prompts(raw: object) -> list[Prompt]:
    """A text, ids, or several of either."""
    if isinstance(raw, str):
        return [raw]
    if isinstance(raw, list) and raw:
        if all(isinstance(item, int) for item in raw):
            return [raw]
        if len(raw) > _MAX_PROMPTS:
            raise ApiError(f"prompt: expected at most {_MAX_PROMPTS}, found {len(raw)}",
                           field="prompt")  # fmt: skip
        if all(isinstance(item, (str, list)) and item != [] for item in raw):
            return list(raw)
    raise ApiError(
        f"prompt: expected a string, token ids, or a list of these, found {shown(raw)}",
        field="prompt",
    )
