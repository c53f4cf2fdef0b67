"""Configuration, vocabulary, harmony and modes, each check by itself."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gptoss import Engine, EngineOptions
from gptoss.chat import HarmonyChat
from gptoss.checkpoint import BUNDLED_MODEL, PRESETS
from gptoss.eval import config_check, harmony_check, text_check
from gptoss.eval.harmony_check import efforts, tool_call
from gptoss.eval.modes_check import BOUND, Modes
from gptoss.eval.outcome import Skipped
from gptoss.eval.report import anonymous, block
from gptoss.eval.session import Session
from gptoss.eval.texts import PROSE
from gptoss.eval.tokenizer_check import lost, lost_special, unlike_published
from gptoss.request import Completion, Timing
from gptoss.tokenizer import Tokenizer, load_tokenizer
from gptoss.tokenizer.vocabulary import Vocabulary, read_rank_directory

PUBLISHED = PRESETS["gpt-oss-20b"]


@pytest.fixture(scope="module")
def nano_words() -> Tokenizer:
    """Of the bundled model; it has harmony's special tokens."""
    return load_tokenizer(BUNDLED_MODEL, SimpleNamespace(vocab_size=4096))


@pytest.fixture(scope="module")
def harmony_words() -> Tokenizer:
    if "TIKTOKEN_ENCODINGS_BASE" not in os.environ:
        pytest.skip("TIKTOKEN_ENCODINGS_BASE does not name a folder with o200k_base.tiktoken")
    return load_tokenizer(None, SimpleNamespace(vocab_size=201_088))


def of(config, layout: str = "huggingface") -> Session:
    """A session of a model of which there is nothing but the configuration."""
    session = Session(EngineOptions("synthetic:tiny"))
    session.open()
    session.source.config, session.source.layout = config, layout
    return session


# The configuration.


def test_the_published_configuration():
    found = config_check.check_config(of(PUBLISHED))
    assert not found.failed and found.figures == {"published": "gpt-oss-20b", "differences": []}


def test_a_value_unlike_the_published_one_is_named():
    found = config_check.check_config(of(replace(PUBLISHED, rope_theta=10_000.0)))
    assert found.failed
    assert found.line == "unlike gpt-oss-20b: rope_theta: expected 150000.0, found 10000.0"


def test_another_shape_is_a_model_of_its_own():
    session = of(replace(PUBLISHED, num_hidden_layers=12))
    assert not config_check.check_config(session).failed and session.preset is None
    assert of(PUBLISHED).published and not of(PUBLISHED, "synthetic").published


# The vocabulary.


def changed(**changes) -> Tokenizer:
    found = read_rank_directory(BUNDLED_MODEL, 4096)
    assert isinstance(found, Vocabulary)
    return Tokenizer(replace(found, **changes))


def test_nothing_is_lost(nano_words, harmony_words):
    for tokenizer in (nano_words, harmony_words):
        assert lost(tokenizer) == [] and lost_special(tokenizer) == []
    assert unlike_published(harmony_words) == []


def test_a_decoder_that_loses_blanks(nano_words, monkeypatch):
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decode(self, ids).strip())
    assert any("a text does not come back" in line for line in lost(nano_words))


def test_a_special_token_that_plain_text_becomes():
    tokenizer = changed(special_tokens={}, plain_tokens={"<|start|>": 4092})
    tokenizer.special_tokens = {"<|start|>": 4092}
    assert lost_special(tokenizer) == [
        "special token '<|start|>': expected plain text to be no such token"
    ]


def test_another_vocabulary_is_not_the_published_one(nano_words):
    found = unlike_published(nano_words)
    assert any(line.startswith("ids of 'Hello, world!': expected [13225, 11") for line in found)
    assert any(line.startswith("vocabulary: expected sha256 446a9538") for line in found)


# Harmony, with answers that are given.


class Scripted:
    """An engine that writes what it is told to, one text after another."""

    def __init__(self, tokenizer: Tokenizer, *texts: str) -> None:
        self.tokenizer, self.texts, self.prompts = tokenizer, list(texts), []

    def generate(self, prompt, params):
        self.prompts.append(self.tokenizer.decode(prompt))
        ids = self.tokenizer.encode(self.texts.pop(0), "all")[: params.max_tokens]
        return [Completion("", ids, "stop", None, Timing(len(prompt), len(ids), 0, 0, 0))]


CALL = (
    "<|channel|>analysis<|message|>Weather.<|end|><|start|>assistant<|channel|>commentary"
    ' to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>'
)
ANSWER = "<|channel|>final<|message|>It is 21 °C and clear in Paris.<|return|>"


def spoken(tokenizer: Tokenizer, *texts: str):
    engine = Scripted(tokenizer, *texts)
    return engine, tool_call(engine, HarmonyChat(tokenizer))


def test_a_call_and_its_answer(nano_words):
    engine, found = spoken(nano_words, CALL, ANSWER)
    assert not found.failed, found.line
    assert "get_weather" in engine.prompts[0] and "Reasoning: low" in engine.prompts[0]
    assert engine.prompts[1].endswith(
        f"<|start|>functions.get_weather<|channel|>commentary<|message|>{harmony_check.SAID}"
        "<|end|><|start|>assistant"
    )
    assert [each["channel"] for each in found.figures["messages"]] == [
        "analysis", "commentary", "final"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([ANSWER], "expected a call of get_weather, found none"),
        ([CALL.replace("get_weather", "get_time")], "found functions.get_time"),
        ([CALL.replace("Paris", "Rome")], 'found functions.get_weather({"city": "Rome"})'),
        ([CALL.replace('{"city": "Paris"}', "Paris")], "found functions.get_weather(Paris)"),
        ([CALL, ANSWER.replace("21", "19")], "expected 21 in it"),
        ([CALL, CALL], "expected 21 in it"),
    ],
)
def test_calls_that_are_wrong(nano_words, texts, message):
    _, found = spoken(nano_words, *texts)
    assert found.failed and message in found.line


def thought(text: str, answer: str) -> str:
    return (
        f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant<|channel|>final<|message|>"
        f"{answer}<|return|>"
    )


@pytest.mark.parametrize(
    ("low", "high", "failed"),
    [
        (thought("Easy.", "391"), thought("17 * 20 = 340, 17 * 3 = 51.", "391"), False),
        (thought("Easy.", "391"), thought("17 * 20 = 340. " * 200, "391"), False),  # cut
        (thought("Easy.", "391"), thought("Hm.", "381"), True),
        ("no harmony at all", thought("Hm.", "391"), True),
    ],
)
def test_efforts(nano_words, low, high, failed):
    engine = Scripted(nano_words, low, high)
    found = efforts(engine, HarmonyChat(nano_words))
    assert found.failed is failed, found.line
    assert ["Reasoning: low" in engine.prompts[0], "Reasoning: high" in engine.prompts[1]] == [
        True, True
    ]  # fmt: skip


# Text and modes.


class Constant:
    """An engine that has one token for everything."""

    def logits(self, ids):
        return np.zeros((len(ids), 4096), np.float32)

    def generate(self, ids, params):
        return [Completion("aaa", [7] * params.max_tokens, "length", None, Timing(1, 1, 0, 0, 0))]


def test_one_token_for_ever_is_a_collapse(monkeypatch):
    session = Session(EngineOptions(BUNDLED_MODEL))
    monkeypatch.setattr(session, "engine", Constant)
    found = text_check.check_continuations(session)
    assert found.failed and found.line.startswith("3 of 3 continuations are one token")
    session.close()


@pytest.mark.parametrize(("nats", "failed"), [(1.0, False), (9.0, True)])
def test_published_weights_know_the_text(monkeypatch, nats, failed):
    session = Session(EngineOptions(BUNDLED_MODEL))
    session.open()

    class Knows:
        def score(self, prompt, ids):
            class Found(list):
                total = -nats * len(ids)

            return Found(ids)

    monkeypatch.setattr(session, "engine", Knows)
    monkeypatch.setattr(Session, "published", True)
    assert text_check.check_perplexity(session).failed is failed
    session.close()


def test_a_mode_far_from_f32_fails(monkeypatch):
    session = Session(EngineOptions(BUNDLED_MODEL))
    modes = Modes(session)
    with pytest.raises(Skipped, match="no f32 logits"):
        modes.mode("kl q8")
    assert not modes.exact().failed
    assert modes.names == ["kl bf16", "kl q8", "kl int8"]
    engine = session.engine
    rolled = SimpleNamespace(logits=lambda ids: np.roll(engine(kv="int8").logits(ids), 1, axis=-1))
    monkeypatch.setattr(session, "engine", lambda **options: rolled)
    found = modes.mode("kl int8")
    assert found.failed and found.figures["kl"] > 1
    monkeypatch.undo()
    assert not modes.mode("kl int8").failed
    session.close()


def test_a_gpu_is_compared_with_f32_on_the_cpu():
    session = Session(EngineOptions(BUNDLED_MODEL))
    session.options = replace(session.options, device="cuda")
    assert Modes(session).names == ["kl cuda", "kl bf16", "kl q8", "kl int8"]
    assert {*Modes(session).names} == {*BOUND}
    session.close()


def test_the_mode_that_is_open_is_not_loaded_again(monkeypatch):
    session = Session(EngineOptions(BUNDLED_MODEL))
    modes, opened = Modes(session), []
    session.engine()
    load = Engine.from_options
    monkeypatch.setattr(
        Engine,
        "from_options",
        lambda options, *more: opened.append(options) or load(options, *more),
    )
    modes.exact()
    modes.mode("kl bf16")
    assert [options.activation for options in opened] == ["f32"]
    session.close()


def test_one_engine_at_a_time():
    session = Session(EngineOptions(BUNDLED_MODEL))
    first = session.engine()
    assert session.engine() is first and session.is_open()
    second = session.engine(activation="f32")
    assert second is not first and not session.is_open()
    with pytest.raises(Exception, match="closed"):
        first.logits([1])
    session.close()


def test_a_model_that_the_memory_does_not_hold(monkeypatch):
    session = Session(EngineOptions(BUNDLED_MODEL))
    monkeypatch.setattr("gptoss.eval.session.available_memory", lambda: 1_000_000)
    with pytest.raises(ValueError, match="memory: expected 0.0 GB free"):
        session.engine()
    with pytest.raises(Skipped, match="did not load"):
        session.engine()
    session.close()


# The report.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/somebody/models/x: expected", "~/models/x: expected"),
        ("/Users/somebody", "~"),
        (r"C:\Users\Some\x", r"~\x"),
        ("/root/y and /rootfs", "~/y and /rootfs"),
        ("/data/jane-doe/m, jane-does", "/data/USER/m, jane-does"),
        ("jane-doe", "jane-doe"),  # as text that is no path
    ],
)
def test_texts_name_nobody(monkeypatch, text, expected):
    monkeypatch.setenv("HOME", "/somewhere/else")
    monkeypatch.setattr("getpass.getuser", lambda: "jane-doe")
    assert anonymous(text) == expected


def test_a_fence_inside_does_not_end_the_block():
    machine = dict.fromkeys(("cpu", "isa", "threads", "cores", "system", "python", "numpy"), "x")
    check = {"name": "a", "verdict": "ok", "seconds": 0.1, "line": "```", "details": ["```sh"]}
    found = {
        "version": "1",
        "machine": {**machine, "memory": None, "memory_free": 1, "devices": ["cpu"]},
        "model": {"name": "m"},
        "options": {"device": "cpu"},
        "checks": [check],
    }
    text = block(json.loads(json.dumps(found)))
    assert text.startswith("```\n") and text.endswith("\n```") and text.count("```") == 2


def test_the_text_is_short_and_in_the_package():
    import gptoss.eval

    assert Path(gptoss.eval.__file__).with_name("prose.txt").read_text(encoding="utf-8") == PROSE
    assert 2000 < len(PROSE.encode()) <= 3000
