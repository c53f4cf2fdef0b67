"""Tools as models read them: JSON schemas written as types of TypeScript.

gpt-oss models were taught a certain layout of comments, names and line ends; what it can say is
written as openai-harmony writes it. Beyond that: references (inlined, recursive ones as types of
their own), `anyOf`, `allOf`, `const`, enumerations of any kind, tuples, null. What a type cannot
say, such as a minimum, stands in a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptoss.chat.conversation import Tool
from gptoss.errors import Error, shown

Schema = Mapping[str, Any]

_SCALARS = {"integer": "number", "number": "number", "string": "string", "boolean": "boolean",
            "null": "null", "object": "object", "array": "array"}  # fmt: skip
# Keywords that a type cannot say. Those whose value is a schema are shown as they are written.
_NOTED = (
    "format", "pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems", "contains",
    "minContains", "maxContains", "minProperties", "maxProperties", "propertyNames",
    "patternProperties", "dependentRequired", "dependentSchemas", "not", "if", "then", "else",
)  # fmt: skip
_MAX_INLINED = 64  # references of a tool; more of them are types of their own
_MAX_LENGTH = 1 << 18  # characters of a tool's type
_UNIONS = ("oneOf", "anyOf")


def namespace_section(name: str, tools: Sequence[Tool], description: str = "") -> str:
    """The section of a prompt that declares tools: "## NAME", a namespace, a type for each.

    Raises:
        Error: a schema is nested too deeply, or its type would be absurdly long.
    """
    lines = [f"## {name}\n"]
    if not tools:
        return "\n".join([*lines, *_lines(description)])
    lines += [f"// {line}" for line in _lines(description)]
    lines.append(f"namespace {name} {{\n")
    taken = {tool.name for tool in tools}
    for tool in tools:
        lines += _declaration(tool, taken)
    return "\n".join([*lines, f"}} // namespace {name}"])


def _declaration(tool: Tool, taken: set[str]) -> Iterator[str]:
    about = [f"// {line}" for line in _lines(tool.description)]
    if not tool.parameters:
        yield from [*about, f"type {tool.name} = () => any;\n"]
        return
    printer = _Printer(tool.parameters, taken)
    try:
        parameters = printer.type(tool.parameters, "")
        notes = printer.notes(tool.parameters)
        named = list(printer.named_types())
    except RecursionError:
        raise Error(
            f"tools: {shown(tool.name)}: parameters: expected a schema that is nested less deeply",
            field="tools",
        ) from None
    yield from (f"{declaration}\n" for declaration in named)
    yield from about
    if notes:
        yield f"// {notes}"
    yield f"type {tool.name} = (_: {parameters}) => any;\n"


class _Printer:
    """Writes the types of one tool.

    root: the schema that references start from. taken: names in the namespace, to which those of
    types are added.
    """

    def __init__(self, root: Schema, taken: set[str]) -> None:
        self._root = root
        self._taken = taken
        self._open: list[str] = []  # references that are being written
        self._names: dict[str, str] = {}  # of references that are types of their own
        self._inlined = 0
        self._length = 0

    def named_types(self) -> Iterator[str]:
        """Declarations of what `type` has referred to by name."""
        done = 0
        while done < len(self._names):  # one may refer to others
            reference, name = list(self._names.items())[done]
            done += 1
            self._open = [reference]
            yield f"type {name} = {self._written(self._target(reference), '')};"

    def type(self, schema: object, indent: str) -> str:
        """The type that fits a schema. Lines after the first begin with `indent`."""
        if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
            return self._reference(schema, indent)
        return self._written(schema, indent)

    def _written(self, schema: object, indent: str) -> str:
        text = self._of_schema(schema, indent)
        self._length += len(text)
        if self._length > 16 * _MAX_LENGTH or len(text) > _MAX_LENGTH:
            raise Error(
                f"tools: expected parameters whose type has at most {_MAX_LENGTH} characters",
                field="tools",
            )
        return text

    def _of_schema(self, schema: object, indent: str) -> str:
        if schema is False:
            return "never"
        if not isinstance(schema, Mapping):
            return "any"
        if _schemas(schema, "oneOf"):
            return self._one_of(schema, indent)
        if _schemas(schema, "allOf"):
            return self._all_of(schema, indent)
        if _schemas(schema, "anyOf"):
            return self._any_of(schema, indent)
        if "const" in schema:
            return _json(schema["const"])
        values = schema.get("enum")
        if isinstance(values, (list, tuple)) and values:
            return " | ".join(f'"{v}"' if isinstance(v, str) else _json(v) for v in values)
        kinds = schema.get("type")
        if isinstance(kinds, (list, tuple)):
            known = [kind for kind in kinds if isinstance(kind, str)]
            if known:
                return " | ".join(self._of_kind(kind, schema, indent, False) for kind in known)
        if isinstance(kinds, str):
            return self._of_kind(kinds, schema, indent, True)
        if _properties(schema) or isinstance(schema.get("additionalProperties"), Mapping):
            return self._object(schema, indent)
        if _items(schema):
            return self._array(schema, indent)
        return "any"

    def _of_kind(self, kind: str, schema: Schema, indent: str, alone: bool) -> str:
        if kind == "object" and (
            alone or _properties(schema) or isinstance(schema.get("additionalProperties"), Mapping)
        ):
            return self._object(schema, indent)
        if kind == "array" and (alone or "items" in schema or _items(schema)):
            return self._array(schema, indent)
        return _SCALARS.get(kind, "any")

    # Parts.

    def _object(self, schema: Schema, indent: str) -> str:
        out = []
        description = schema.get("description")
        if isinstance(description, str):
            out.append(f"{indent}// {description}\n")
        rest = schema.get("additionalProperties")
        if isinstance(rest, Mapping) and rest and not _properties(schema):
            values = _or_null(self.type(rest, f"{indent}    "), self._resolved(rest))
            return "".join([*out, f"Record<string, {values}>"])
        out.append("{\n")
        required = schema.get("required")
        required = required if isinstance(required, (list, tuple)) else ()
        for key, value in _properties(schema).items():
            out.append(self._property(f"{key}{'' if key in required else '?'}", value, indent))
        if isinstance(rest, Mapping) and rest:
            out.append(self._property("[key: string]", rest, indent))
        return "".join([*out, f"{indent}}}"])

    def _property(self, name: str, value: object, indent: str) -> str:
        described = self._resolved(value)
        out = []
        title = described.get("title")
        if isinstance(title, str):
            out.append(f"{indent}// {title}\n{indent}//\n")
        variants = _schemas(described, "oneOf")
        if isinstance(value, Mapping) and "$ref" in value and self._is_open(value):
            variants = []  # a type of its own, which is referred to by its name
        description = described.get("description")
        if isinstance(description, str) and not variants and not self._says_itself(value):
            out.append(f"{indent}// {description}\n")
        examples = described.get("examples")
        if isinstance(examples, (list, tuple)) and examples:
            out.append(f"{indent}// Examples:\n")
            out += [f'{indent}// - "{each}"\n' for each in examples if isinstance(each, str)]
        if variants:
            out.append(self._property_of_variants(name, described, variants, indent))
            return "".join(out)
        kind = _or_null(self.type(value, f"{indent}    "), described)
        notes = [text for text in (_default(described, bare=True), self.notes(value)) if text]
        out.append(f"{indent}{name}: {kind},{' // ' + ', '.join(notes) if notes else ''}\n")
        return "".join(out)

    def _says_itself(self, value: object) -> bool:
        """Whether a schema's description belongs to the declaration of a type of its own."""
        return isinstance(value, Mapping) and "$ref" in value and "description" not in value and (
            self._is_open(value)
        )  # fmt: skip

    def _property_of_variants(
        self, name: str, value: Schema, variants: list[Any], indent: str
    ) -> str:
        out = []
        description = value.get("description")
        first = self._resolved(variants[0]).get("description")
        above = isinstance(description, str) and description != first
        if above:
            out.append(f"{indent}// {description}\n")
        notes = [text for text in (_default(value, bare=True), self.notes(value)) if text]
        out += [f"{indent}// {note}\n" for note in notes]
        out.append(f"{indent}{name}:\n")
        for i, variant in enumerate(variants):
            text, about, notes = self._variant(variant, indent)
            if about is not None and about != description and not (i == 0 and above):
                notes = [about, *notes]
            out.append(f"{indent} | {text}{_trailing(notes)}\n")
        if value.get("nullable") is True and not any("null" in line for line in out):
            out.append(f"{indent} | null\n")
        return "".join([*out, f"{indent},\n"])

    def _one_of(self, schema: Schema, indent: str) -> str:
        out = []
        for variant in _schemas(schema, "oneOf"):
            text, about, notes = self._variant(variant, indent)
            notes = notes if about is None else [about, *notes]
            out.append(f"\n{indent} | {text}{_trailing(notes)}")
        return "".join(out)

    def _variant(self, variant: object, indent: str) -> tuple[str, str | None, list[str]]:
        """A variant's type, its description, and its default and what else is to say."""
        described = self._resolved(variant)
        text = _or_null(self.type(variant, f"{indent}   "), described)
        description = described.get("description")
        notes = [each for each in (_default(described), self.notes(variant)) if each]
        return text, description if isinstance(description, str) else None, notes

    def _any_of(self, schema: Schema, indent: str) -> str:
        rest = _without(schema, "anyOf")
        parts = [self._of_merged(rest, variant, indent) for variant in _schemas(schema, "anyOf")]
        return _unique(parts)

    def _of_merged(self, outer: Schema, variant: object, indent: str) -> str:
        """A variant, with what is said of all variants beside it."""
        if not isinstance(variant, Mapping) or not (_properties(outer) or "type" in outer):
            text = self.type(variant, indent)
            return _or_null(text, variant if isinstance(variant, Mapping) else {})
        return self.type(_merged([outer, self._resolved(variant)]), indent)

    def _all_of(self, schema: Schema, indent: str) -> str:
        parts: list[Any] = [_without(schema, "allOf"), *_schemas(schema, "allOf")]
        if any(isinstance(part, Mapping) and self._is_open(part) for part in parts):
            return " & ".join(self.type(part, indent) for part in parts if part)
        resolved = [self._resolved(part) for part in parts if part]
        if any(_schemas(part, union) for part in resolved for union in _UNIONS):
            texts = [self.type(part, indent) for part in parts if part]
            return " & ".join(f"({text})" if "|" in text else text for text in texts)
        return self.type(_merged(resolved), indent)

    def _array(self, schema: Schema, indent: str) -> str:
        places = _items(schema)
        if places:
            parts = [self.type(place, indent) for place in places]
            rest = schema.get("items") if "prefixItems" in schema else schema.get("additionalItems")
            if isinstance(rest, Mapping) and rest:
                parts.append(f"...{self._element(rest, indent)}[]")
            return f"[{', '.join(parts)}]"
        if "items" not in schema:
            return "Array<any>"
        return f"{self._element(schema['items'], indent)}[]"

    def _element(self, schema: object, indent: str) -> str:
        described = self._resolved(schema)
        text = self.type(schema, indent)
        nullable = _or_null(text, described)
        return f"({nullable})" if nullable != text or _schemas(described, "anyOf") else text

    # References.

    def _reference(self, schema: Schema, indent: str) -> str:
        reference = schema["$ref"]
        target = self._target(reference)
        if target is None:
            return f"any /* {reference} */" if _is_short(reference) else "any"
        if self._is_open(schema):
            return self._name(reference)
        self._inlined += 1
        self._open.append(reference)
        try:
            return self._written(_beside(target, schema), indent)
        finally:
            self._open.pop()

    def _is_open(self, schema: Schema) -> bool:
        """Whether a reference is to be written as a name: it is inside itself, or one too many."""
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return False
        return (
            reference in self._open
            or reference in self._names
            or self._inlined >= _MAX_INLINED
        ) and self._target(reference) is not None  # fmt: skip

    def _name(self, reference: str) -> str:
        if reference not in self._names:
            last = reference.rstrip("/").rpartition("/")[2].lstrip("#")
            base = re.sub(r"\W", "_", last)[:64] or "Parameters"
            name, number = base, 1
            while name in self._taken:
                number += 1
                name = f"{base}_{number}"
            self._taken.add(name)
            self._names[reference] = name
        return self._names[reference]

    def _resolved(self, schema: object) -> Schema:
        """A schema in place of a reference to it, with what stands beside the reference."""
        for _ in range(_MAX_INLINED):
            if not isinstance(schema, Mapping):
                return {}
            reference = schema.get("$ref")
            target = self._target(reference) if isinstance(reference, str) else None
            if target is None:
                return schema
            schema = _beside(target, schema)
        return {}  # they refer to one another in a circle

    def _target(self, reference: str) -> Schema | None:
        """What a reference of this document (RFC 6901, or an anchor) refers to."""
        if not reference.startswith("#"):
            return None
        place: Any = self._root
        if reference[1:2] not in ("", "/"):
            return _anchored(self._root, reference[1:])
        for part in reference[2:].split("/") if reference[1:] else ():
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(place, Mapping):
                place = place.get(key)
            elif isinstance(place, (list, tuple)) and re.fullmatch(r"\d{1,6}", key):
                place = place[int(key)] if int(key) < len(place) else None
            else:
                return None
        return place if isinstance(place, Mapping) else None

    def notes(self, schema: object) -> str:
        """What a type cannot say of a schema, for a comment."""
        resolved = self._resolved(schema)
        if isinstance(schema, Mapping) and self._is_open(schema):
            return ""
        found = [f"{word}: {_json(resolved[word])}" for word in _NOTED if word in resolved]
        items = resolved.get("items")
        if isinstance(items, Mapping) and not self._is_open(items):
            inner = self._resolved(items)
            found += [f"items' {word}: {_json(inner[word])}" for word in _NOTED if word in inner]
        for union in ("anyOf", "allOf"):
            for part in _schemas(resolved, union):
                inner = self._resolved(part)
                found += [f"{word}: {_json(inner[word])}" for word in _NOTED if word in inner]
        return ", ".join(dict.fromkeys(found))


# Schemas.


def _schemas(schema: Schema, word: str) -> list[Any]:
    found = schema.get(word)
    return list(found) if isinstance(found, (list, tuple)) else []


def _properties(schema: Schema) -> Schema:
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def _items(schema: Schema) -> list[Any]:
    """Of a tuple, the schemas of its places."""
    return _schemas(schema, "prefixItems") or _schemas(schema, "items")


def _without(schema: Schema, word: str) -> dict[str, Any]:
    about = ("description", "title", "default", "examples", "$defs", "definitions", word)
    return {key: value for key, value in schema.items() if key not in about}


def _beside(target: Schema, schema: Schema) -> dict[str, Any]:
    """What a reference refers to, with what its own schema says besides."""
    own = {key: value for key, value in schema.items() if key != "$ref"}
    return {**target, **own}


def _merged(parts: Sequence[Schema]) -> dict[str, Any]:
    """One schema that says what several say together."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if key == "properties" and isinstance(value, Mapping):
                value = {**_properties(whole), **value}
            elif key == "required" and isinstance(value, (list, tuple)):
                value = [*_schemas(whole, key), *value]
            elif key == "allOf" and isinstance(value, (list, tuple)):
                value = [*_schemas(whole, key), *value]
            whole[key] = value
    return whole


def _anchored(schema: object, name: str) -> Schema | None:
    level = [schema]
    while level:
        place = level.pop()
        if isinstance(place, Mapping):
            if name in (place.get("$anchor"), place.get("$dynamicAnchor")):
                return place
            level += place.values()
        elif isinstance(place, (list, tuple)):
            level += place
    return None


# Texts.


def _or_null(text: str, schema: Schema) -> str:
    """`nullable` is how OpenAPI 3.0 says that null will do."""
    return f"{text} | null" if schema.get("nullable") is True and "null" not in text else text


def _trailing(notes: Sequence[str]) -> str:
    """A comment at the end of a line. An empty description makes one, too."""
    return f" // {' '.join(notes)}" if notes else ""


def _default(schema: Schema, bare: bool = False) -> str:
    """bare: whether a default that is one of an enumeration stands without quotes."""
    if "default" not in schema:
        return ""
    value, one_of_some = schema["default"], bool(_schemas(schema, "enum"))
    if isinstance(value, str):
        # Not escaped, as in the descriptions.
        return f"default: {value}" if one_of_some and bare else f'default: "{value}"'
    return f"default: {_json(value)}"


def _unique(parts: Sequence[str]) -> str:
    return " | ".join(dict.fromkeys(parts))


def _lines(text: str) -> list[str]:
    """Lines end with \\n or \\r\\n; what ends the last one begins no other."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _is_short(text: str) -> bool:
    return len(text) <= 200 and text.isprintable() and "*/" not in text


def _json(value: object) -> str:
    """JSON on one line without blanks. Exponents are written as in JavaScript, 1e-7."""
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", lambda m: "e" + m.group(1).strip("+"), repr(value))
    if isinstance(value, Mapping):
        inside = (f"{_json(str(key))}:{_json(each)}" for key, each in value.items())
        return "{" + ",".join(inside) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_json, value))}]"
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # nothing that JSON has
        return json.dumps(shown(value), ensure_ascii=False)
