"""Texts that must fit a grammar, written by a model that knows nothing of it."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import settle
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss import Engine, Error, Grammar, SamplingParams
from gptoss.engine.constraint import GrammarVocabulary
from gptoss.request import load_llguidance

pytest.importorskip("llguidance", reason="the extra grammar is missing")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine():
    with Engine(activation="f32", kv_bytes=32 << 20, threads=1) as engine:
        yield engine


def texts(engine, grammar, prompt="Once upon a time", *, finished=True, **options):
    """What is written under a grammar, with several seeds, and greedily."""
    found = []
    for own in ({"temperature": 0}, {"seed": 1}, {"seed": 2, "temperature": 3.0}):
        params = SamplingParams(**{"max_tokens": 200, "grammar": grammar, **own, **options})
        (completion,) = engine.generate(prompt, params)
        assert completion.finish_reason == ("stop" if finished else "length")
        found.append(completion.text)
    settle(engine)
    return found


def test_json_that_fits_a_schema(engine):
    for text in texts(engine, Grammar.json(PERSON)):
        found = json.loads(text)
        assert set(found) == {"name", "age", "tags"} and 0 <= found["age"] <= 150
        assert len(found["name"]) <= 12 and set(found["tags"]) <= {"a", "b"}


def test_a_schema_as_text_and_any_object(engine):
    assert Grammar.json(json.dumps(PERSON)) == Grammar.json(PERSON)
    (completion,) = engine.generate(
        "A", SamplingParams(grammar=Grammar.json(), max_tokens=40, seed=1)
    )
    assert completion.text.lstrip().startswith("{")


@pytest.mark.parametrize(
    "pattern", [r"\d{4}-\d\d-\d\d", r"(yes|no)/[a-f]{2,5}", r"\\/é+\n.", "a", r"[\d/]+x"]
)
def test_regular_expressions(engine, pattern):
    bounded = pattern.replace("+", "{1,9}")
    for text in texts(engine, Grammar.regex(bounded)):
        assert re.fullmatch(bounded, text)


def test_choices(engine):
    options = ["yes", 'no "really"', "maybe\nnot", "never"]
    assert set(texts(engine, Grammar.choice(options))) <= set(options)
    bias = {engine.tokenizer.encode("y")[0]: 100.0}
    assert set(texts(engine, Grammar.choice(options), logit_bias=bias)) == {"yes"}


def test_a_grammar_is_checked_once(monkeypatch):
    """The requests of a conversation have the same tools; of many, checking takes a while."""
    library, checked = load_llguidance(), []

    def validate(source, **limits):
        checked.append(source)
        return library.LLMatcher.validate_grammar(source, **limits)

    matcher = SimpleNamespace(
        validate_grammar=validate, grammar_from_lark=library.LLMatcher.grammar_from_lark
    )
    counted = SimpleNamespace(LLMatcher=matcher, LLParserLimits=library.LLParserLimits)
    monkeypatch.setattr("gptoss.request.grammar.load_llguidance", lambda: counted)
    good, bad = "start: /one of a kind/", "start: nothing of this kind"
    for _ in range(3):
        assert Grammar.lark(good) == Grammar.lark(good, what="grammar")
        with pytest.raises(Error):
            Grammar.lark(bad)
    assert len(checked) == 2


def test_lark(engine):
    grammar = Grammar.lark('start: word ("," word){2}\nword: /[a-z]{1,5}/')
    for text in texts(engine, grammar):
        assert re.fullmatch(r"[a-z]{1,5}(,[a-z]{1,5}){2}", text)


def test_a_text_that_is_cut_is_a_beginning(engine):
    for text in texts(engine, Grammar.regex("(ab){50}"), max_tokens=7, finished=False):
        assert text and ("ab" * 50).startswith(text)


def test_it_ends_where_nothing_can_follow(engine):
    """No token is drawn only to learn that the text is over."""
    (completion,) = engine.generate("x", SamplingParams(grammar=Grammar.choice(["a"])))
    assert completion.text == "a" and len(completion.token_ids) == 1


def test_logprobs_are_the_models_own(engine):
    params = SamplingParams(grammar=Grammar.choice(["zebra"]), logprobs=2, temperature=0)
    (completion,) = engine.generate("Once upon a", params)
    first = completion.logprobs[0]
    assert first.logprob < first.top[0].logprob  # it would have gone on otherwise


def test_several_grammars_share_a_step(engine):
    grammars = [Grammar.choice(["one"]), None, Grammar.regex("[xy]{20}"), Grammar.json(PERSON)]
    params = [SamplingParams(max_tokens=120, seed=i, grammar=g) for i, g in enumerate(grammars)]
    together = engine.generate(["Once"] * 4, params)
    apart = [engine.generate("Once", own)[0] for own in params]
    assert [c.text for c in together] == [c.text for c in apart]


def test_choices_of_one_request_do_not_share_their_state(engine):
    params = SamplingParams(grammar=Grammar.regex("[a-z]{3,9}!"), n=6, seed=3, max_tokens=40)
    found = [c.text for c in engine.generate("Once", params)]
    assert all(re.fullmatch("[a-z]{3,9}!", text) for text in found) and len(set(found)) > 1


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [
        (Grammar.json, '{"type": ', "json schema: expected JSON"),
        (Grammar.json, 5, "json schema: expected an object, found 5"),
        (Grammar.json, False, "false fits nothing"),
        (Grammar.json, {"type": "strange"}, "Invalid type: strange"),
        (Grammar.json, {"properties": 3}, "properties must be an object"),
        (Grammar.json, {"$ref": "http://127.0.0.1:9/"}, "json schema"),
        (Grammar.json, {"$ref": "#/nowhere"}, "json schema"),
        (Grammar.json, {"not": {}}, "not"),
        (Grammar.regex, "(", "regex"),
        (Grammar.regex, "(?=x)", "regex"),
        (Grammar.regex, None, "regex: expected a string"),
        (Grammar.choice, [], "choice: expected 1 to"),
        (Grammar.choice, "abc", "choice: expected"),
        (Grammar.choice, ["a", 5], "choice: expected"),
        (Grammar.choice, ["a"] * 2000, "choice: expected"),
        (Grammar.lark, "begin: a", "grammar"),
        (Grammar.lark, "start: %json {", "grammar"),
        (Grammar.lark, "x" * (2 << 20), "expected at most"),
        (Grammar.lark, b"start: /a/", "expected a string"),
    ],
)
def test_what_is_no_grammar(make, value, message):
    with pytest.raises(Error, match=re.escape(message)):
        make(value)


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


BOMBS = {
    "deep": nested(400),
    "combinations": {
        "allOf": [
            {"anyOf": [{"required": [f"p{i}_{j}"]} for j in range(6)]} for i in range(12)
        ]
    },
    "doubling": {
        "$defs": {
            **{f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)},
            "d60": {"type": "string"},
        },
        "$ref": "#/$defs/d0",
    },
    "itself": {"$ref": "#"},
    "round": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a",
    },
    "pattern": {"type": "string", "pattern": "((a{1,999}){1,999}){1,999}"},
    "huge": {"type": "array", "minItems": 10**9, "items": {"type": "string", "minLength": 10**6}},
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_in_an_error_or_in_a_text(engine, name):
    """Neither memory nor time runs out, and others go on."""
    try:
        grammar = Grammar.json(BOMBS[name])
        engine.generate("x", SamplingParams(grammar=grammar, max_tokens=5, seed=1))
    except Error as error:
        assert len(str(error)) < 1000
    assert engine.generate("x", SamplingParams(max_tokens=2, ignore_eos=True))[0].token_ids


def test_a_special_token_that_there_is_not(engine):
    with pytest.raises(Error, match="unknown special token"):
        engine.generate("x", SamplingParams(grammar=Grammar.lark("start: <|nope|>")))


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}])
def test_a_schema_of_nothing_but_itself_is_refused_before_anything_runs(engine, schema):
    steps = engine.info()["steps"]
    with pytest.raises(Error, match="json schema: .*no text can begin") as caught:
        engine.stream("x", SamplingParams(grammar=Grammar.json(schema)))
    assert caught.value.field == "grammar" and engine.info()["steps"] == steps


def test_params_want_a_grammar():
    with pytest.raises(Error, match=re.escape("grammar: expected a gptoss.Grammar")):
        SamplingParams(grammar="start: /a/")


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30), other=st.text(max_size=10))
def test_a_mask_never_forbids_what_fits(engine, text, other):
    """Token by token, the tokens of a text that fits are allowed, and the end only at its end."""
    assume_texts = sorted({text + "x", other + "y"})
    grammar = Grammar.choice(assume_texts)
    words = GrammarVocabulary(engine.tokenizer, engine.config.vocab_size, engine.tokenizer.eos_ids)
    for wanted in assume_texts:
        if "\ud800" <= max(wanted) <= "\udfff":
            continue
        state = words.compile(grammar).begin()
        for token in engine.tokenizer.encode(wanted):
            mask = state.mask()
            assert mask.dtype == np.uint32 and mask[token // 32] >> (token % 32) & 1
            assert not state.ended
            state.push(token)
        eos = min(engine.tokenizer.eos_ids)
        assert state.ended or state.mask()[eos // 32] >> (eos % 32) & 1
