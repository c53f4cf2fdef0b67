"""SamplingParams: what is accepted, what is refused, and what the message says."""

import math
import pickle
from dataclasses import FrozenInstanceError
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss.errors import Error
from gptoss.request.params import SamplingParams, derive_seed

NAN, INF = math.nan, math.inf
NUMBERS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("max_tokens", v) for v in (0, -1, True, 2.0, "3", 1 << 31)],
        *[("temperature", v) for v in (-0.1, NAN, INF, "1", True, None, 101)],
        *[("top_k", v) for v in (-1, 1.5, True, None, 1 << 31)],
        *[("top_p", v) for v in (0, -1, 1.01, NAN, "x", None)],
        *[("min_p", v) for v in (-0.1, 1.1, NAN, None)],
        *[("repetition_penalty", v) for v in (0, -1, NAN, INF, None)],
        *[("presence_penalty", v) for v in (-2.1, 2.1, NAN, None)],
        *[("frequency_penalty", v) for v in (-2.1, 2.1, NAN, True)],
        *[("logit_bias", v) for v in ([1], "a", {"1": 1}, {-1: 1}, {1: NAN}, {1: INF}, {1: 101})],
        ("logit_bias", dict.fromkeys(range(5000), 1.0)),
        *[(option, v) for option in NUMBERS for v in (10**400, -(10**400), Fraction(10**400, 3))],
        *[("logit_bias", bias) for bias in ({1: 10**400}, {10**400: 1})],
        # float64 holds them, the float32 of the core does not
        *[(option, v) for option in ("top_p", "repetition_penalty") for v in (1e-46, 5e-324)],
        *[("seed", v) for v in (-1, 1 << 64, 1.0, True, "1")],
        *[("stop", v) for v in ("", [""], ["a", 1], 5, b"x", ["a"] * 17, "x" * 1025, None)],
        *[("stop_token_ids", v) for v in ([-1], ["1"], "12", 5, [True], [1 << 31], range(2000))],
        *[("logprobs", v) for v in (-1, True, 1.0, 101)],
        *[("ignore_eos", v) for v in (1, "yes", None)],
        *[("n", v) for v in (0, 129, True, 1.0, None)],
    ],
)
def test_refused(option, value):
    with pytest.raises(Error) as caught:
        SamplingParams(**{option: value})
    message = str(caught.value)
    assert message.startswith(option) and caught.value.field == option
    assert "expected" in message and "found" in message
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize("option", [*NUMBERS, "max_tokens", "top_k", "seed", "logprobs", "n"])
def test_integers_that_python_does_not_print(option):
    with pytest.raises(Error, match=f"{option}: expected .*, found an integer of 16610 bits"):
        SamplingParams(**{option: 10**5000})
    with pytest.raises(Error, match="logit_bias: token id: .* found an integer of 16610 bits"):
        SamplingParams(logit_bias={10**5000: 1})


def test_defaults():
    params = SamplingParams()
    assert (params.max_tokens, params.temperature, params.top_p, params.n) == (256, 1.0, 1.0, 1)
    assert params.stop_strings == () and params.seed is None and params.logprobs is None


def test_values_are_normalised():
    params = SamplingParams(
        max_tokens=np.int64(3),
        temperature=np.float32(0.5),
        top_p=1,
        stop="\n",
        stop_token_ids=[np.int32(7)],
        logit_bias={np.int64(3): 1},
    )
    assert params.max_tokens == 3 and type(params.max_tokens) is int
    assert params.temperature == 0.5 and type(params.temperature) is float
    assert params.stop_strings == ("\n",)
    assert params.stop_token_ids == (7,) and type(params.stop_token_ids[0]) is int
    assert params.logit_bias == {3: 1.0}


def test_a_bias_given_is_copied():
    bias = {1: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[2] = 5.0
    assert params.logit_bias == {1: 1.0}


def test_tiny_temperatures_do_not_overflow():
    assert SamplingParams(temperature=1e-30).temperature == 1e-3
    assert SamplingParams(temperature=0).temperature == 0


@settings(max_examples=300, deadline=None)
@given(
    option=st.sampled_from(NUMBERS),
    value=st.one_of(
        st.floats(),
        st.floats(0, 1e-37),
        st.integers(),
        st.fractions(),
        st.sampled_from([10**309, -(10**309), np.float16(0.1), np.longdouble("1e4000"), True]),
    ),
)
def test_any_number_is_refused_here_or_good_for_the_core(option, value):
    try:
        found = np.float32(getattr(SamplingParams(**{option: value}), option))
    except Error as error:
        assert str(error).startswith(option)
        return
    low, high = {"temperature": (0, 100), "repetition_penalty": (0, 100)}.get(option, (0, 1))
    if option in ("presence_penalty", "frequency_penalty"):
        low, high = -2, 2
    assert low <= found <= high
    assert found > 0 or option not in ("top_p", "repetition_penalty")


def test_frozen_comparable_and_picklable():
    params = SamplingParams(seed=3, stop=["a", "b"], logit_bias={1: 2.0})
    with pytest.raises(FrozenInstanceError):
        params.seed = 4
    assert pickle.loads(pickle.dumps(params)) == params


def test_seeds_of_choices():
    assert derive_seed(5, 0) == 5
    seeds = {derive_seed(seed, i) for seed in range(50) for i in range(50)}
    assert len(seeds) == 50 * 50 and all(0 <= seed < 1 << 64 for seed in seeds)
