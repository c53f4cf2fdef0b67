"""SamplingParams: what is accepted, what is refused, and what the message says."""

import math
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from gptoss.errors import Error
from gptoss.request.params import SamplingParams, derive_seed

NAN, INF = math.nan, math.inf


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


def test_frozen_comparable_and_picklable():
    params = SamplingParams(seed=3, stop=["a", "b"], logit_bias={1: 2.0})
    with pytest.raises(FrozenInstanceError):
        params.seed = 4
    assert pickle.loads(pickle.dumps(params)) == params


def test_seeds_of_choices():
    assert derive_seed(5, 0) == 5
    seeds = {derive_seed(seed, i) for seed in range(50) for i in range(50)}
    assert len(seeds) == 50 * 50 and all(0 <= seed < 1 << 64 for seed in seeds)
