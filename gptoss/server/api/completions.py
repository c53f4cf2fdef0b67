"""/v1/completions: texts that go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from gptoss.engine import Account, AsyncEngine, AsyncStream, Prompt
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
from gptoss.server.api.merge import Merged
from gptoss.server.errors import ApiError

_UNSUPPORTED = ("suffix", "best_of")
_MAX_PROMPTS = 64


class CompletionRequest:
    """A request that has been checked and submitted; `chunks` gives the answer piece by piece."""

    object = "text_completion"
    chunk_object = "text_completion"
    prefix = "cmpl"

    def __init__(self, engine: AsyncEngine, body: Mapping[str, Any], caller: Caller) -> None:
        refuse_unsupported(body, _UNSUPPORTED)
        self.streams = flag(body, "stream")
        self.usage_wanted = wants_usage(body)
        logprobs = body.get("logprobs")
        asks, answer = answer_grammar(body)
        params = sampling_params(
            body,
            max_tokens=16 if body.get("max_tokens") is None else body["max_tokens"],
            logprobs=logprobs,
            stop=stop_strings(body),
            grammar=answer,
        )
        priority = priority_of(body)
        prompts = _prompts(body.get("prompt"))
        if flag(body, "echo"):
            raise ApiError("echo: this server cannot do that", field="echo", code="unsupported")
        self._params = params
        self.usage: dict[str, Any] = {}
        self._streams: list[AsyncStream] = []
        self._merged = Merged(self._streams)
        account = Account()  # however many prompts, one request
        try:
            with field_names({"grammar": asks}):
                for prompt in prompts:
                    self._streams.append(
                        engine.stream(
                            prompt,
                            params,
                            loop=caller.loop,
                            priority=priority,
                            client=caller.client,
                            account=account,
                        )
                    )
        except Error:
            self.cancel()
            raise

    def timings(self) -> list[Timing]:
        """Of the texts that came to their end."""
        return [timing for stream in self._streams for timing in stream.timings]

    def fail(self, error: Error) -> None:
        """End it with an error."""
        for stream in self._streams:
            stream.fail(error)

    def cancel(self) -> None:
        """Stop what is still running."""
        self._merged.cancel()
        for stream in self._streams:
            stream.cancel()

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Choices with new text, of all prompts as it comes, in the form of a streamed answer."""
        completion = 0
        offsets: dict[int, int] = {}
        async for place, delta in self._merged:
            completion += len(delta.token_ids)
            if delta.text or delta.finish_reason or delta.logprobs:
                yield self._choice(delta, place * self._params.n + delta.index, offsets)
        prompt = sum(stream.prompt_tokens for stream in self._streams)
        self.usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _choice(self, delta: Delta, index: int, offsets: dict[int, int]) -> dict[str, Any]:
        at = offsets.get(index, 0)
        offsets[index] = at + len(delta.text)
        return {
            "index": index,
            "text": delta.text,
            "logprobs": _logprobs(delta.logprobs, at) if delta.logprobs else None,
            "finish_reason": delta.finish_reason,
        }

    @staticmethod
    def join(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The choices of a whole answer, out of the pieces."""
        whole: dict[int, dict[str, Any]] = {}
        for piece in choices:
            mine = whole.setdefault(piece["index"], {**piece, "text": "", "logprobs": None})
            mine["text"] += piece["text"]
            mine["finish_reason"] = piece["finish_reason"]
            if piece["logprobs"]:
                if mine["logprobs"] is None:
                    mine["logprobs"] = {name: [] for name in piece["logprobs"]}
                for name, values in piece["logprobs"].items():
                    mine["logprobs"][name] += values
        return [whole[index] for index in sorted(whole)]


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


def _logprobs(found: tuple[TokenLogprob, ...], offset: int) -> dict[str, list[Any]]:
    return {
        "tokens": [token.text for token in found],
        "token_logprobs": [token.logprob for token in found],
        "top_logprobs": [{top.text: top.logprob for top in token.top} for token in found],
        "text_offset": [offset for _ in found],
    }
