"""The engine on the compiled core, with small random models."""

import json

import numpy as np
import pytest
from fake_engine import settle

from gptoss import Engine, Error, SamplingParams
from gptoss.native import _kernels
from gptoss.request.params import derive_seed

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=4)
SEEDED = SamplingParams(seed=11, max_tokens=24, ignore_eos=True, logprobs=4)


@pytest.fixture(scope="module")
def golden(tiny_a):
    return np.load(tiny_a / "golden.npz")


@pytest.fixture(scope="module")
def engine(tiny_a_words):
    """Float32 operands: results are promised to the bit."""
    with Engine(tiny_a_words, activation="f32", kv_bytes=64 << 20, threads=1) as engine:
        yield engine
        settle(engine)


def small_engine(model, **options):
    options = {"activation": "f32", "kv_bytes": 8 << 20, "threads": 1, **options}
    return Engine(model, device="cpu", **options)


def essence(completion):
    return completion.token_ids, completion.text, completion.finish_reason, completion.logprobs


def log_softmax(logits):
    x = logits.astype(np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def test_two_ranks_are_one_model(tiny_a, golden):
    """Sharded is unsharded, but for the order of sums; weights and cache are held once."""
    with small_engine(tiny_a) as engine:
        alone = engine.info()
    with small_engine(tiny_a, tensor_parallel=2) as engine:
        together = engine.info()
        logits = engine.logits(golden["tokens_160"])
    wanted = golden["logits_f32_160"].astype(np.float64)
    assert np.linalg.norm(logits - wanted) < 2e-5 * np.linalg.norm(wanted)
    assert together["tensor_parallel"] == "2"
    assert together["kv_pages"] == alone["kv_pages"]
    shared = 2 * 512 * 128 * 2 + 2**16  # the unembedding, gates and norms are every rank's
    assert int(together["weight_bytes"]) - int(alone["weight_bytes"]) < shared


def test_ranks_that_do_not_divide_are_refused(tiny_a):
    with pytest.raises(Error, match="2 KV heads and 8 experts, found 3"):
        small_engine(tiny_a, tensor_parallel=3)
    with pytest.raises(Error, match="tensor_parallel: expected an integer"):
        small_engine(tiny_a, tensor_parallel=0)


@pytest.mark.parametrize("length", [1, 5, 48, 160])
@pytest.mark.parametrize("step_tokens", [7, 512])
def test_logits_are_those_of_the_published_code(tiny_a, golden, length, step_tokens):
    with small_engine(tiny_a, step_tokens=step_tokens, max_batch=4) as engine:
        logits = engine.logits(golden[f"tokens_{length}"])
    wanted = golden[f"logits_f32_{length}"].astype(np.float64)
    assert np.linalg.norm(logits - wanted) <= 2e-4 * np.linalg.norm(wanted)


def test_logits_do_not_depend_on_the_chunks(tiny_a, golden):
    ids = golden["tokens_160"]
    found = []
    for step_tokens in (1, 16, 33, 512):
        with small_engine(tiny_a, step_tokens=step_tokens, max_batch=1) as engine:
            found.append(engine.logits(ids))
    for logits in found[1:]:
        assert np.array_equal(found[0], logits)


def greedy_stories(isa, activation):
    """What the bundled model gives for each prompt: (token ids, two likeliest tokens per place)."""
    prompts = ["Once upon a time", "The old man looked at the sea, and", "The king said"]
    params = SamplingParams(temperature=0, max_tokens=100, logprobs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTOSS_CPU_ISA", isa)
        with Engine(device="cpu", threads=2, activation=activation) as engine:
            return [(c.token_ids, c.logprobs) for c in engine.generate(prompts, params)]


@pytest.fixture(scope="module")
def stories():
    """With the plainest kernels."""
    return {activation: greedy_stories("generic", activation) for activation in ("f32", "bf16")}


OTHER_ISAS = [isa for isa in _kernels.isas() if isa != "generic"]


@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_every_instruction_set_tells_the_same_stories(isa, stories):
    for (found, _), (wanted, _) in zip(greedy_stories(isa, "f32"), stories["f32"], strict=True):
        assert found == wanted


@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_rounding_to_bf16_changes_stories_at_near_ties_only(isa, stories):
    # A sum formed in another order may round to the other bf16, which moves a logit by some
    # thousandths; everything before such a place must be the same.
    for (found, _), (wanted, likeliest) in zip(
        greedy_stories(isa, "bf16"), stories["bf16"], strict=True
    ):
        differs = [i for i, pair in enumerate(zip(found, wanted, strict=False)) if len({*pair}) > 1]
        if not differs:
            assert found == wanted
            continue
        top = likeliest[differs[0]].top
        assert {found[differs[0]], wanted[differs[0]]} == {t.token_id for t in top[:2]}
        assert top[0].logprob - top[1].logprob < 0.02


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_batched_equals_one_by_one(engine, golden, params):
    ids = golden["tokens_160"].tolist()
    prompts = [ids[:n] for n in (1, 5, 16, 17, 40, 160)]
    together = engine.generate(prompts, params)
    for prompt, completion in zip(prompts, together, strict=True):
        assert essence(engine.generate([prompt], params)[0]) == essence(completion)


def test_small_steps_and_preemption_change_nothing(tiny_a_words, engine, golden):
    ids = golden["tokens_160"].tolist()
    prompts = [ids[:n] for n in (3, 100, 40, 17, 9, 60)]
    params = SamplingParams(seed=5, max_tokens=60, ignore_eos=True)
    wanted = [essence(c) for c in engine.generate(prompts, params)]
    pages = 26 * engine.info()["kv_page_bytes"]
    with small_engine(tiny_a_words, step_tokens=24, max_batch=5, kv_bytes=pages) as tight:
        assert [essence(c) for c in tight.generate(prompts, params)] == wanted
        assert tight.info()["preemptions"] > 0
        settle(tight)


def test_threads_change_nothing(tiny_a_words, engine, golden):
    prompt = golden["tokens_48"].tolist()
    with small_engine(tiny_a_words, threads=2) as other:
        found = essence(other.generate(prompt, SEEDED)[0])
    assert found == essence(engine.generate(prompt, SEEDED)[0])


def test_both_layouts_generate_the_same(tiny_a, tiny_a_hf, golden):
    ids = golden["tokens_48"].tolist()
    runs = []
    for model in (tiny_a, tiny_a_hf):
        with small_engine(model) as engine:
            runs.append(essence(engine.generate(ids, GREEDY)[0]))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("activation", ["f32", "bf16"])
def test_logprobs_are_those_of_the_logits(tiny_a_words, golden, activation):
    prompt = golden["tokens_48"].tolist()
    with small_engine(tiny_a_words, activation=activation) as engine:
        (completion,) = engine.generate(prompt, SEEDED)
        wanted = log_softmax(engine.logits(prompt + completion.token_ids)[len(prompt) - 1 : -1])
        tokenizer = engine.tokenizer
        for row, entry, token in zip(
            wanted, completion.logprobs, completion.token_ids, strict=True
        ):
            tolerance = 1e-4 if activation == "f32" else 0.2
            assert entry.token_id == token and entry.bytes == tokenizer.token_bytes(token)
            assert entry.logprob == pytest.approx(row[token], abs=tolerance)
            best = [top.logprob for top in entry.top]
            assert len(best) == 4 and best == sorted(best, reverse=True)
            assert best == pytest.approx(np.sort(row)[:-5:-1], abs=tolerance)


@pytest.mark.parametrize(
    "options",
    [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-20}],
    ids=lambda options: next(iter(options)),
)
def test_filters_that_leave_one_token_are_greedy(engine, options):
    params = SamplingParams(max_tokens=24, ignore_eos=True, **options)
    assert engine.generate([1, 2], params)[0].token_ids == (
        engine.generate([1, 2], GREEDY)[0].token_ids
    )


def test_top_k_keeps_k(engine):
    logits = engine.logits([1, 2, 3])[-1]
    best = set(np.argsort(-logits)[:5].tolist())
    params = SamplingParams(max_tokens=1, top_k=5, temperature=5.0, seed=0, n=128)
    drawn = {c.token_ids[0] for c in engine.generate([1, 2, 3], params)}
    assert drawn == best


def test_draws_follow_the_probabilities(engine):
    """Pearson's chi-squared of 1280 draws among the eight best tokens; bound: p about 1e-4."""
    logits = engine.logits([1, 2, 3])[-1].astype(np.float64)
    best = np.argsort(-logits)[:8]
    p = np.exp(logits[best] / 2.0)
    p /= p.sum()
    counts = np.zeros(8)
    for seed in range(10):
        params = SamplingParams(max_tokens=1, top_k=8, temperature=2.0, seed=seed, n=128)
        for completion in engine.generate([1, 2, 3], params):
            counts[best.tolist().index(completion.token_ids[0])] += 1
    total = counts.sum()
    assert ((counts - total * p) ** 2 / (total * p)).sum() < 29.9


def test_bias_forces_and_bans(engine):
    best = engine.generate([1, 2], GREEDY)[0].token_ids[0]
    ban = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logit_bias={best: -100})
    assert best not in engine.generate([1, 2], ban)[0].token_ids
    force = SamplingParams(max_tokens=6, ignore_eos=True, logit_bias={77: 100})
    assert engine.generate([1, 2], force)[0].token_ids == [77] * 6


def test_penalties_are_those_of_the_formula(engine):
    """Greedy with all three penalties, against NumPy on the engine's own logits."""
    prompt = [5, 6, 7, 5]
    params = SamplingParams(
        temperature=0,
        max_tokens=20,
        ignore_eos=True,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.3,
    )
    output = engine.generate(prompt, params)[0].token_ids
    rows = engine.logits(prompt + output)[len(prompt) - 1 :].astype(np.float64)
    for i, token in enumerate(output):
        x = rows[i]
        for seen in set(prompt + output[:i]):
            x[seen] = x[seen] / 1.3 if x[seen] > 0 else x[seen] * 1.3
            x[seen] -= 0.4 * (seen in output[:i]) + 0.3 * output[:i].count(seen)
        assert x[token] == pytest.approx(x.max(), abs=1e-4)


def test_seeds_and_choices(engine):
    params = SamplingParams(seed=3, n=4, max_tokens=16, ignore_eos=True)
    first = [c.token_ids for c in engine.generate([1, 2], params)]
    assert [c.token_ids for c in engine.generate([1, 2], params)] == first
    assert len({tuple(ids) for ids in first}) == 4
    for i, ids in enumerate(first):
        alone = SamplingParams(seed=derive_seed(3, i), max_tokens=16, ignore_eos=True)
        assert engine.generate([1, 2], alone)[0].token_ids == ids


def test_stream_equals_generate(engine):
    prompt = "the quick brown fox — naïve 日本"
    (completion,) = engine.generate(prompt, SEEDED)
    deltas = list(engine.stream(prompt, SEEDED))
    assert "".join(d.text for d in deltas) == completion.text
    assert [t for d in deltas for t in d.token_ids] == completion.token_ids
    assert completion.text == engine.tokenizer.decode(completion.token_ids)
    assert completion.timing.prompt_tokens == len(engine.tokenizer.encode(prompt))


def test_stop_string_across_real_tokens(engine):
    (plain,) = engine.generate("abc", SamplingParams(seed=2, max_tokens=60, ignore_eos=True))
    pieces = [engine.tokenizer.token_bytes(t) for t in plain.token_ids]
    # Two neighbouring tokens of plain letters: their border lies inside the stop string.
    at = next(i for i in range(5, 59) if all(p.isascii() and p.strip() for p in pieces[i : i + 2]))
    stop = (pieces[at][-1:] + pieces[at + 1][:1]).decode()
    params = SamplingParams(seed=2, max_tokens=60, ignore_eos=True, stop=stop)
    (stopped,) = engine.generate("abc", params)
    assert stopped.finish_reason == "stop"
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert len(stopped.token_ids) <= at + 2


def test_end_token_of_the_tokenizer(engine):
    end = engine.tokenizer.special_tokens["<|endoftext|>"]
    params = SamplingParams(max_tokens=5, logit_bias={end: 100})
    (completion,) = engine.generate("abc", params)
    assert (completion.token_ids, completion.text) == ([end], "")
    assert completion.finish_reason == "stop"


def test_empty_text_starts_at_endoftext(engine):
    end = engine.tokenizer.special_tokens["<|endoftext|>"]
    assert essence(engine.generate("", GREEDY)[0]) == essence(engine.generate([end], GREEDY)[0])


def test_special_tokens_in_text_are_text(engine):
    end = engine.tokenizer.special_tokens["<|endoftext|>"]
    (completion,) = engine.generate("<|endoftext|>", GREEDY)
    assert completion.timing.prompt_tokens > 1
    assert essence(completion) != essence(engine.generate([end], GREEDY)[0])


def test_the_context_end(tiny_a, tmp_path):
    config = json.loads((tiny_a / "config.json").read_text())
    config.update(initial_context_length=64, rope_scaling_factor=1.0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(tiny_a / "model.safetensors")
    with Engine(tmp_path, activation="f32", threads=1) as engine:
        assert engine.config.context_length == engine.info()["context_length"] == 64
        (completion,) = engine.generate([1] * 60, SamplingParams(max_tokens=None))
        assert len(completion.token_ids) == 4 and completion.finish_reason == "length"
        assert engine.logits([1] * 64).shape == (64, 512)
        with pytest.raises(Error, match="found 64.*length is 64 tokens, prompt and output"):
            engine.generate([1] * 64)


def test_synthetic_model():
    with Engine("synthetic:tiny?layers=2&seed=1", threads=1) as engine:
        params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
        (completion,) = engine.generate([1, 2, 3], params)
        assert len(completion.token_ids) == 8
        assert np.isfinite(engine.logits([1, 2, 3])).all()


def test_loading_reports_progress(tiny_a):
    calls = []
    with Engine(tiny_a, threads=1, kv_bytes=1 << 20, progress=lambda *c: calls.append(c)):
        pass
    done = [done for done, _ in calls]
    assert done == sorted(done) and calls[-1][0] == calls[-1][1]


def test_open_errors(tmp_path):
    with pytest.raises(Error, match="no-such-model"):
        Engine(tmp_path / "no-such-model")


def test_default_cache_is_bounded(tiny_a):
    with Engine(tiny_a, threads=1) as engine:
        info = engine.info()
    # At most 16 sequences of the full context length, at least one of 4096 tokens.
    assert 4096 <= info["kv_tokens"] <= 16.4 * info["context_length"]
