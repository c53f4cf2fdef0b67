"""What the engine hands back: deltas while a text grows, completions when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability (natural logarithm) in the model's own distribution.

    Attributes:
        bytes: what the token stands for; it may be part of a character, or empty.
        top: the most likely tokens at this position, best first; empty in its own entries.
    """

    token_id: int
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """The bytes as text, with U+FFFD where they are not UTF-8 by themselves."""
        return self.bytes.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class Timing:
    """Where the time of one completion went. Durations are in seconds.

    Attributes:
        cached_tokens: those of the prompt that were computed before, for another request.
        queue_seconds: from submission to its first step.
        prefill_seconds: from its first step to its first token; shared steps count in full.
        decode_seconds: from its first token to its last.
    """

    prompt_tokens: int
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    cached_tokens: int = 0

    @property
    def ttft(self) -> float:
        """Time to first token, queueing included."""
        return self.queue_seconds + self.prefill_seconds

    @property
    def prefill_tokens_per_second(self) -> float:
        """Speed at which the prompt was computed, without what was there already."""
        return _rate(self.prompt_tokens - self.cached_tokens, self.prefill_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed: tokens after the first one; 0 where there is none."""
        return _rate(self.completion_tokens - 1, self.decode_seconds)


@dataclass(frozen=True)
class Delta:
    """What one token added to a completion.

    Attributes:
        text: new text; empty while a character or a possible stop string is incomplete.
        token_ids: the new tokens; a token that ends the text is here, though not in `text`.
        finish_reason: in the last delta of a choice "stop" (end token, stop token, stop string)
            or "length" (max_tokens, or the end of the context); None before.
        logprobs: one entry per token if asked for.
        index: which of the request's n choices it belongs to.
        timing: in the last delta of a choice.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    index: int = 0
    timing: Timing | None = None


@dataclass(frozen=True)
class Completion:
    """One finished text. The fields are those of `Delta`, put together.

    Attributes:
        prompt_index: which of the prompts given to `generate` it continues.
        index: which of that prompt's n choices it is.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    timing: Timing
    prompt_index: int = 0
    index: int = 0


def join(deltas: list[Delta], prompt_index: int = 0) -> Completion:
    """The completion that a choice's deltas, in order and up to the last, add up to."""
    last = deltas[-1]
    assert last.finish_reason is not None and last.timing is not None
    logprobs = None
    if last.logprobs is not None:
        logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
    return Completion(
        text="".join(delta.text for delta in deltas),
        token_ids=[token for delta in deltas for token in delta.token_ids],
        finish_reason=last.finish_reason,
        logprobs=logprobs,
        timing=last.timing,
        prompt_index=prompt_index,
        index=last.index,
    )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0
