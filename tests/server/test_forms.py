"""What an answer must be: schemas that are strict and others, nullable, and half characters."""

import json
import random

import pytest

from gptoss import Error, Grammar
from gptoss.request.grammar import parser_limits
from gptoss.server.api.options import read_options
from gptoss.server.errors import ApiError

llguidance = pytest.importorskip("llguidance", reason="the extra grammar is missing")
BYTES = llguidance.LLTokenizer("byte")
GOOD = {"chat": {"messages": []}, "responses": {"input": "x"}, "completions": {"prompt": "x"}}


def accepts(grammar, text):
    matcher = llguidance.LLMatcher(
        BYTES,
        llguidance.LLMatcher.grammar_from_lark(grammar.source),
        log_level=0,
        limits=parser_limits(llguidance),
    )
    data = text.encode()
    return all(matcher.try_consume_tokens([byte]) for byte in data) and matcher.is_accepting()


def format_of(route, schema, strict):
    inner = {"name": "x", "schema": schema, **({} if strict is None else {"strict": strict})}
    if route == "responses":
        return {"text": {"format": {"type": "json_schema", **inner}}}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


def asked(route, schema, strict):
    return read_options({**GOOD[route], **format_of(route, schema, strict)}, route).form()


# What pydantic, zod and others write, and the grammars' library cannot keep to.
BEYOND = [
    {"type": "object", "propertyNames": {"enum": ["a"]}},
    {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    {"type": "object", "properties": {"a": {"type": "string", "format": "path"}}},
    {"type": "object", "properties": {"a": {"type": "string", "format": "binary"}}},
    {"type": "object", "not": {"required": ["a"]}},
    {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "array", "contains": {"type": "string"}},
    {"$ref": "http://example.com/schema"},
    {"type": "object", "anyOf": [
        {"properties": {f"k{j}": {"type": "string", "pattern": f"a{i}b*"} for j in range(5)}}
        for i in range(3000)]},
]  # fmt: skip


@pytest.mark.parametrize("route", GOOD)
@pytest.mark.parametrize("schema", BEYOND, ids=lambda schema: json.dumps(schema)[:60])
def test_what_cannot_be_kept_to(route, schema):
    """Is refused where it is strict, by name; else what can be is kept to."""
    name = "text.format" if route == "responses" else "response_format"
    with pytest.raises(ApiError) as caught:
        asked(route, schema, True)
    assert caught.value.field == name and caught.value.status == 400
    for strict in (False, None):
        _, grammar = asked(route, schema, strict)
        array = schema.get("type") == "array"
        assert accepts(grammar, "[]" if array else "{}")
        assert not accepts(grammar, "{}" if array else "[]") and not accepts(grammar, "a")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "banana"},
        {"type": 5},
        {"enum": []},
        {"$ref": "#/$defs/none"},
        {"type": "number", "minimum": "x"},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
    ],
)
def test_what_is_no_schema(schema, strict):
    with pytest.raises(ApiError):
        asked("chat", schema, strict)


def test_what_is_kept_to_is_the_same(monkeypatch):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    for strict in (True, False, None):
        _, grammar = asked("chat", schema, strict)
        assert accepts(grammar, '{"a": 5}') and not accepts(grammar, '{"a": "b"}')


@pytest.mark.parametrize(
    ("schema", "fits", "fits_not"),
    [
        ({"type": "string", "nullable": True}, ["null", '"a"'], ["5"]),
        ({"type": "string", "nullable": False}, ['"a"'], ["null"]),
        ({"enum": ["a", 5], "nullable": True, "type": ["string", "integer"]}, ["null", "5"], ["6"]),
        ({"$ref": "#/$defs/n", "nullable": True, "$defs": {"n": {"type": "integer"}}},
         ["null", "5"], ['"a"']),
        ({"anyOf": [{"type": "integer"}, {"type": "boolean"}], "nullable": True},
         ["null", "5", "true"], ['"a"']),
        ({"type": "array", "items": {"type": "integer", "nullable": True}}, ["[1,null]"], ["null"]),
        ({"type": "object", "properties": {"nullable": {"type": "integer"}},
          "additionalProperties": False}, ['{"nullable": 5}', "{}"], ['{"nullable": null}']),
        ({"type": "object", "properties": {"a": {"anyOf": [{"const": 1}, {"const": 2}],
          "nullable": True}}}, ['{"a": null}', '{"a": 2}'], ['{"a": 3}']),
        ({"enum": ["nullable"]}, ['"nullable"'], ["null"]),
        ({"const": {"nullable": True}}, ['{"nullable":true}'], ["null"]),
    ],
)  # fmt: skip
def test_nullable(schema, fits, fits_not):
    grammar = Grammar.json(schema)
    assert all(accepts(grammar, text) for text in fits)
    assert not any(accepts(grammar, text) for text in fits_not)


def schemas(chance, depth):
    """(schema with nullable, the same as JSON Schema has it)."""
    null = chance.random() < 0.4
    if depth == 0 or chance.random() < 0.4:
        kind = chance.choice(["string", "integer", "boolean"])
        plain = {"type": kind}
        ours = {"type": kind}
    elif chance.random() < 0.5:
        inner = schemas(chance, depth - 1)
        ours, plain = ({"type": "array", "items": each} for each in inner)
    else:
        inner = schemas(chance, depth - 1)
        closed = {"type": "object", "required": ["nullable"], "additionalProperties": False}
        ours, plain = ({**closed, "properties": {"nullable": each}} for each in inner)
    if null:
        ours["nullable"], plain = True, {"anyOf": [plain, {"type": "null"}]}
    return ours, plain


def a_value(chance, depth):
    kind = chance.random()
    if depth == 0 or kind < 0.6:
        return chance.choice([None, 5, "a", True])
    if kind < 0.8:
        return [a_value(chance, depth - 1) for _ in range(chance.randint(0, 2))]
    return {"nullable": a_value(chance, depth - 1)}


@pytest.mark.parametrize("seed", range(20))
def test_nullable_anywhere(seed):
    chance = random.Random(seed)
    ours, plain = (Grammar.json(schema) for schema in schemas(chance, 3))
    for _ in range(30):
        text = json.dumps(a_value(chance, 3))
        assert accepts(ours, text) == accepts(plain, text), (ours.source, text)


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_json_objects_with_a_schema(route):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for form in ({"type": "json_object", "schema": schema}, None):
        body = {"response_format": form} if form else {"json_schema": schema}
        name, grammar = read_options({**GOOD[route], **body}, route).form()
        assert name == next(iter(body))
        assert accepts(grammar, '{"a":1}') and not accepts(grammar, '{"a":"b"}')


def test_grammars_of_either_kind():
    for name in ("grammar", "guided_grammar"):
        for source in ('root ::= "a"+', 'start: "a"+'):
            _, grammar = read_options({"prompt": "x", name: source}, "completions").form()
            assert accepts(grammar, "aa") and not accepts(grammar, "b")
    _, none = read_options({"prompt": "x", "grammar": ""}, "completions").form()
    assert none is None


@pytest.mark.parametrize(
    "make",
    [
        lambda half: Grammar.regex(f"a{half}"),
        lambda half: Grammar.choice([f"a{half}"]),
        lambda half: Grammar.gbnf(f'root ::= "a{half}"'),
        lambda half: Grammar.lark(f'start: "a{half}"'),
        lambda half: Grammar.json({"const": f"a{half}"}),
        lambda half: Grammar.json(json.dumps({"const": f"a{half}"})),
    ],
)
def test_half_characters(make):
    """Are U+FFFD, as everywhere; two that belong together are one."""
    texts = ["a\ufffd", '"a\ufffd"']
    assert any(accepts(make("\ud83d"), text) for text in texts)
    assert any(accepts(make("\ud83d\ude00"), text) for text in ["a😀", '"a😀"'])


def test_numbers_that_json_has_not():
    with pytest.raises(Error):
        Grammar.json({"const": float("nan")})
