"""/v1/completions: texts that go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from gptoss.engine import AsyncEngine, Prompt
from gptoss.errors import shown
from gptoss.request import TokenLogprob
from gptoss.server.api.answer import Answer, Event, Part, counts, head
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

_UNSUPPORTED = ("suffix", "best_of")
_MAX_PROMPTS = 64


class CompletionRequest:
    """A request that has been checked and submitted; a `Surface`."""

    named = False

    def __init__(
        self, engine: AsyncEngine, body: Mapping[str, Any], caller: Caller, model: str
    ) -> None:
        """model: what clients call it. Raises Error, ApiError."""
        refuse_unsupported(body, _UNSUPPORTED)
        self.ignored: Sequence[str] = ()
        self.streams = flag(body, "stream")
        self._usage_wanted = wants_usage(body)
        self._model = model
        asks, answer = answer_grammar(body)
        params = sampling_params(
            body,
            max_tokens=16 if body.get("max_tokens") is None else body["max_tokens"],
            logprobs=body.get("logprobs"),
            stop=stop_strings(body),
            grammar=answer,
        )
        priority = priority_of(body)
        prompts = _prompts(body.get("prompt"))
        if flag(body, "echo"):
            raise ApiError("echo: this server cannot do that", field="echo", code="unsupported")
        with field_names({"grammar": asks}):
            self.answer = Answer.texts(engine, prompts, params, caller=caller, priority=priority)

    async def whole(self) -> Event:
        """The answer, when it is done. Raises Error."""
        choices: dict[int, dict[str, Any]] = {}
        offsets: dict[int, int] = {}
        async for piece in self.answer:
            if not isinstance(piece, Part):
                continue
            new = _choice(piece, offsets)
            mine = choices.setdefault(piece.choice, {**new, "text": "", "logprobs": None})
            mine["text"] += new["text"]
            mine["finish_reason"] = new["finish_reason"]
            if new["logprobs"]:
                if mine["logprobs"] is None:
                    mine["logprobs"] = {name: [] for name in new["logprobs"]}
                for name, values in new["logprobs"].items():
                    mine["logprobs"][name] += values
        return {
            **head("cmpl", "text_completion", self._model),
            "choices": [choices[index] for index in sorted(choices)],
            "usage": counts(self.answer.usage),
        }

    async def events(self) -> AsyncIterator[Event]:
        """The chunks of a stream."""
        start = head("cmpl", "text_completion", self._model)
        empty = {"usage": None} if self._usage_wanted else {}
        offsets: dict[int, int] = {}
        async for piece in self.answer:
            if isinstance(piece, Part):
                yield {**start, "choices": [_choice(piece, offsets)], **empty}
        if self._usage_wanted:
            yield {**start, "choices": [], "usage": counts(self.answer.usage)}

    def failed(self, error: dict[str, Any]) -> list[Event]:
        """What ends a stream that an error ended."""
        return [{"error": error}]


def _choice(part: Part, offsets: dict[int, int]) -> dict[str, Any]:
    at = offsets.get(part.choice, 0)
    offsets[part.choice] = at + len(part.text)
    return {
        "index": part.choice,
        "text": part.text,
        "logprobs": _logprobs(part.logprobs, at) if part.logprobs else None,
        "finish_reason": ("stop" if part.whole else "length") if part.ends else None,
    }


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
