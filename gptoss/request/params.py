"""Sampling parameters: what a request asks of the sampler, checked where it is written.

The sampler itself is part of the compiled core; this module only describes a request. Nothing
here depends on a model: ids are checked against a vocabulary when the request is submitted.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from gptoss.errors import Error, shown
from gptoss.request.grammar import Grammar

MAX_CHOICES = 128
MAX_LOGPROBS = 100
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters
MAX_STOP_TOKENS = 1024
MAX_BIASES = 4096
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
MAX_TEMPERATURE = 100.0
MIN_TEMPERATURE = 1e-3  # below this, dividing logits by it says no more than "greedy" does
SEED_LIMIT = 1 << 64

_INT32_MAX = (1 << 31) - 1


@dataclass(frozen=True)
class SamplingParams:
    """How one request wants its tokens chosen, and when it ends.

    Args:
        max_tokens: most tokens to generate; None: as many as the context holds; 0, with
            prompt_logprobs: none, the prompt alone is scored.
        min_tokens: until there are this many, no token or string ends the text. A grammar that
            allows nothing but the end ends it all the same.
        temperature: divides the logits; 0 is greedy (ties go to the lowest id).
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches p; 1 keeps all.
        min_p: drop tokens less likely than min_p times the most likely one; 0 drops none.
        repetition_penalty: over tokens of prompt and output; a positive logit is divided by it, a
            negative one multiplied; 1 changes nothing.
        presence_penalty: subtracted once from the logit of each token the output already holds.
        frequency_penalty: subtracted as often as the output holds the token.
        logit_bias: added to the logits of these token ids.
        seed: 64-bit; the same seed, prompt and parameters give the same tokens, whatever else
            runs beside them. None draws a fresh seed for every request.
        stop: up to 16 strings; the text ends before the first of them that completes.
        include_stop_str_in_output: whether the stop string that ended the text is part of it.
        stop_token_ids: ids that end the text as the model's own end tokens do.
        logprobs: report the log-probability of each token and of this many most likely ones
            (0: of the chosen one alone); None reports nothing.
        prompt_logprobs: report the same of each token of the prompt, given those before it; None
            reports nothing. It costs time where the prompt was computed before: nothing of that is
            used again.
        ignore_eos: go on past the model's end tokens.
        n: independent completions of each prompt.
        grammar: what the text must be; None: anything.

    Log-probabilities are the model's own, before bias, penalties, temperature and filters.

    Raises:
        Error: names the option, what it accepts, and what was found.
    """

    max_tokens: int | None = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    n: int = 1
    grammar: Grammar | None = None
    min_tokens: int = 0
    include_stop_str_in_output: bool = False
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            least = 1 if self.prompt_logprobs is None else 0
            self._set("max_tokens", _integer("max_tokens", self.max_tokens, least, _INT32_MAX))
        most = _INT32_MAX if self.max_tokens is None else self.max_tokens
        self._set("min_tokens", _integer("min_tokens", self.min_tokens, 0, most))
        temperature = _number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        if 0.0 < temperature < MIN_TEMPERATURE:
            temperature = MIN_TEMPERATURE
        self._set("temperature", temperature)
        self._set("top_k", _integer("top_k", self.top_k, 0, _INT32_MAX))
        self._set("top_p", _number("top_p", self.top_p, 0.0, 1.0, open_low=True))
        self._set("min_p", _number("min_p", self.min_p, 0.0, 1.0))
        self._set(
            "repetition_penalty",
            _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True),
        )
        for name in ("presence_penalty", "frequency_penalty"):
            self._set(name, _number(name, getattr(self, name), -MAX_PENALTY, MAX_PENALTY))
        if self.logit_bias is not None:
            self._set("logit_bias", _biases(self.logit_bias))
        if self.seed is not None:
            self._set("seed", _integer("seed", self.seed, 0, SEED_LIMIT - 1))
        self._set("stop", _stop_strings(self.stop))
        self._set("stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        if self.logprobs is not None:
            self._set("logprobs", _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS))
        if self.prompt_logprobs is not None:
            found = _integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
            self._set("prompt_logprobs", found)
        for name in ("ignore_eos", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise _refuse(name, "True or False", getattr(self, name))
        # Without a token to draw there is nothing to choose between.
        self._set("n", _integer("n", self.n, 1, 1 if self.max_tokens == 0 else MAX_CHOICES))
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise _refuse("grammar", "a gptoss.Grammar", self.grammar)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, however it was written."""
        assert isinstance(self.stop, tuple)
        return self.stop

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the way a frozen dataclass normalises itself


def derive_seed(seed: int, index: int) -> int:
    """The seed of choice `index` of a request: `seed` itself for choice 0.

    The others go through the finaliser of SplitMix64 (Steele, Lea, Flood 2014), so that seeds
    that follow one another do not share choices.
    """
    if index == 0:
        return seed
    z = (seed + index * 0x9E3779B97F4A7C15) % SEED_LIMIT
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % SEED_LIMIT
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % SEED_LIMIT
    return z ^ (z >> 31)


def _refuse(option: str, expected: str, found: object, part: str = "") -> Error:
    """part: what it is of the option's value that is refused."""
    return Error(
        f"{option}{part}: expected {expected}, found {shown(found)} ({type(found).__name__})",
        field=option,
    )


def _integer(option: str, value: Any, low: int, high: int, part: str = "") -> int:
    # bool is an int to Python; here True is more likely a mistake than a 1.
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise _refuse(option, f"an integer from {low} to {high}", value, part)
    return int(value)


def _number(
    option: str, value: Any, low: float, high: float, part: str = "", *, open_low: bool = False
) -> float:
    above = "above" if open_low else "from"
    expected = f"a number {above} {low:g} {'up ' if open_low else ''}to {high:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _refuse(option, expected, value, part)
    try:
        number = float(value)
    except OverflowError:  # an integer or a fraction beyond every float
        raise _refuse(option, expected, value, part) from None
    too_low = number <= low if open_low else number < low
    if math.isnan(number) or too_low or number > high:
        raise _refuse(option, expected, value, part)
    if open_low and _as_float32(number) <= low:  # the core's numbers, where a step would fail
        raise _refuse(option, f"{expected} in float32 too", value, part)
    return number


def _as_float32(number: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", number))[0]
    return rounded


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise _refuse("logit_bias", "a mapping from token id to bias", value)
    if len(value) > MAX_BIASES:
        raise _refuse("logit_bias", f"at most {MAX_BIASES} entries", len(value))
    return {
        _integer("logit_bias", token, 0, _INT32_MAX, ": token id"): _number(
            "logit_bias", bias, -MAX_BIAS, MAX_BIAS, f"[{token}]"
        )
        for token, bias in value.items()
    }


def _stop_strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        raise _refuse("stop", "a string or a sequence of strings", value)
    if len(value) > MAX_STOP_STRINGS:
        raise _refuse("stop", f"at most {MAX_STOP_STRINGS} strings", len(value))
    for text in value:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
            raise _refuse("stop", f"strings of 1 to {MAX_STOP_LENGTH} characters", text)
    return tuple(value)


def _token_ids(option: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        raise _refuse(option, "a sequence of token ids", value)
    if len(value) > MAX_STOP_TOKENS:
        raise _refuse(option, f"at most {MAX_STOP_TOKENS} ids", len(value))
    return tuple(_integer(option, token, 0, _INT32_MAX) for token in value)
