"""Schemas as the model reads them: what openai-harmony writes as `any` is shown in full, and
nobody's schema is too much."""

from typing import Literal

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
        ({"anyOf": [{**STRING, "description": "A name"}, {**NUMBER, "minimum": 1}]},
         "a?:\n | string // A name\n | number // minimum: 1\n,"),
        ({"anyOf": [{"properties": {"b": STRING}}, {"properties": {"c": NUMBER}}]},
         "a?:\n | {\n   b?: string,\n   }\n | {\n   c?: number,\n   }\n,"),
        ({"properties": {"k": STRING}, "oneOf": [{"properties": {"b": STRING}}, NULL]},
         "a?: {\n    k?: string,\n    } & ({\n    b?: string,\n    } | null),"),
        ({"type": "string", "anyOf": [{"enum": ["b", "c"]}, {"pattern": "^x"}]},
         'a?: "b" | "c" | string, // pattern: "^x"'),
        ({"type": "array", "items": {"enum": ["b", "c"]}}, 'a?: ("b" | "c")[],'),
        ({"type": "array", "items": {**STRING, "description": "An id"}},
         "a?: string[], // items: An id"),
        ({"type": "array", "items": {"type": "array", "items": {**NUMBER, "minimum": 1}}},
         "a?: number[][], // items' items' minimum: 1"),
        ({"prefixItems": [{**NUMBER, "description": "*/", "minimum": 1}], "minItems": 1},
         "a?: [number /* * /, minimum: 1 */],"),
        ({"additionalProperties": {**STRING, "minLength": 2}},
         "a?: Record<string, string /* minLength: 2 */>,"),
        ({"allOf": [STRING, {"minLength": 3}, {"minLength": 4}]},
         'a?: string, // minLength: 3, allOf: [{"minLength":4}]'),
        ({"allOf": [STRING, NUMBER]}, "a?: string & number,"),
        ({"allOf": [{"anyOf": [STRING, NULL]}, {"anyOf": [STRING, NUMBER]}]},
         "a?: (string | null) & (string | number),"),
        ({"allOf": [{"properties": {"b": STRING}}, {"properties": {"b": {"enum": ["x"]}}}]},
         'a?: {\n    b?: "x",\n    },'),
        ({"not": NULL}, 'a?: any, // not: {"type":"null"}'),
        ({"type": "object", "propertyNames": STRING}, "a?: {\n    },"),
        ({"type": "integer", "maximum": 2**53 - 1, "minimum": 1}, "a?: number, // minimum: 1"),
        ({"$ref": "#/nowhere"}, "a?: any /* #/nowhere */,"),
        ({"$ref": "https://example.org/s"}, "a?: any /* https://example.org/s */,"),
    ],
)  # fmt: skip
def test_what_openai_harmony_leaves_out(schema, expected):
    assert of_property(**schema) == expected


@pytest.mark.parametrize("union", ["anyOf", "oneOf"])
def test_conditions_of_an_object_are_comments(union):
    """What variants say of required properties is no type."""
    rules = [{"required": ["b"]}, {"required": ["c"]}]
    assert of_property(**{union: rules}, properties={"b": STRING, "c": STRING}) == (
        "a?: {\n    b?: string,\n    c?: string,\n    },"
        f' // {union}: [{{"required":["b"]}},{{"required":["c"]}}]'
    )


def test_rules_stay_together():
    rules = [{"if": {"required": [name]}, "then": {"required": ["x"]}} for name in "bc"]
    assert of_property(type="object", allOf=rules) == (
        'a?: {\n    }, // allOf: [{"if":{"required":["b"]},"then":{"required":["x"]}},'
        '{"if":{"required":["c"]},"then":{"required":["x"]}}]'
    )


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"$ref": "#/$defs/O"}, "// An O.\na?: {\n    x?: string,\n    },"),
        ({"$ref": "#/$defs/O", "description": "Mine."}, "// Mine.\na?: {\n    x?: string,\n    },"),
        ({"allOf": [{"$ref": "#/$defs/O"}], "description": "Mine."},
         "// Mine.\na?: {\n    x?: string,\n    },"),
        ({"anyOf": [{"$ref": "#/$defs/O"}, NULL]},
         "a?: { // An O.\n    x?: string,\n    } | null,"),
        ({"type": "array", "items": {"$ref": "#/$defs/O"}},
         "a?: { // An O.\n    x?: string,\n    }[],"),
        ({"oneOf": [{"$ref": "#/$defs/O"}, NULL]},
         "a?:\n | {\n   x?: string,\n   } // An O.\n | null\n,"),
        ({"type": "array", "items": {"$ref": "#/$defs/E"}}, 'a?: ("b" | "c") /* A letter. */[],'),
        ({"additionalProperties": {"$ref": "#/$defs/O"}},
         "a?: Record<string, { // An O.\n    x?: string,\n    }>,"),
    ],
)  # fmt: skip
def test_a_description_of_what_is_referred_to_stands_once(schema, expected):
    defs = {
        "O": {"type": "object", "description": "An O.", "title": "O", "properties": {"x": STRING}},
        "E": {"enum": ["b", "c"], "description": "A letter.", "title": "E"},
    }
    text = declared({"type": "object", "properties": {"a": schema}, "$defs": defs})
    assert text == f"type f = (_: {{\n{expected}\n}}) => any;"


def test_models_of_pydantic():
    pydantic = pytest.importorskip("pydantic")

    class Address(pydantic.BaseModel):
        """Where somebody lives."""

        street: str = pydantic.Field(description="With its number")
        zip: str = pydantic.Field(pattern=r"^\d{5}$")

    class Person(pydantic.BaseModel):
        """Somebody."""

        nick: str | None = None
        address: Address | None = None
        friends: list["Person"] = []  # noqa: RUF012
        side: Literal["left", "right"] = "left"
        at: tuple[float, float]

    assert (
        declared(Person.model_json_schema())
        == """\
// Somebody.
type Person = {
// Nick
//
nick?: string | null, // default: null
address?: { // Where somebody lives.
    // Street
    //
    // With its number
    street: string,
    // Zip
    //
    zip: string, // pattern: "^\\\\d{5}$"
    } | null, // default: null
// Friends
//
friends?: Person[], // default: []
// Side
//
side?: "left" | "right", // default: left
// At
//
at: [number, number],
};

type f = (_: // Somebody.
{
// Nick
//
nick?: string | null, // default: null
address?: { // Where somebody lives.
    // Street
    //
    // With its number
    street: string,
    // Zip
    //
    zip: string, // pattern: "^\\\\d{5}$"
    } | null, // default: null
// Friends
//
friends?: Person[], // default: []
// Side
//
side?: "left" | "right", // default: left
// At
//
at: [number, number],
}) => any;"""
    )


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


@pytest.mark.parametrize("word", ["allOf", "anyOf", "oneOf"])
@pytest.mark.parametrize("size", [10, 300])
def test_unions_that_multiply(word, size):
    """Two references to the next, each time: 2^n, were all of them written."""
    defs = {f"d{i}": {word: [{"$ref": f"#/$defs/d{i + 1}"}] * 2, "title": "x"} for i in range(size)}
    defs[f"d{size}"] = {"properties": {"last": STRING}}
    try:
        text = declared({"$ref": "#/$defs/d0", "$defs": defs})
    except Error as error:
        assert size > 100 and error.field == "tools"
    else:
        assert len(text) < 1_000_000 and "last" in text


def test_values_that_are_inside_themselves():
    for word in ("properties", "anyOf", "items", "enum", "default", "$defs"):
        schema: dict = {"type": "object", "properties": {"a": {"$ref": "#nowhere"}}}
        for inner in (schema, [schema], {"b": schema}):
            try:
                assert declared({**schema, word: inner})
            except Error as error:
                assert error.field == "tools"
            schema[word] = inner  # in a circle
            try:
                assert declared(schema)
            except Error as error:
                assert error.field == "tools"


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [10**5000, float("nan"), float("-inf"), object(), b"x", {1: 2}, {"x"}]},
        {
            "properties": {1: STRING, None: NUMBER, (1, 2): {"const": {10**5000: 1}}},
            "required": [1, [], {}],
        },
        {"properties": {"a" * 1000: {"default": -(10**5000)}}},
        {"enum": [str(i) for i in range(20_000)]},
    ],
)
def test_values_that_json_has_not(schema):
    assert declared(schema).startswith("type f = (_: ")


# What can be seen of a schema: unique names, so that each is found in the text.


@st.composite
def full_schemas(draw, names, defs, depth=3):
    """Any of the kinds; `names` gets the names of properties, values, patterns and definitions."""
    kinds = ["string", "enum", "const"]
    if depth:
        kinds += ["object", "map", "array", "tuple", "anyOf", "oneOf", "allOf", "ref", "self"]
    kind = draw(st.sampled_from(kinds))

    def new():
        names.append(f"n{len(names)}x")
        return names[-1]

    inner = full_schemas(names, defs, depth - 1)
    if kind == "string":
        schema = {"type": "string"}
    elif kind == "enum":
        schema = {"enum": [new() for _ in range(draw(st.integers(1, 3)))]}
    elif kind == "const":
        schema = {"const": new()}
    elif kind == "object":
        schema = {"properties": {new(): draw(inner) for _ in range(draw(st.integers(0, 3)))}}
    elif kind == "map":
        schema = {"type": "object", "additionalProperties": draw(inner)}
    elif kind == "array":
        schema = {"type": draw(st.sampled_from(["array", ["array", "null"]])), "items": draw(inner)}
    elif kind == "tuple":
        schema = {"prefixItems": [draw(inner), draw(inner)], "items": draw(inner)}
    elif kind == "self":
        schema = {"$ref": "#"}
    elif kind == "ref":
        name = new()
        schema = {"$ref": f"#/$defs/{name}"}
        defs[name] = draw(inner)
    else:
        schema = {kind: [draw(inner) for _ in range(draw(st.integers(1, 3)))]}
        if draw(st.booleans()):
            schema |= {"properties": {new(): draw(inner)}}
    if draw(st.integers(0, 4)) == 0:
        schema["pattern"] = new()
    return schema


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_everything_is_shown(data):
    """Properties, values, limits; names of definitions need not be."""
    names: list[str] = []
    defs: dict = {}
    inner = full_schemas(names, defs)
    schema = {"type": "object", "properties": {f"p{i}": data.draw(inner) for i in range(3)}}
    schema["$defs"] = defs
    text = declared(schema)
    for name in names:
        assert name in text or name in defs, (name, schema, text)


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
