"""Solutions of the exercises in docs/learn/06_decoding.ipynb."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss import Engine, SamplingParams

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(activation="f32", threads=1, kv_bytes=32 << 20) as engine:
        yield engine


def softmax(z: NDArray[np.floating[Any]]) -> Floats:
    e = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_1_gumbel_trick() -> None:
    """Draw g = −ln(−ln u) and take argmax(z/T + g). Show that this draws from p(T).

    Why it works: z/T + g exceeds all others with exactly the softmax's probability, because the
    largest of Gumbel variables is Gumbel again, shifted by the logarithm of the sum.
    """
    random = np.random.default_rng(0)
    z, temperature, draws = np.array([2.0, 1.0, 0.0, -1.0, -3.0]), 1.7, 40_000
    g = -np.log(-np.log(random.random((draws, len(z)))))
    found = np.bincount((z / temperature + g).argmax(1), minlength=len(z)) / draws
    p = softmax(z / temperature)
    assert np.abs(found - p).max() < 5 * np.sqrt(0.25 / draws)
    # The temperature matters: the distribution at T = 1 is another one.
    assert np.abs(found - softmax(z)).max() > 0.05


def beam_search(engine: Engine, prompt: list[int], width: int, count: int) -> tuple[list[int], Any]:
    """The best text of `count` more tokens that `width` beams find, and its log-probability."""
    beams = [(0.0, list(prompt))]
    for _ in range(count):
        grown = []
        for score, ids in beams:
            logp = np.log(softmax(engine.logits(ids)[-1]))
            grown += [(score + logp[i], ids + [int(i)]) for i in np.argsort(-logp)[:width]]
        beams = sorted(grown, key=lambda beam: -beam[0])[:width]
    return beams[0][1], beams[0][0]


def test_2_beam_search(engine: Engine) -> None:
    """Keep the 4 most likely texts instead of one. Is the result more likely than greedy's?

    A beam of one is greedy. Over several prompts wider beams find texts at least as likely on the
    average (not for each prompt: a beam may lose the branch that would have won later), and these
    are no more varied than what a draw gives.
    """
    prompts = [engine.tokenizer.encode(text) for text in ("Once upon a time", "The king")]
    count = 10
    gain = []
    for prompt in prompts:
        ids = list(prompt)
        narrow, likely = beam_search(engine, ids, 1, count)
        greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        assert narrow[len(ids) :] == engine.generate([ids], greedy)[0].token_ids
        gain.append(beam_search(engine, ids, 4, count)[1] - likely)
        drawn = SamplingParams(seed=0, max_tokens=count, ignore_eos=True, logprobs=0)
        logprobs = engine.generate([ids], drawn)[0].logprobs
        assert logprobs is not None and sum(t.logprob for t in logprobs) <= likely + 1e-4
    assert np.mean(gain) > -1e-9


def test_3_forbid_a_letter(engine: Engine) -> None:
    """Write a text without the letter e, using `logit_bias` alone."""
    tokens = range(engine.config.vocab_size)
    bad = [i for i in tokens if b"e" in engine.tokenizer.token_bytes(i).lower()]
    params = SamplingParams(
        seed=1, max_tokens=60, ignore_eos=True, logit_bias=dict.fromkeys(bad, -100.0)
    )
    text = engine.generate("Onc upon a day", params)[0].text
    assert len(text) > 40 and "e" not in text.lower()
    free = engine.generate("Onc upon a day", SamplingParams(seed=1, max_tokens=60, ignore_eos=True))
    assert "e" in free[0].text.lower()


def typical(p: Floats, mass: float) -> NDArray[np.bool_]:
    """Which tokens locally typical sampling keeps (Meister et al. 2022, section 4)."""
    surprise = -np.log(p)
    entropy = (p * surprise).sum()
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    count = int(np.searchsorted(np.cumsum(p[order]), mass)) + 1
    kept = np.zeros(len(p), bool)
    kept[order[:count]] = True
    return kept


def test_4_typical_sampling() -> None:
    """Keep the tokens whose surprise is nearest to the entropy. When is the best token dropped?

    When it is much more likely than e^−H, the likelihood of a typical token, and the others
    reach the mass without it: a favourite among very many that are nearly alike.
    """
    favourite = np.array([0.08] + [0.92 / 400] * 400)
    assert not typical(favourite, 0.9)[0]
    assert typical(favourite, 0.9).sum() > 300
    clear = np.array([0.95] + [0.05 / 400] * 400)  # it alone is more than the mass asked for
    assert typical(clear, 0.9)[0]
    even = np.full(10, 0.1)  # all are equally typical: as top-p
    assert typical(even, 0.85).sum() == 9


def test_5_until_the_first_slip() -> None:
    """With chance ε of a bad token per step: how many good ones come before the first?

    P(n good ones, then a bad one) = (1 − ε)^n·ε, whose mean is (1 − ε)/ε: 49 for 2%.
    """
    epsilon, texts = 0.02, 20_000
    random = np.random.default_rng(0)
    good = random.geometric(epsilon, texts) - 1  # `geometric` counts the bad one too
    mean, deviation = (1 - epsilon) / epsilon, np.sqrt(1 - epsilon) / epsilon
    assert mean == pytest.approx(49)
    assert abs(good.mean() - mean) < 5 * deviation / np.sqrt(texts)
    assert (good < 100).mean() == pytest.approx(1 - (1 - epsilon) ** 100, abs=0.02)
