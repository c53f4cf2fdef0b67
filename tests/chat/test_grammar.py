"""What a model may write where tools are declared: headers that call nobody else."""

import json
import random
import re

import pytest
from byte_vocabulary import WORDS, Bytes
from parsing import take

from gptoss import Error
from gptoss.chat import Tool
from gptoss.chat.grammar import answer_grammar
from gptoss.engine.constraint import GrammarVocabulary
from gptoss.request import Grammar

pytest.importorskip("llguidance", reason="the extra grammar is missing")

CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
FREE, STRICT = Tool("look_up", "", CITY), Tool("weather", "", CITY, strict=True)
THINKING = "<|channel|>analysis<|message|>I think: to=functions.x {\n<|end|><|start|>assistant"
PREAMBLE = "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>It rains.\n<|return|>"


class Whole(Bytes):
    def token_bytes(self, token):
        return self._table[token]


@pytest.fixture(scope="module")
def vocabulary():
    special = WORDS.special_tokens
    return GrammarVocabulary(
        Whole(), Whole.vocab_size, {special["<|return|>"], special["<|call|>"]}
    )


def state(vocabulary, **asked):
    return vocabulary.compile(Grammar.lark(answer_grammar(**asked))).begin()


def allowed(state):
    mask = state.mask()
    return [token for token in range(Whole.vocab_size) if mask[token // 32] >> (token % 32) & 1]


def accepts(vocabulary, text, **asked):
    """Whether it may be written, all of it, and is whole then."""
    now = state(vocabulary, **asked)
    for token in WORDS.encode(text):
        if now.ended or token not in allowed(now):
            return False
        now.push(token)
    return now.ended


def call(name, arguments='{"city": "Oslo"}', kind="<|constrain|>json", channel="commentary"):
    return f"<|channel|>{channel} to=functions.{name}{kind}<|message|>{arguments}<|call|>"


@pytest.mark.parametrize("before", ["", THINKING, PREAMBLE, THINKING * 30 + PREAMBLE + THINKING])
def test_what_may_be_written(vocabulary, before):
    tools = [FREE, STRICT]
    for text in (
        FINAL,
        call("look_up", '{"anything": [1, {}]}'),
        call("weather"),
        *(call("weather", kind=kind)
          for kind in ("", " json", " code", "<|constrain|>json", " <|constrain|>json")),
        call("weather", channel="analysis"),
        ' to=functions.weather<|channel|>commentary json<|message|>{"city":"Rome"}<|call|>',
    ):  # fmt: skip
        assert accepts(vocabulary, before + text, tools=tools), text


@pytest.mark.parametrize(
    "text",
    [
        call("other"),
        call("weather2"),
        call("weather x"),
        call("weathe"),
        call("weather", '{"city": "Bonn"}'),
        call("weather", "{}"),
        call("look_up", "[1]"),
        call("look_up", "Oslo"),
        call("weather").replace("functions.", ""),
        call("weather").replace("functions.weather", "browser.search"),
        call("weather").replace("<|channel|>commentary", "<|channel|>commentary<|channel|>final"),
        call("weather", channel="final"),
        call("weather").replace("<|call|>", "<|end|>"),
        FINAL.replace("final", "speech"),
        FINAL.replace("<|channel|>final", ""),
        "It rains.<|return|>",
        THINKING + "It rains.<|return|>",
        THINKING.replace("assistant", "user") + FINAL,
        "<|channel|>analysis<|message|>a<|return|>",
    ],
)
def test_what_may_not(vocabulary, text):
    assert not accepts(vocabulary, text, tools=[FREE, STRICT])


def test_what_may_be_called_where_something_must(vocabulary):
    assert accepts(vocabulary, THINKING + call("weather"), tools=[STRICT], must_call=True)
    assert not accepts(vocabulary, FINAL, tools=[STRICT], must_call=True)
    answer = Grammar.choice(["yes", "no"])
    yes = "<|channel|>final<|message|>yes<|return|>"
    assert accepts(vocabulary, yes, tools=[FREE], answer=answer)
    assert accepts(vocabulary, call("look_up"), tools=[FREE], answer=answer)
    assert not accepts(vocabulary, FINAL, tools=[FREE], answer=answer)
    assert accepts(vocabulary, "yes<|return|>", tools=[], answer=answer, continues=True)
    python = "<|channel|>analysis to=python code<|message|>print(1)<|call|>"
    assert accepts(vocabulary, python, tools=[FREE], built_in=["python"])
    assert not accepts(vocabulary, python, tools=[FREE])


def test_where_everything_is_allowed():
    assert answer_grammar([]) is None
    assert answer_grammar([FREE], hold=False) is None
    assert answer_grammar([FREE], continues=True) is None
    assert answer_grammar([STRICT], hold=False) is not None


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_allowed_is_parsed_as_calls_of_these(vocabulary, seed):
    """A model that knows nothing: tokens drawn from those that may come."""
    draw = random.Random(seed)
    now, written = state(vocabulary, tools=[FREE, STRICT]), []
    while not now.ended and len(written) < 600:
        tokens = allowed(now)
        special = [token for token in tokens if token >= 256]
        short = [token for token in tokens if token in (ord('"'), ord("}"))]
        token = draw.choice(special if special and draw.random() < 0.2 else
                            short if short and draw.random() < 0.3 else tokens)  # fmt: skip
        now.push(token)
        written.append(token)
    messages, ends = take(written)
    for message, end in zip(messages, ends, strict=True):
        assert message.from_model
        assert message.recipient in (None, "functions.look_up", "functions.weather")
        assert message.is_call == (end == "call") or end is None
        if end == "call":
            arguments = json.loads(message.content)
            assert message.recipient == "functions.look_up" or arguments["city"] in ("Oslo", "Rome")
    if now.ended:
        assert ends[-1] in ("call", "return") and set(ends[:-1]) <= {"end"}


def test_a_schema_that_cannot_be_kept_to():
    wrong = {"type": "object", "propertyNames": {"pattern": "^a"}, "properties": {"a": {"not": {}}}}
    with pytest.raises(Error, match=re.escape("tools: strange: ")) as found:
        answer_grammar([FREE, Tool("strange", "", wrong, strict=True)])
    assert found.value.field == "tools"
    # Whoever did not ask for strictness has none.
    assert answer_grammar([Tool("strange", "", wrong)]) is not None


def test_many_tools(vocabulary):
    tools = [Tool(f"tool_{i}", "", CITY, strict=i % 2 == 0) for i in range(128)]
    assert accepts(vocabulary, THINKING + call("tool_126"), tools=tools)
    assert accepts(vocabulary, THINKING + call("tool_127", "{}"), tools=tools)
    assert not accepts(vocabulary, THINKING + call("tool_128"), tools=tools)
