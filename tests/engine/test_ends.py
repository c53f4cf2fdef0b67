"""Where a text ends: not before `min_tokens`, and with its stop string or without."""

import pytest
from fake_engine import settle

from gptoss import Engine, Grammar, SamplingParams

PROMPT = [10, 20, 30]


@pytest.fixture(scope="module")
def engine(tiny_a_words):
    with Engine(tiny_a_words, activation="f32", kv_bytes=64 << 20, threads=1) as engine:
        yield engine
        settle(engine)


def write(engine, **options):
    return engine.generate([PROMPT], SamplingParams(**{"seed": 3, "max_tokens": 40, **options}))


def pushed(engine):
    """The model's end tokens, made likely enough to come at once."""
    eos = engine.tokenizer.eos_ids
    assert eos
    return dict.fromkeys(eos, 100.0)


@pytest.mark.parametrize("least", [1, 2, 17])
@pytest.mark.parametrize("n", [1, 3])
def test_end_tokens_come_after_so_many_others(engine, least, n):
    bias, eos = pushed(engine), engine.tokenizer.eos_ids
    for done in write(engine, logit_bias=bias, min_tokens=least, n=n):
        assert done.finish_reason == "stop"
        *before, last = done.token_ids
        assert len(before) == least and last in eos and not eos & set(before)
    for done in write(engine, logit_bias=bias, n=n):
        assert len(done.token_ids) == 1


def test_stop_tokens_are_end_tokens(engine):
    (free,) = write(engine, temperature=0, ignore_eos=True)
    stop = free.token_ids[0]
    (done,) = write(engine, temperature=0, stop_token_ids=[stop], ignore_eos=True)
    assert done.token_ids == [stop] and done.finish_reason == "stop"
    (done,) = write(engine, temperature=0, stop_token_ids=[stop], ignore_eos=True, min_tokens=6)
    assert stop not in done.token_ids[:6] and len(done.token_ids) >= 6


def test_a_grammar_that_is_over_ends_all_the_same(engine):
    pytest.importorskip("llguidance")
    (done,) = write(engine, grammar=Grammar.choice(["ab"]), min_tokens=30)
    assert done.text == "ab" and done.finish_reason == "stop"
    # One that may go on does, up to the least number and no further than it must.
    (done,) = write(engine, grammar=Grammar.regex("[a-c]*"), min_tokens=12,
                    logit_bias=pushed(engine))  # fmt: skip
    assert len(done.token_ids) == 13 and set(done.text) <= set("abc")


def test_stop_strings_before_the_least_number_are_text(engine):
    (free,) = write(engine, ignore_eos=True)
    stop = free.text[0]
    assert write(engine, ignore_eos=True, stop=stop)[0].text == ""
    (done,) = write(engine, ignore_eos=True, stop=stop, min_tokens=10)
    assert free.text.startswith(done.text) and done.text.startswith(stop)
    assert len(done.token_ids) >= 10


@pytest.mark.parametrize("streams", [False, True])
def test_a_stop_string_is_in_the_text_where_it_is_wanted(engine, streams):
    (free,) = write(engine, ignore_eos=True)
    stop = free.text[6:9]
    end = free.text.index(stop)
    for includes, text in ((False, free.text[:end]), (True, free.text[: end + len(stop)])):
        options = {"seed": 3, "max_tokens": 40, "ignore_eos": True, "stop": stop,
                   "include_stop_str_in_output": includes}  # fmt: skip
        params = SamplingParams(**options)
        if streams:
            found = "".join(delta.text for delta in engine.stream(PROMPT, params))
        else:
            found = engine.generate([PROMPT], params)[0].text
        assert found == text


def test_a_grammar_ends_its_text_whatever_is_said_of_end_tokens(engine):
    params = SamplingParams(
        max_tokens=40, ignore_eos=True, grammar=Grammar.choice(["a", "ab"]), seed=1, n=8
    )
    for found in engine.generate("Once", params):
        assert found.text in ("a", "ab") and found.finish_reason == "stop"
