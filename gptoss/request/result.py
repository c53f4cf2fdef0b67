"""What the engine hands back: deltas while a text grows, completions when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


@dataclass(frozen=True, eq=False)
class Score:
    """How likely a model finds given tokens, each after those before it.

    T tokens, K of the most likely ones at each place. Log-probabilities are natural logarithms, of
    the model's own distribution: summed over the vocabulary in double precision, and rounded to
    float32.

    Attributes:
        token_ids: int32 [T].
        logprobs: float32 [T], of each token.
        greedy: bool [T], whether each is the most likely one (of several, that of the lowest id).
        top_ids, top_logprobs: int32 and float32 [T, K], most likely first.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    greedy: NDArray[np.bool_]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def total(self) -> float:
        """Log-probability of all of them together, summed in double precision."""
        return float(self.logprobs.sum(dtype="float64"))

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would write just these tokens."""
        return bool(self.greedy.all())


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
        prompt: in the first delta of the first choice, where prompt_logprobs asked for it: the
            prompt's tokens from the second on; the first has nothing before it.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    index: int = 0
    timing: Timing | None = None
    prompt: Score | None = None


@dataclass(frozen=True)
class Completion:
    """One finished text. The fields are those of `Delta`, put together.

    Attributes:
        prompt_index: which of the prompts given to `generate` it continues.
        index: which of that prompt's n choices it is.
        prompt: how likely the prompt was, where asked for; of its first choice.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    timing: Timing
    prompt_index: int = 0
    index: int = 0
    prompt: Score | None = None


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
        prompt=deltas[0].prompt,
    )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0
