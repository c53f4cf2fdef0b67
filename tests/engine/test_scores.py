"""How likely given texts are: `Engine.score`, `prompt_logprobs`, against logits in float64."""

import math

import numpy as np
import pytest
from fake_engine import settle

from gptoss import Engine, Error, SamplingParams
from gptoss.engine import engine as engine_module

# One rounding to float32: logits are the same to the bit, and sums are in double precision.
ULP = 2.0**-23
LENGTHS = {"single_token": 1, "a_few": 7, "longer_than_the_window": 200}


@pytest.fixture(scope="module")
def engine(tiny_a_words):
    with Engine(tiny_a_words, activation="f32", kv_bytes=64 << 20, threads=1) as engine:
        yield engine
        settle(engine)


def tokens(count, seed=5):
    return np.random.default_rng(seed).integers(0, 512, count).tolist()


def expected(engine, prompt, continuation):
    """float64 [T, vocabulary]: the log-probabilities after each token but the last."""
    logits = engine.logits(prompt + continuation)[len(prompt) - 1 : -1].astype(np.float64)
    most = logits.max(-1, keepdims=True)
    return logits - most - np.log(np.exp(logits - most).sum(-1, keepdims=True))


def check(score, continuation, wanted, top=0):
    """That a score is what the log-probabilities say."""
    rows = np.arange(len(continuation))
    assert score.token_ids.tolist() == continuation and len(score) == len(continuation)
    assert np.isfinite(score.logprobs).all()
    np.testing.assert_allclose(score.logprobs, wanted[rows, continuation], rtol=ULP)
    assert score.greedy.tolist() == (wanted.argmax(-1) == continuation).tolist()
    assert score.top_ids.shape == score.top_logprobs.shape == (len(continuation), top)
    order = np.argsort(-wanted, axis=-1, kind="stable")[:, :top]
    assert score.top_ids.tolist() == order.tolist()
    np.testing.assert_allclose(
        score.top_logprobs, np.take_along_axis(wanted, order, axis=-1), rtol=ULP
    )


@pytest.mark.parametrize("before", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("count", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("top", [0, 3])
def test_each_token_has_its_log_probability(engine, before, count, top):
    prompt, continuation = tokens(before), tokens(count, seed=6)
    score = engine.score(prompt, continuation, top=top)
    check(score, continuation, expected(engine, prompt, continuation), top)
    assert math.isclose(score.total, float(score.logprobs.astype(np.float64).sum()))
    # What was computed before, for a request like it, changes nothing.
    again = engine.score(prompt, continuation, top=top)
    assert again.logprobs.tolist() == score.logprobs.tolist()


def test_what_greedy_decoding_writes_is_greedy(engine):
    prompt = tokens(9)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    (done,) = engine.generate([prompt], params)
    score = engine.score(prompt, done.token_ids)
    assert score.is_greedy and score.greedy.all()
    told = [token.logprob for token in done.logprobs]
    np.testing.assert_allclose(score.logprobs, told, rtol=ULP)
    other = [*done.token_ids[:-1], (done.token_ids[-1] + 1) % 512]
    assert engine.score(prompt, other).greedy.tolist() == [True] * 11 + [False]


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_few_rows_of_logits_are_held_at_a_time(engine, monkeypatch, rows):
    monkeypatch.setattr(engine_module, "LOGITS_BYTES", rows * 4 * 512)
    prompt, continuation = tokens(20), tokens(70, seed=8)
    check(engine.score(prompt, continuation, top=2), continuation,
          expected(engine, prompt, continuation), 2)  # fmt: skip


def test_several_continuations_of_one_prompt(engine):
    prompt, several = tokens(50), [tokens(n, seed=n) for n in (1, 4, 30)]
    for score, continuation in zip(engine.score_all(prompt, several), several, strict=True):
        check(score, continuation, expected(engine, prompt, continuation))
    assert engine.score_all(prompt, []) == []


def test_texts_are_split_each_by_itself(engine):
    score = engine.score("the cat", " sat")
    assert score.token_ids.tolist() == engine.tokenizer.encode(" sat")
    wanted = engine.score(engine.tokenizer.encode("the cat"), engine.tokenizer.encode(" sat"))
    assert score.logprobs.tolist() == wanted.logprobs.tolist()


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_a_prompt_is_scored_from_its_second_token_on(engine, max_tokens):
    prompt = tokens(40)
    params = SamplingParams(
        prompt_logprobs=2, max_tokens=max_tokens, temperature=0, ignore_eos=True
    )
    (done,) = engine.generate([prompt], params)
    check(done.prompt, prompt[1:], expected(engine, prompt[:1], prompt[1:]), 2)
    assert len(done.token_ids) == max_tokens
    plain = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    assert done.token_ids == engine.generate([prompt], plain)[0].token_ids[:max_tokens]


def test_of_several_choices_the_first_scores_the_prompt(engine):
    params = SamplingParams(prompt_logprobs=0, max_tokens=3, n=3, seed=1, ignore_eos=True)
    done = engine.generate([tokens(8)], params)
    assert [each.prompt is not None for each in done] == [True, False, False]


@pytest.mark.parametrize(
    ("prompt", "continuation", "more", "field"),
    [
        ([1], [], {}, "continuation"),
        ([1], "", {}, "continuation"),
        ([1], [512], {}, "continuation"),
        ([1], [-1], {}, "continuation"),
        ([], [1], {}, "prompt"),
        ([1], [1], {"top": 101}, "top"),
        ([1], [1], {"top": -1}, "top"),
        ([1], [1], {"top": True}, "top"),
        ([1], [1] * 200_000, {}, "continuation"),
    ],
)
def test_what_cannot_be_scored_is_named(engine, prompt, continuation, more, field):
    with pytest.raises(Error) as error:
        engine.score(prompt, continuation, **more)
    assert error.value.field == field
    settle(engine)
