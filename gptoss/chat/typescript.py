"""Tools as models read them: JSON schemas written as types of TypeScript.

gpt-oss models were taught a certain layout of comments, names and line ends; what it can say is
written as openai-harmony writes it, oddities included. Beyond that: references (inlined, recursive
ones as types of their own), `anyOf`, `allOf`, `const`, enumerations of any kind, tuples, null. What
a type cannot say, such as a minimum, stands in a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptoss.chat.conversation import Tool
from gptoss.chat.schemas import (
    TYPING,
    Document,
    Schema,
    places,
    properties,
    says_type,
    schemas,
    without,
)
from gptoss.errors import Error, shown

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
_SAFE_INTEGER = 2**53 - 1  # of JavaScript, whose generators say it of every integer


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
        parameters = printer.type(tool.parameters, "", described=False)
        notes = printer.notes(tool.parameters)
        named = list(printer.named_types())
    except RecursionError:
        raise Error(
            f"tools: {shown(tool.name)}: parameters: expected a schema that is nested less deeply",
            field="tools",
        ) from None
    yield from named
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
        self._document = Document(root)
        self._taken = taken
        self._open = ["#"]  # references that are being written
        self._names: dict[str, str] = {}  # of references that are types of their own
        self._inlined = 0
        self._length = 0

    def named_types(self) -> Iterator[str]:
        """Declarations of what `type` has referred to by name."""
        done = 0
        while done < len(self._names):  # one may refer to others
            reference, name = list(self._names.items())[done]
            done += 1
            flat = self._flat({"$ref": reference})
            about = flat.get("description")
            self._open = [reference]
            written = self.type(without(flat, ("description",)), "")
            if isinstance(about, str):
                yield from (f"// {line}" for line in _lines(about))
            if notes := self.notes(flat):
                yield f"// {notes}"
            yield f"type {name} = {written};\n"

    def type(self, schema: object, indent: str, described: bool = True) -> str:
        """The type that fits a schema. Lines after the first begin with `indent`.

        described: whether the description of what is inlined stands somewhere else.
        """
        if not isinstance(schema, Mapping):
            return "never" if schema is False else "any"
        if self._is_named(schema):
            name = self._name(schema["$ref"])
            own = without(schema, ("$ref",))
            return f"{name} & {self._within(own, indent)}" if says_type(own) else name
        return self._inline(schema, indent, described)

    def _inline(self, schema: Schema, indent: str, described: bool) -> str:
        """A type with what it refers to written into it."""
        flat = self._document.flat(schema)
        whole = not flat.clash and not (flat.references & {*self._open, *self._names})
        reference = schema.get("$ref")
        opened = sorted(flat.references) if whole else []
        if not whole and self._document.target(reference) is not None:
            opened = [str(reference)]
        self._inlined += len(opened)
        self._open += opened
        try:
            if whole:
                inlined = opened or "allOf" in schema
                shown_here = without(flat.schema, ("description",)) if inlined and described else (
                    flat.schema
                )  # fmt: skip
                return self._written(shown_here, indent)
            parts = [part for part in self._document.parts(schema) if says_type(part)]
            alone = len(parts) == 1
            texts = dict.fromkeys(self._within(part, indent, alone) for part in parts)
            return " & ".join(texts) or "any"
        finally:
            del self._open[len(self._open) - len(opened) :]

    def _written(self, schema: Schema, indent: str) -> str:
        text = self._of_schema(schema, indent)
        self._length += len(text)
        if self._length > 16 * _MAX_LENGTH or len(text) > _MAX_LENGTH:
            raise Error(
                f"tools: expected parameters whose type has at most {_MAX_LENGTH} characters",
                field="tools",
            )
        return text

    def _of_schema(self, schema: Schema, indent: str) -> str:
        """Of a schema that is flat but for the schemas in it."""
        for union in _UNIONS:
            if _is_union(schema, union):
                return self._union(schema, union, indent)
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
        if properties(schema) or isinstance(schema.get("additionalProperties"), Mapping):
            return self._object(schema, indent)
        if "items" in schema or places(schema):
            return self._array(schema, indent)
        reference = schema.get("$ref")
        if isinstance(reference, str) and _is_short(reference):  # it leads nowhere
            return f"any /* {reference} */"
        return "any"

    def _of_kind(self, kind: str, schema: Schema, indent: str, alone: bool) -> str:
        if kind == "object" and (
            alone or properties(schema) or isinstance(schema.get("additionalProperties"), Mapping)
        ):
            return self._object(schema, indent)
        if kind == "array" and (alone or "items" in schema or places(schema)):
            return self._array(schema, indent)
        return _SCALARS.get(kind, "any")

    # Objects.

    def _object(self, schema: Schema, indent: str) -> str:
        out = []
        description = schema.get("description")
        if isinstance(description, str):
            out.append(f"{indent}// {description}\n")
        rest = schema.get("additionalProperties")
        if isinstance(rest, Mapping) and rest and not properties(schema):
            values = self._within(rest, indent, alone=True, noted=True)
            return "".join([*out, f"Record<string, {values}>"])
        out.append("{\n")
        required = {name for name in schemas(schema, "required") if isinstance(name, str)}
        for key, value in properties(schema).items():
            mark = "" if key in required else "?"
            out.append(self._property(f"{_key(key)}{mark}", value, indent))
        if isinstance(rest, Mapping) and rest:
            out.append(self._property("[key: string]", rest, indent))
        return "".join([*out, f"{indent}}}"])

    def _property(self, name: str, value: object, indent: str) -> str:
        out = []
        flat = self._flat(value)
        title = flat.get("title")
        if isinstance(title, str):
            out.append(f"{indent}// {title}\n{indent}//\n")
        lines = self._lines_of(value)
        description = None if self._says_itself(value) else flat.get("description")
        if isinstance(description, str) and not lines:
            out.append(f"{indent}// {description}\n")
        examples = schemas(flat, "examples")
        if examples:
            out.append(f"{indent}// Examples:\n")
            out += [f'{indent}// - "{each}"\n' for each in examples if isinstance(each, str)]
        if lines:
            out.append(self._property_of_variants(name, flat, lines, indent))
            return "".join(out)
        kind = _or_null(self.type(value, f"{indent}    "), flat)
        notes = [text for text in (_default(flat, bare=True), self.notes(value)) if text]
        out.append(f"{indent}{name}: {kind},{' // ' + ', '.join(notes) if notes else ''}\n")
        return "".join(out)

    def _says_itself(self, value: object) -> bool:
        """Whether a schema's description belongs to the declaration of a type of its own."""
        return self._is_named(value) and "description" not in _mapping(value)

    def _lines_of(self, value: object) -> list[Any]:
        """The variants of a property that are to have a line each."""
        flat = self._flat(value)
        if self._is_named(value) or self._document.flat(value).clash:
            return []
        for union in _UNIONS:
            if _is_union(flat, union):
                variants = _typed(flat, union)
                many = [each for each in variants if properties(self._flat(each))]
                told = [each for each in variants if "description" in self._flat(each)]
                wanted = union == "oneOf" or len(many) > 1 or (told and len(variants) > 2) or (
                    any("description" in _mapping(each) for each in variants)
                )  # fmt: skip
                return variants if wanted and not _outer(flat, union) else []
        return []

    def _property_of_variants(
        self, name: str, value: Schema, variants: list[Any], indent: str
    ) -> str:
        out = []
        description = value.get("description")
        first = self._flat(variants[0]).get("description")
        above = isinstance(description, str) and description != first
        if above:
            out.append(f"{indent}// {description}\n")
        notes = [text for text in (_default(value, bare=True), *self._own_notes(value)) if text]
        out += [f"{indent}// {note}\n" for note in notes]
        out.append(f"{indent}{name}:\n")
        for i, variant in enumerate(variants):
            text, said = self._variant(variant, indent, bare=True)
            repeated = i == 0 and above and "oneOf" in value and "$ref" not in _mapping(variant)
            if said and (said[0] == description or (repeated and said[0] == first)):
                said = said[1:]
            out.append(f"{indent} | {text}{' // ' + ' '.join(said) if said else ''}\n")
        if value.get("nullable") is True and not any("null" in line for line in out):
            out.append(f"{indent} | null\n")
        return "".join([*out, f"{indent},\n"])

    # Unions.

    def _union(self, schema: Schema, union: str, indent: str) -> str:
        variants = _typed(schema, union)
        outer = _outer(schema, union)
        if not outer and union == "oneOf":
            return "".join(self._line(variant, indent) for variant in variants)
        text = _either(self._within(variant, indent, alone=True) for variant in variants)
        if not outer:
            return text
        return f"{self.type(outer, indent)} & {f'({text})' if len(variants) > 1 else text}"

    def _line(self, variant: object, indent: str) -> str:
        text, said = self._variant(variant, indent)
        return f"\n{indent} | {text}{' // ' + ' '.join(said) if said else ''}"

    def _variant(self, variant: object, indent: str, bare: bool = False) -> tuple[str, list[str]]:
        """A variant's type; and what is to say of it: its description, its default, notes."""
        flat = self._flat(variant)
        text = _or_null(self.type(variant, f"{indent}   "), flat)
        said = [] if self._says_itself(variant) else [flat.get("description")]
        said += [each for each in (_default(flat, bare), self.notes(variant)) if each]
        return text, [each for each in said if isinstance(each, str)]

    def _within(self, schema: object, indent: str, alone: bool = False, noted: bool = False) -> str:
        """A type inside another, its description in a comment.

        alone: whether it stands between | or commas, and needs no parentheses. noted: whether what
        a type cannot say is to be in the comment, too.
        """
        flat = self._flat(schema)
        inner = self.type(schema, indent)
        text = _or_null(inner, flat)
        if not alone and (text != inner or self._has_parts(schema)):
            text = f"({text})"
        description = flat.get("description")
        mapping = _mapping(schema)
        in_it = flat.get("type") == "object" and not ("$ref" in mapping or "allOf" in mapping)
        about = [self.notes(schema)] if noted else []
        if isinstance(description, str) and not in_it and not self._says_itself(schema):
            about.insert(0, " ".join(description.split()))
        said = ", ".join(each for each in about if each)
        if not said:
            return text
        if text.startswith("{\n"):
            return f"{{ // {said}\n{text[2:]}"
        return f"{text} /* {said.replace('*/', '* /')} */"

    def _has_parts(self, schema: object) -> bool:
        """Whether a type consists of several with | or & between them."""
        if self._is_named(schema):
            return False
        flat = self._document.flat(schema)
        return (
            flat.clash
            or any(_is_union(flat.schema, union) for union in _UNIONS)
            or max(len(schemas(flat.schema, "enum")), len(schemas(flat.schema, "type"))) > 1
        )

    # Arrays.

    def _array(self, schema: Schema, indent: str) -> str:
        tuple_ = places(schema)
        if tuple_:
            parts = [self._within(place, indent, alone=True, noted=True) for place in tuple_]
            rest = schema.get("items") if "prefixItems" in schema else schema.get("additionalItems")
            if isinstance(rest, Mapping) and rest:
                parts.append(f"...{self._within(rest, indent, noted=True)}[]")
            return f"[{', '.join(parts)}]"
        if "items" not in schema:
            return "Array<any>"
        return f"{self._element(schema['items'], indent)}[]"

    def _element(self, schema: object, indent: str) -> str:
        """As openai-harmony has it, without parentheses, where that can say it."""
        if _is_plain(schema) and _mapping(schema).get("nullable") is not True:
            return self.type(schema, indent)
        return self._within(schema, indent)

    # References.

    def _is_named(self, schema: object) -> bool:
        """Whether a reference is to be written as a name: it is inside itself, or one too many."""
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or self._document.target(reference) is None:
            return False
        return (
            reference in self._open
            or reference in self._names
            or self._inlined >= _MAX_INLINED
        )  # fmt: skip

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

    def _flat(self, schema: object) -> Schema:
        return self._document.flat(schema).schema

    # Comments.

    def notes(self, schema: object) -> str:
        """What a type cannot say of a schema, for a comment."""
        return ", ".join(dict.fromkeys(self._notes(schema)))

    def _notes(self, schema: object) -> list[str]:
        if self._is_named(schema):  # the others stand where the name is declared
            schema = without(_mapping(schema), ("$ref",))
        if self._document.flat(schema).clash:
            parts = self._document.parts(_mapping(schema))
            return [note for part in parts for note in self._notes(part)]
        flat = self._flat(schema)
        found = self._own_notes(flat)
        for union in _UNIONS:
            found += [note for part in _typed(flat, union) for note in self._notes(part)]
        return found

    def _own_notes(self, flat: Schema) -> list[str]:
        """Without those of the variants of a union."""
        found = [f"{word}: {_json(flat[word])}" for word in _NOTED if _is_telling(word, flat)]
        for word in (*_UNIONS, "allOf"):
            rules = [each for each in schemas(flat, word) if each and not says_type(each)]
            if rules and not (word in _UNIONS and _is_union(flat, word)):
                found.append(f"{word}: {_json(rules)}")
        items = flat.get("items")
        if isinstance(items, Mapping) and not places(flat):
            inner = self._flat(items)
            about = inner.get("description")
            if isinstance(about, str) and _is_plain(items) and inner.get("type") != "object":
                found.append(f"items: {' '.join(about.split())}")
            found += [f"items' {note}" for note in self._notes(items)]
        return found


# Schemas.


def _mapping(schema: object) -> Schema:
    return schema if isinstance(schema, Mapping) else {}


def _is_union(schema: Schema, union: str) -> bool:
    return union in schema and any(says_type(each) for each in schemas(schema, union))


def _typed(schema: Schema, union: str) -> list[Any]:
    """The variants of a union, each with the type that is said of all of them."""
    variants = schemas(schema, union)
    if not _is_union(schema, union):
        return []
    shared = {"type": schema["type"]} if "type" in schema and not _outer(schema, union) else {}
    return [
        {**shared, **each} if isinstance(each, Mapping) and not says_type(each) else each
        for each in variants
    ]


def _outer(schema: Schema, union: str) -> Schema:
    """What holds beside a union, if that is more than a type."""
    outer = without(schema, (union, "allOf", "description", "nullable"))
    telling = outer.keys() & (TYPING - {"type"})
    return outer if any(outer[word] not in (True, False) for word in telling) else {}


def _is_plain(schema: object) -> bool:
    """Whether openai-harmony writes the type of an array's element as we do."""
    if not isinstance(schema, Mapping):
        return True
    if schema.keys() & {"$ref", "allOf", "anyOf", "const"}:
        return False
    if "oneOf" in schema:
        return all(_is_plain(each) for each in schemas(schema, "oneOf"))
    values = schemas(schema, "enum")
    return not values or (
        schema.get("type") == "string" and all(isinstance(value, str) for value in values)
    )


def _is_telling(word: str, schema: Schema) -> bool:
    """Whether a keyword says more than the type does."""
    if word not in schema:
        return False
    value = schema[word]
    if word in ("minItems", "maxItems") and places(schema):
        return value != len(places(schema))
    if word == "propertyNames":
        return value != {"type": "string"}
    if word in ("minimum", "maximum"):
        return value not in (-_SAFE_INTEGER, _SAFE_INTEGER)
    return True


# Texts.


def _or_null(text: str, schema: Schema) -> str:
    """`nullable` is how OpenAPI 3.0 says that null will do."""
    return f"{text} | null" if schema.get("nullable") is True and "null" not in text else text


def _default(schema: Schema, bare: bool = False) -> str:
    """bare: whether a default that is one of an enumeration stands without quotes."""
    if "default" not in schema:
        return ""
    value = schema["default"]
    if not isinstance(value, str) or (schemas(schema, "enum") and not bare):
        return f"default: {_json(value)}"
    # Not escaped, as descriptions are not.
    return f"default: {value}" if schemas(schema, "enum") else f'default: "{value}"'


def _either(parts: Iterator[str]) -> str:
    return " | ".join(dict.fromkeys(parts))


def _lines(text: str) -> list[str]:
    """Lines end with \\n or \\r\\n; what ends the last one begins no other."""
    lines = text.split("\n")
    last = lines.pop()
    return [*(line.removesuffix("\r") for line in lines), *([last] if last else [])]


def _is_short(text: str) -> bool:
    return len(text) <= 200 and text.isprintable() and "*/" not in text


def _key(key: object) -> str:
    return key if isinstance(key, str) else _json(key)


def _json(value: object) -> str:
    """JSON on one line without blanks. Exponents are written as in JavaScript, 1e-7."""
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", lambda m: "e" + m.group(1).strip("+"), repr(value))
    if isinstance(value, Mapping):
        inside = (f"{_json(_key(key))}:{_json(each)}" for key, each in value.items())
        return "{" + ",".join(inside) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_json, value))}]"
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # nothing that JSON has
        return json.dumps(shown(value), ensure_ascii=False)
