"""Schemas as the model reads them: what openai-harmony writes as `any` is shown in full, and
nobody's schema is too much."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss import Error
from gptoss.chat import Tool
from gptoss.chat.typescript import namespace_section


def declared(schema, **more):
    """The type of a tool with these parameters, and those declared before it."""
    text = namespace_section("functions", [Tool("f", "", schema, **more)])
    return text.removeprefix("## functions\n\nnamespace functions {\n\n").removesuffix(
        "\n\n} // namespace functions"
    )


def of_property(**schema):
    text = declared({"type": "object", "properties": {"a": schema}})
    return text.removeprefix("type f = (_: {\n").removesuffix("\n}) => any;")


STRING, NUMBER, NULL = {"type": "string"}, {"type": "number"}, {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"anyOf": [STRING, NULL], "default": None}, "a?: string | null, // default: null"),
        ({"anyOf": [{"type": "integer", "minimum": 1}, NULL]}, "a?: number | null, // minimum: 1"),
        ({"type": "array", "items": {"anyOf": [STRING, NULL]}}, "a?: (string | null)[],"),
        ({"const": 5}, "a?: 5,"),
        ({"const": {"k": [1.5e-7, None]}}, 'a?: {"k":[1.5e-7,null]},'),
        ({"enum": [1, None, "x", True]}, 'a?: 1 | null | "x" | true,'),
        ({"type": "integer", "enum": [1, 2]}, "a?: 1 | 2,"),
        ({"type": "null"}, "a?: null,"),
        ({"type": "array", "prefixItems": [STRING, NUMBER]}, "a?: [string, number],"),
        ({"type": "array", "prefixItems": [STRING], "items": NUMBER}, "a?: [string, ...number[]],"),
        ({"type": "array", "items": [STRING, NUMBER]}, "a?: [string, number],"),
        ({"type": "object", "additionalProperties": NUMBER}, "a?: Record<string, number>,"),
        ({"additionalProperties": NUMBER, "properties": {"b": STRING}},
         "a?: {\n    b?: string,\n    [key: string]: number,\n    },"),
        ({"type": ["object", "null"], "properties": {"b": STRING}},
         "a?: {\n    b?: string,\n    } | null,"),
        ({"type": ["array", "null"], "items": STRING}, "a?: string[] | null,"),
        ({"type": "integer", "minimum": 0, "default": 1}, "a?: number, // default: 1, minimum: 0"),
        ({"type": "string", "pattern": "^x", "format": "date"},
         'a?: string, // format: "date", pattern: "^x"'),
        ({"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
         "a?: string[], // maxItems: 2, items' maxLength: 3"),
        ({"allOf": [{"properties": {"b": STRING}}, {"required": ["b"]}]},
         "a?: {\n    b: string,\n    },"),
        ({"properties": {"b": STRING}}, "a?: {\n    b?: string,\n    },"),
        ({"nullable": True, "type": "string"}, "a?: string | null,"),
        ({"oneOf": [STRING, NUMBER], "nullable": True},
         "a?:\n | string\n | number\n | null\n,"),
        ({"$ref": "#/nowhere"}, "a?: any /* #/nowhere */,"),
        ({"$ref": "https://example.org/s"}, "a?: any /* https://example.org/s */,"),
    ],
)  # fmt: skip
def test_what_openai_harmony_leaves_out(schema, expected):
    assert of_property(**schema) == expected


def test_definitions_are_inlined_and_recursive_ones_named():
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "v": NUMBER}}
    properties = {"n": {"$ref": "#/$defs/Node"}, "s": {"$ref": "#/$defs/S"}}
    schema = {"properties": properties, "$defs": {"Node": node, "S": STRING}}
    text = declared(schema)
    assert "n?: {\n    next?: Node,\n    v?: number,\n    }," in text and "s?: string," in text
    assert "type Node = {\nnext?: Node,\nv?: number,\n};\n" in text


def test_names_of_types_are_free():
    """Neither a tool's nor another type's name is taken twice."""
    schema = {"$defs": {"f": {"type": "object", "properties": {"x": {"$ref": "#/$defs/f"}}}},
              "type": "object", "properties": {"a": {"$ref": "#/$defs/f"}}}  # fmt: skip
    text = namespace_section("functions", [Tool("f", "", schema), Tool("g", "", schema)])
    names = [line.split()[1] for line in text.splitlines() if line.startswith("type ")]
    assert len(set(names)) == len(names) == 4 and {"f", "g"} <= set(names)


def test_a_schema_that_is_its_own():
    assert "children?:" in declared(
        {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}
    )


@pytest.mark.parametrize("fan", [1, 2, 8])
def test_definitions_that_multiply_stay_small(fan):
    defs = {
        f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * fan}
        for i in range(200)
    }
    assert len(declared({"$ref": "#/$defs/d0", "$defs": defs})) < 100_000
    circle = {f"d{i}": {"$ref": f"#/$defs/d{(i + 1) % 5}"} for i in range(5)}
    assert declared({"$ref": "#/$defs/d0", "$defs": circle})


WORDS = ["type", "properties", "items", "anyOf", "oneOf", "allOf", "$ref", "enum", "const", "$defs",
         "prefixItems", "required", "additionalProperties", "default", "description", "title",
         "examples", "nullable", "minimum", "format", "a"]  # fmt: skip
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from(["object", "array", "string", "null", "#", "#/a", "#/$defs/a", "#a", "x"]),
)  # fmt: skip
ANYTHING = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(WORDS), ANYTHING, max_size=5))
def test_any_schema_is_shown_or_refused(schema):
    try:
        text = declared(schema)
    except Error as error:
        assert error.field == "tools"
    else:
        assert len(text) < 1 << 20
