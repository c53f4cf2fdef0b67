"""When a text may end: min_tokens, and stop strings that are part of it."""

import pytest
from fake_engine import settle

from gptoss import Engine, Grammar, SamplingParams
from gptoss.engine.text import StopMatcher


@pytest.fixture(scope="module")
def engine():
    with Engine(activation="f32", kv_bytes=32 << 20, threads=1) as engine:
        yield engine
        settle(engine)


@pytest.fixture(scope="module")
def likely_end(engine):
    return {min(engine.tokenizer.eos_ids): 100.0}


@pytest.mark.parametrize("fewest", [0, 1, 2, 9])
def test_no_end_token_before(engine, likely_end, fewest):
    params = SamplingParams(logit_bias=likely_end, min_tokens=fewest, max_tokens=20, n=2, seed=4)
    for done in engine.generate("Once", params):
        assert len(done.token_ids) == fewest + 1 and done.finish_reason == "stop"


def test_no_stop_token_before(engine):
    plain = SamplingParams(temperature=0, max_tokens=20)
    (free,) = engine.generate("Once upon", plain)
    stops = tuple(set(free.token_ids[:6]))
    (done,) = engine.generate(
        "Once upon",
        SamplingParams(temperature=0, max_tokens=20, stop_token_ids=stops, min_tokens=6),
    )
    assert len(done.token_ids) >= 7 and not set(done.token_ids[:6]) & set(stops)


def test_ignoring_the_end_forbids_nothing(engine, likely_end):
    """The end token is drawn, as it is without min_tokens."""
    params = SamplingParams(logit_bias=likely_end, min_tokens=5, max_tokens=5, ignore_eos=True)
    (done,) = engine.generate("Once", params)
    assert set(done.token_ids) == set(likely_end)


@pytest.mark.parametrize(("pattern", "tokens"), [("[ab]*", 8), ("a{3}", 0)])
def test_with_a_grammar(engine, likely_end, pattern, tokens):
    """One that allows nothing but the end ends the text all the same."""
    pytest.importorskip("llguidance", reason="the extra grammar is missing")
    grammar = Grammar.regex(pattern)
    params = SamplingParams(logit_bias=likely_end, min_tokens=7, max_tokens=20, grammar=grammar)
    (done,) = engine.generate("Once", params)
    assert len(done.token_ids) == tokens if tokens else done.text == "aaa"


@pytest.mark.parametrize("fewest", [0, 3, 10, 20])
@pytest.mark.parametrize("includes", [False, True])
def test_stop_strings(engine, fewest, includes):
    """The first that completes with the last of so many tokens, or later, ends the text."""
    plain = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    (free,) = engine.generate("Once upon", plain)
    texts = [engine.tokenizer.decode(free.token_ids[:i]) for i in range(31)]
    stop = "e"
    ends = next(i for i in range(max(1, fewest), 31) if stop in texts[i][len(texts[i - 1]) :])
    at = texts[ends].index(stop, len(texts[ends - 1]))
    (done,) = engine.generate(
        "Once upon",
        SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, stop=stop,
                       min_tokens=fewest, include_stop_str_in_output=includes),
    )  # fmt: skip
    assert done.finish_reason == "stop" and len(done.token_ids) == ends
    assert done.text == texts[ends][: at + len(stop) * includes]


def test_drafts_do_not_change_it():
    """Nor min_tokens what is drafted: a text that repeats itself, with and without."""
    found = []
    for speculation in (False, True):
        with Engine(activation="f32", kv_bytes=16 << 20, threads=1,
                    speculation=speculation) as engine:  # fmt: skip
            params = SamplingParams(temperature=0, max_tokens=40, min_tokens=20)
            found.append(engine.generate("the cat sat. the cat sat. the cat", params)[0].token_ids)
    assert found[0] == found[1]


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_stop_string_that_begins_too_early(cut):
    """It counts where it completes late enough, however the text is cut into pieces."""
    matcher = StopMatcher(("abcd",), includes=True)
    text = "xabcdyabcdz"
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    out, seen = "", 0
    for piece in pieces:
        seen += len(piece)
        new, stopped = matcher.push(piece, seen >= 6)
        out += new
        if stopped:
            break
    first = -(-5 // cut) * cut  # where the piece ends in which the first one completes
    assert stopped and out == ("xabcd" if first >= 6 else "xabcdyabcd")


def test_stopping_twice_in_what_was_passed_over():
    matcher = StopMatcher(("ab",))
    assert matcher.push("ab a", False) == ("ab ", False)
    assert matcher.push("b", True) == ("", True)
