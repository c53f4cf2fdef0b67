"""The engine above the fake backend: prompts, parameters, text, ends."""

import fake_backend as fake
import numpy as np
import pytest
from fake_engine import CONTEXT, END, PIECES, WINDOW, FakeTokenizer, make_engine, settle

from gptoss import Engine, Error, SamplingParams
from gptoss.request.params import derive_seed

GREEDY = SamplingParams(temperature=0, max_tokens=20)


@pytest.fixture
def engine():
    with make_engine() as engine:
        yield engine


def expected(prompt, count):
    return fake.reference_greedy(prompt, count, WINDOW)


def text_of(ids):
    return b"".join(PIECES[i] for i in ids).decode(errors="replace")


# Prompts.


def test_one_text(engine):
    (completion,) = engine.generate("hello", GREEDY)
    prompt = FakeTokenizer().encode("hello")
    assert completion.token_ids == expected(prompt, 20)
    assert completion.text == text_of(completion.token_ids)
    assert completion.finish_reason == "length"
    assert completion.logprobs is None
    assert (completion.prompt_index, completion.index) == (0, 0)
    assert completion.timing.prompt_tokens == 5 and completion.timing.completion_tokens == 20
    settle(engine)


@pytest.mark.parametrize(
    "ids", [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), np.array([1, 2, 3], np.uint8)]
)
def test_token_ids_are_one_prompt(engine, ids):
    (completion,) = engine.generate(ids, GREEDY)
    assert completion.token_ids == expected([1, 2, 3], 20)


def test_many_prompts_keep_their_order(engine):
    prompts = ["abc", [4, 5], np.array([6]), "x" * 100]
    completions = engine.generate(prompts, GREEDY)
    assert [c.prompt_index for c in completions] == [0, 1, 2, 3]
    for completion, ids in zip(completions, ([0, 1, 2], [4, 5], [6], [23] * 100), strict=True):
        assert completion.token_ids == expected(ids, 20)


def test_parameters_for_each_prompt(engine):
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 5, 9)]
    completions = engine.generate(["a", "b", "c"], params)
    assert [len(c.token_ids) for c in completions] == [1, 5, 9]


def test_no_prompts(engine):
    assert engine.generate([]) == []


def test_empty_text_begins_a_document(engine):
    (completion,) = engine.generate("", GREEDY)
    assert completion.token_ids == expected([END], 20)
    assert completion.timing.prompt_tokens == 1


def test_empty_text_without_a_start_token(engine, monkeypatch):
    monkeypatch.setattr(engine.tokenizer, "special_tokens", {})
    with pytest.raises(Error, match="empty.*no token that begins"):
        engine.stream("")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([50], "from 0 to 49, found 50.*position 0"),
        ([1, -1], "found -1.*position 1"),
        ([1, 2.0], "found 2.0"),
        ([1, True], "found True"),
        ([1, "a"], "found 'a'"),
        (np.array([1.0]), "float64"),
        (b"abc", "bytes"),
        (5, "int"),
        (None, "NoneType"),
        ({1: 2}, "dict"),
        ("a\ud800", "lone surrogate at index 1"),
        (
            [0] * CONTEXT,
            f"at most {CONTEXT - 1} tokens, found {CONTEXT}.*length is {CONTEXT} tokens",
        ),
    ],
)
def test_bad_prompts(engine, prompt, message):
    for call, fields in ((engine.stream, {"prompt"}), (engine.generate, {"prompt", "prompts"})):
        with pytest.raises(Error, match=message) as caught:
            call(prompt, GREEDY)
        assert caught.value.field in fields
    settle(engine)


def test_a_bad_prompt_among_many_is_named_and_nothing_runs(engine):
    with pytest.raises(Error, match="prompt 2 of 3: .*found 99") as caught:
        engine.generate(["a", "b", [99]], GREEDY)
    assert caught.value.field == "prompt"
    with pytest.raises(Error, match="prompt 1 of 2: logprobs") as caught:
        engine.generate(["a", "b"], [GREEDY, SamplingParams(logprobs=51)])
    assert caught.value.field == "logprobs"
    assert engine.fake.steps == []


def test_empty_ids(engine):
    for call, field in ((engine.stream, "prompt"), (engine.logits, "token_ids")):
        with pytest.raises(Error, match="at least one") as caught:
            call([])
        assert caught.value.field == field
    with pytest.raises(Error, match="prompt 1 of 2: .*at least one"):
        engine.generate([[1], []], GREEDY)


@pytest.mark.parametrize("params", [5, "x", [GREEDY], {"max_tokens": 5}])
def test_bad_params(engine, params):
    with pytest.raises(Error, match="params: expected") as caught:
        engine.generate(["a", "b"], params)
    assert caught.value.field == "params"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(logit_bias={50: 1.0}), "logit_bias.*0 to 49, found 50"),
        (SamplingParams(stop_token_ids=[50]), "stop_token_ids.*0 to 49, found 50"),
        (SamplingParams(logprobs=51), "logprobs: expected at most 50, found 51"),
    ],
)
def test_params_beyond_the_vocabulary(engine, params, message):
    with pytest.raises(Error, match=message) as caught:
        engine.stream("a", params)
    assert caught.value.field and message.startswith(caught.value.field)


# Ends.


def test_stops_at_the_context_end(engine):
    prompt = [i % 40 for i in range(CONTEXT - 7)]
    for most in (None, 100):
        (completion,) = engine.generate(
            prompt, SamplingParams(temperature=0, max_tokens=most, ignore_eos=True)
        )
        assert len(completion.token_ids) == 7 and completion.finish_reason == "length"
    (completion,) = engine.generate([1] * (CONTEXT - 1), GREEDY)
    assert len(completion.token_ids) == 1


def test_end_token(engine):
    bias = {END: 100.0}
    (completion,) = engine.generate("abc", SamplingParams(temperature=0, logit_bias=bias))
    assert completion.token_ids == [END] and completion.text == ""
    assert completion.finish_reason == "stop"
    (completion,) = engine.generate(
        "abc", SamplingParams(temperature=0, logit_bias=bias, ignore_eos=True, max_tokens=3)
    )
    assert completion.token_ids == [END] * 3 and completion.finish_reason == "length"
    assert completion.text == "<|endoftext|>" * 3


def test_stop_token(engine):
    plain = expected([1, 2], 20)
    stop = plain[6]
    (completion,) = engine.generate(
        [1, 2], SamplingParams(temperature=0, max_tokens=20, stop_token_ids=[stop])
    )
    cut = plain.index(stop)
    assert completion.token_ids == plain[: cut + 1]
    assert completion.text == text_of(plain[:cut])
    assert completion.finish_reason == "stop"


def test_stop_string_across_tokens():
    spoken = [PIECES.index(p) for p in (b"the", b"\n", b"u", b"s", b"e", b"x", b"\n", b"u", b"s")]
    with make_engine(backend=Parrot(spoken)) as engine:
        for stop, text in (
            ("e\nu", "th"),
            ("sex", "the\nu"),
            (["\nus", "x\n"], "the"),
            ("\nusx", "the\nusex\nus"),
        ):
            params = SamplingParams(temperature=0, max_tokens=len(spoken), stop=stop)
            deltas = list(engine.stream("a", params))
            assert "".join(d.text for d in deltas) == text
            stopped = text != "the\nusex\nus"
            assert deltas[-1].finish_reason == ("stop" if stopped else "length")
            assert all(d.finish_reason is None for d in deltas[:-1])


def test_text_is_whole_characters():
    spoken = [PIECES.index(p) for p in (b"\xc3", b"\xa9", b"\xe6\x97", b"\xa5", b"\xe6\x97", b"a")]
    with make_engine(backend=Parrot(spoken)) as engine:
        deltas = list(engine.stream("a", SamplingParams(temperature=0, max_tokens=6)))
        assert [d.text for d in deltas] == ["", "é", "", "日", "", "\ufffda"]
        (cut,) = engine.generate("a", SamplingParams(temperature=0, max_tokens=3))
        assert cut.text == "é\ufffd"


class Parrot(fake.FakeBackend):
    """Says the same tokens whatever it is given; a position's token follows from its distance."""

    def __init__(self, tokens):
        super().__init__(WINDOW)
        self._tokens = tokens

    def step(self, token_ids, seq_start, context_len, *args, **kwargs):
        out = super().step(token_ids, seq_start, context_len, *args, **kwargs)
        out.tokens[:] = [self._tokens[int(n) - 1] for n in context_len]
        return out


# Sampling.


def test_seeded_runs_repeat(engine):
    params = SamplingParams(seed=7, max_tokens=30, ignore_eos=True)
    first, again = (engine.generate("abc", params)[0].token_ids for _ in range(2))
    beside = engine.generate(["abc", "abd", "abe" * 20], params)[0].token_ids
    streamed = [t for d in engine.stream("abc", params) for t in d.token_ids]
    assert first == again == beside == streamed
    other = SamplingParams(seed=8, max_tokens=30, ignore_eos=True)
    assert engine.generate("abc", other)[0].token_ids != first


def test_without_a_seed_runs_differ(engine):
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    runs = {tuple(c.token_ids) for c in engine.generate(["abc"] * 5, params)}
    assert len(runs) == 5


def test_choices(engine):
    params = SamplingParams(seed=7, n=3, max_tokens=15, ignore_eos=True)
    completions = engine.generate(["abc", "xyz"], params)
    assert [(c.prompt_index, c.index) for c in completions] == [
        (p, i) for p in range(2) for i in range(3)
    ]
    for c in completions:
        alone = SamplingParams(seed=derive_seed(7, c.index), max_tokens=15, ignore_eos=True)
        prompt = ("abc", "xyz")[c.prompt_index]
        assert c.token_ids == engine.generate(prompt, alone)[0].token_ids
    by_index = {0: [], 1: [], 2: []}
    for delta in engine.stream("abc", params):
        by_index[delta.index] += delta.token_ids
    assert list(by_index.values()) == [c.token_ids for c in completions[:3]]


def test_logprobs(engine):
    params = SamplingParams(seed=1, max_tokens=5, logprobs=3, ignore_eos=True)
    (completion,) = engine.generate("abc", params)
    tokens = [0, 1, 2]
    assert len(completion.logprobs) == 5
    for entry, token in zip(completion.logprobs, completion.token_ids, strict=True):
        logits = fake.expected_logits(tokens, len(tokens) - 1, WINDOW).astype(np.float64)
        logprobs = logits - np.logaddexp.reduce(logits)
        assert entry.token_id == token and entry.bytes == PIECES[token]
        assert entry.logprob == pytest.approx(logprobs[token], abs=1e-5)
        assert [top.token_id for top in entry.top] == np.argsort(-logprobs)[:3].tolist()
        assert [top.logprob for top in entry.top] == pytest.approx(np.sort(logprobs)[:-4:-1])
        tokens.append(token)


def test_logprobs_of_the_chosen_alone(engine):
    deltas = list(engine.stream("abc", SamplingParams(max_tokens=3, logprobs=0, seed=1)))
    assert all(len(d.logprobs) == 1 and d.logprobs[0].top == () for d in deltas)


def test_requests_with_and_without_logprobs_share_steps(engine):
    params = [SamplingParams(temperature=0, max_tokens=6, logprobs=n) for n in (None, 0, 5, 2)]
    completions = engine.generate([[1], [1], [1], [1]], params)
    assert [c.logprobs and len(c.logprobs[0].top) for c in completions] == [None, 0, 5, 2]
    assert len({tuple(c.token_ids) for c in completions}) == 1


def test_penalties_and_bias_reach_the_sampler(engine):
    plain = expected([1, 2, 3], 12)
    banned = dict.fromkeys(plain[:1], -100.0)
    runs = [
        engine.generate([1, 2, 3], SamplingParams(temperature=0, max_tokens=12, **options))[0]
        for options in (
            {},
            {"logit_bias": banned},
            {"presence_penalty": 2.0},
            {"frequency_penalty": 2.0},
            {"repetition_penalty": 5.0},
        )
    ]
    assert runs[0].token_ids == plain
    assert plain[0] not in runs[1].token_ids
    tokens = [1, 2, 3]  # the repetition penalty, worked out by hand
    for token in runs[4].token_ids:
        x = fake.expected_logits(tokens, len(tokens) - 1, WINDOW).astype(np.float64)
        for seen in set(tokens):
            x[seen] = x[seen] / 5 if x[seen] > 0 else x[seen] * 5
        assert token == x.argmax()
        tokens.append(token)
    for run, once in ((runs[2], True), (runs[3], False)):
        tokens = [1, 2, 3]
        for token in run.token_ids:
            x = fake.expected_logits(tokens, len(tokens) - 1, WINDOW).astype(np.float64)
            for seen in set(tokens[3:]):
                x[seen] -= 2.0 * (1 if once else tokens[3:].count(seen))
            assert token == x.argmax()
            tokens.append(token)


# Logits.


@pytest.mark.parametrize("length", [1, 16, 17, CONTEXT])
def test_logits(engine, length):
    ids = [(3 * i) % 50 for i in range(length)]
    logits = engine.logits(ids)
    assert logits.shape == (length, 50) and logits.dtype == np.float32
    for position in (0, length // 2, length - 1):
        assert (logits[position] == fake.expected_logits(ids, position, WINDOW)).all()
    settle(engine)


def test_logits_of_too_many(engine):
    with pytest.raises(Error, match=f"at most {CONTEXT}.*found {CONTEXT + 1}"):
        engine.logits([1] * (CONTEXT + 1))


# Without a vocabulary, with little memory, with wrong options.


def test_without_a_tokenizer_ids_still_work():
    with make_engine(tokenizer=False) as engine:
        (completion,) = engine.generate([1, 2, 3], GREEDY)
        assert completion.token_ids == expected([1, 2, 3], 20) and completion.text == ""
        for call in (
            lambda: engine.generate("abc"),
            lambda: engine.stream([1], SamplingParams(stop="a")),
            lambda: engine.tokenizer,
        ):
            with pytest.raises(Error, match="tokenizer: there is none"):
                call()


def test_little_memory_changes_nothing():
    prompts = [[i, i + 1, i + 2] * (1 + i) for i in range(10)]
    params = SamplingParams(seed=3, max_tokens=60, ignore_eos=True)
    with make_engine() as roomy, make_engine(pages=18, step_tokens=16, max_batch=16) as tight:
        wanted = [c.token_ids for c in roomy.generate(prompts, params)]
        assert [c.token_ids for c in tight.generate(prompts, params)] == wanted
        assert tight.info()["preemptions"] > 0
        settle(tight)


def test_what_never_fits_is_refused_at_once():
    with make_engine(pages=10) as engine:
        tokens = engine.info()["kv_tokens"]
        with pytest.raises(Error, match=f"pages of KV cache.*enough for {tokens} tokens"):
            engine.stream("abc", SamplingParams(max_tokens=300))
        with pytest.raises(Error, match="pages of KV cache"):
            engine.logits([1] * 300)
        (completion,) = engine.generate(
            "abc", SamplingParams(max_tokens=None, ignore_eos=True, temperature=0)
        )
        assert completion.finish_reason == "length"
        assert len(completion.token_ids) == tokens + 1 - 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_bytes": 1999}, "kv_bytes: expected at least 2000.*found 1999"),
        ({"kv_bytes": 0}, "kv_bytes"),
        ({"kv_bytes": "1G"}, "kv_bytes"),
        ({"threads": 0}, "threads"),
        ({"threads": True}, "threads"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": 600}, "max_batch: expected 1 to 512"),
        ({"step_tokens": 0}, "step_tokens"),
        ({"activation": "fp8"}, "activation: expected 'bf16' or 'f32', found 'fp8'"),
        ({"device": "tpu"}, r"device: expected 'auto' or one of \['cpu', 'cuda'\], found 'tpu'"),
        ({"device": "cuda"}, "device: 'cuda' is not available: no device was found"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(Error, match=message) as caught:
        make_engine(**options)
    assert [caught.value.field] == list(options)


def test_info(engine):
    info = engine.info()
    assert info["backend"] == "fake" and info["context_length"] == CONTEXT
    assert info["kv_pages"] == info["kv_pages_free"] == 400
    assert info["running"] == info["waiting"] == info["steps"] == 0


def test_bundled_model_is_the_default(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "gptoss.engine.load.open_checkpoint", lambda path: seen.append(path) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        Engine()
    assert seen[0].parts[-3:] == ("gptoss", "bundled", "nano")
