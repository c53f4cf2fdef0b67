"""How likely given texts are, against float64; and that asking costs others little."""

import threading

import numpy as np
import pytest
from fake_engine import settle

from gptoss import Engine, Error, SamplingParams, reference
from gptoss.checkpoint import open_checkpoint
from gptoss.engine import engine as engine_module
from gptoss.request import MAX_LOGPROBS

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3)


@pytest.fixture(scope="module")
def tokens(tiny_a):
    return np.load(tiny_a / "golden.npz")["tokens_160"].tolist()


@pytest.fixture(scope="module")
def engine(tiny_a_words):
    with Engine(tiny_a_words, activation="f32", kv_bytes=64 << 20, threads=1) as engine:
        yield engine
        settle(engine)


@pytest.fixture(scope="module")
def wanted(engine, tokens):
    """Log-probabilities in float64 of every token after each place."""
    return log_softmax(engine.logits(tokens))


def log_softmax(logits):
    x = logits.astype(np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def check(score, wanted, tokens, first, top):
    """wanted: of the whole text. float32 rounds a number near -10 by half a millionth."""
    rows = wanted[first - 1 : len(tokens) - 1]
    given = np.array(tokens[first:])
    exact = rows[np.arange(len(given)), given]
    assert score.token_ids.tolist() == tokens[first:] and len(score) == len(given)
    assert np.all(np.abs(score.logprobs - exact) <= np.abs(exact) * 2**-24 + 1e-7)
    assert abs(score.total - exact.sum()) <= 1e-6 * len(given)
    assert score.greedy.tolist() == (rows.argmax(-1) == given).tolist()
    assert score.is_greedy == bool(np.all(rows.argmax(-1) == given))
    order = np.argsort(-rows, axis=-1, kind="stable")[:, :top]
    assert score.top_ids.tolist() == order.tolist()
    assert np.allclose(score.top_logprobs, np.take_along_axis(rows, order, -1), atol=2e-6)


@pytest.mark.parametrize("first", [1, 2, 15, 16, 17, 100, 159])
@pytest.mark.parametrize("top", [0, 1, 5])
def test_scores_are_those_of_the_logits(engine, tokens, wanted, first, top):
    """Wherever the continuation begins beside the borders of pages and of what is cached."""
    check(engine.score(tokens[:first], tokens[first:], top=top), wanted, tokens, first, top)


def test_scores_are_those_of_the_specification(engine, tiny_a, tokens):
    config, source = engine.config, open_checkpoint(tiny_a)
    logits, _ = reference.forward(config, source, np.array(tokens[:48]), np.float64)
    exact = log_softmax(logits)
    score = engine.score(tokens[:20], tokens[20:48])
    found = exact[np.arange(19, 47), tokens[20:48]]
    assert np.abs(score.logprobs - found).max() < 1e-3


def test_scores_of_a_published_checkpoint(tiny_a, tokens):
    """Against logits that the published code computed."""
    golden = np.load(tiny_a / "golden.npz")["logits_f32_160"]
    exact = log_softmax(golden)[np.arange(159), tokens[1:]]
    with Engine(tiny_a, activation="f32", kv_bytes=8 << 20, threads=1) as engine:
        score = engine.score(tokens[:1], tokens[1:])
    assert np.abs(score.logprobs - exact).max() < 2e-3


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_no_step_holds_more_rows_than_are_allowed(engine, tokens, wanted, monkeypatch, rows):
    """Of all that are scored at once, together; and another's prompt is not cut by it."""
    monkeypatch.setattr(engine_module, "LOGITS_BYTES", rows * 4 * engine.config.vocab_size)
    seen, worker = [], engine._worker
    real = worker.backend.step

    class Seeing:
        def __getattr__(self, name):
            return getattr(engine._backend, name)

        def step(self, *arrays, **options):
            seen.append((len(arrays[0]), len(arrays[4]), len(arrays[1]) - 1))
            return real(*arrays, **options)

    monkeypatch.setattr(worker, "backend", Seeing())
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: engine.score(tokens[: 5 + i],
                                                                         tokens[5 + i :])}))
        for i in range(4)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i in range(4):
        check(found[i], wanted, tokens, 5 + i, 0)
    assert max(count for _, count, _ in seen) <= rows
    long = engine.score(tokens[:100], tokens[100:])
    check(long, wanted, tokens, 100, 0)


def test_a_shared_prompt_is_computed_once(engine, tokens, wanted):
    prompt = [*tokens[:80]]
    before = engine.info()["cached_tokens"]
    found = engine.score_all(prompt, [tokens[80:90], tokens[80:85], [7, 8, 9]])
    assert engine.info()["cached_tokens"] - before >= 2 * 64
    check(found[0], wanted, tokens[:90], 80, 0)
    assert found[1].logprobs.tolist() == pytest.approx(found[0].logprobs[:5].tolist(), abs=1e-5)
    assert len(found[2]) == 3
    assert engine.score_all(prompt, []) == []


@pytest.mark.parametrize("n", [1, 3])
def test_a_prompts_own_scores_change_no_text(engine, tokens, wanted, n):
    plain = engine.generate(tokens, SamplingParams(**{**vars(GREEDY), "n": n}))
    asked = SamplingParams(**{**vars(GREEDY), "n": n, "prompt_logprobs": 4})
    scored = engine.generate(tokens, asked)
    assert [c.token_ids for c in scored] == [c.token_ids for c in plain]
    assert [c.logprobs for c in scored] == [c.logprobs for c in plain]
    assert all(c.prompt is None for c in [*plain, *scored[1:]])
    check(scored[0].prompt, wanted, tokens, 1, 4)
    with engine.stream(tokens, SamplingParams(prompt_logprobs=0, max_tokens=3)) as stream:
        first, *rest = stream
    assert len(first.prompt) == len(tokens) - 1 and all(delta.prompt is None for delta in rest)


def test_a_prompt_alone(engine, tokens, wanted):
    params = SamplingParams(max_tokens=0, prompt_logprobs=2)
    (done,) = engine.generate(tokens, params)
    assert (done.text, done.token_ids, done.finish_reason) == ("", [], "length")
    assert done.timing.completion_tokens == 0 and done.timing.prompt_tokens == len(tokens)
    check(done.prompt, wanted, tokens, 1, 2)
    (single,) = engine.generate(tokens[:1], params)
    assert len(single.prompt) == 0 and single.prompt.total == 0.0 and single.prompt.is_greedy


def test_scores_survive_a_preemption(tiny_a_words, tokens):
    """Where the pool is too small for all, those that lose their pages begin again."""
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, prompt_logprobs=1)
    with Engine(tiny_a_words, activation="f32", kv_bytes=64 << 20, threads=1) as engine:
        wanted = engine.generate(tokens, params)[0]
        need = engine.info()["kv_page_bytes"]
    preemptions = 0
    for pages in range(28, 60, 2):
        with Engine(
            tiny_a_words,
            activation="f32",
            kv_bytes=need * pages,
            threads=1,
            step_tokens=16,
            max_batch=4,
        ) as engine:
            found = engine.generate([tokens, tokens[::-1], tokens], params)
            preemptions += engine.info()["preemptions"]
        for done in (found[0], found[2]):
            assert done.token_ids == wanted.token_ids
            assert done.prompt.logprobs.tolist() == pytest.approx(
                wanted.prompt.logprobs.tolist(), abs=1e-5
            )
    assert preemptions > 0


@pytest.mark.parametrize(
    ("prompt", "continuation", "top", "field"),
    [
        ([1], [], 0, "continuation"),
        ([1], "", 0, "continuation"),
        ([], [1], 0, "prompt"),
        ([1], [10**9], 0, "continuation"),
        ([1], [True], 0, "continuation"),
        ([1], [2], -1, "top"),
        ([1], [2], MAX_LOGPROBS + 1, "top"),
        ([1], [2] * 200_000, 0, "continuation"),
    ],
)
def test_what_cannot_be_scored_is_named(engine, prompt, continuation, top, field):
    with pytest.raises(Error) as caught:
        engine.score(prompt, continuation, top=top)
    assert caught.value.field == field


def test_scores_of_a_closed_engine(tiny_a):
    engine = Engine(tiny_a, kv_bytes=8 << 20, threads=1)
    engine.close()
    with pytest.raises(Error, match="closed"):
        engine.score([1], [2])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "prompt_logprobs": 0, "n": 2}, "n"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"prompt_logprobs": MAX_LOGPROBS + 1}, "prompt_logprobs"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output"),
    ],
)
def test_parameters_that_are_none(options, field):
    with pytest.raises(Error) as caught:
        SamplingParams(**options)
    assert caught.value.field == field


def test_too_much_to_tell_of_one_prompt(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "MAX_SCORES", 100)
    with pytest.raises(Error, match="prompt_logprobs: expected at most 5 for 20 tokens, found 6"):
        engine.generate([5] * 20, SamplingParams(prompt_logprobs=6))
    with pytest.raises(Error, match="top: expected at most 5 for 20 tokens, found 6"):
        engine.score([5], [5] * 20, top=6)
