"""JSON schemas: references looked up, and what is said in several places put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Schema = Mapping[str, Any]

# Keywords that say of which type a value is; the others narrow it down, or are comments.
TYPING = frozenset(
    ("type", "enum", "const", "properties", "additionalProperties", "items", "prefixItems",
     "oneOf", "anyOf", "allOf", "$ref")
)  # fmt: skip
# Of two that differ the nearer holds.
_COMMENTS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
     "nullable", "discriminator")
)  # fmt: skip
_KINDS = {
    "object": {"properties", "additionalProperties"},
    "array": {"items", "prefixItems"},
    "value": {"enum", "const"},
}
_NOT_PASSED_ON = frozenset(("$defs", "definitions", "$id", "$schema", "$anchor", "$dynamicAnchor"))


class Flat(NamedTuple):
    """A schema without references and `allOf`.

    references: what it is made of. clash: whether parts of it contradict one another, so that the
    schema is not the whole truth.
    """

    schema: Schema
    references: frozenset[str] = frozenset()
    clash: bool = False


class Document:
    """A schema, from whose root its references start."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._targets: dict[str, Schema | None] = {}
        self._flat: dict[str, Flat] = {}

    def target(self, reference: object) -> Schema | None:
        """What a reference of this document (RFC 6901, or an anchor) refers to."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        if reference not in self._targets:
            self._targets[reference] = self._find(reference[1:])
        return self._targets[reference]

    def _find(self, place: str) -> Schema | None:
        found: Any = self._root
        if place and not place.startswith("/"):
            return _anchored(self._root, place)
        for part in place.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping):
                found = found.get(key)
            elif isinstance(found, (list, tuple)) and re.fullmatch(r"[0-9]{1,6}", key):
                found = found[int(key)] if int(key) < len(found) else None
            else:
                return None
        return found if isinstance(found, Mapping) else None

    def flat(self, schema: object) -> Flat:
        """A schema with what it refers to, and what its `allOf` says, written into it."""
        if not isinstance(schema, Mapping):
            return Flat({})
        if "$ref" not in schema and "allOf" not in schema:
            return Flat(schema)
        parts = self.parts(schema)
        if len(parts) == 1:
            return Flat(schema)
        found = [self._of_reference(schema["$ref"])] if "$ref" in schema else []
        rules = [part for part in parts[1:] if "if" in _keys(part)]  # they are read in pairs
        found += [self.flat(part) for part in schemas(schema, "allOf") if part not in rules]
        said = [each.schema for each in found] + ([{"allOf": rules}] if rules else [])
        merged, clash = merge([*said, parts[0]])
        references = frozenset().union(*(each.references for each in found))
        return Flat(merged, references, clash or any(each.clash for each in found))

    def parts(self, schema: Schema) -> list[Any]:
        """What must all hold: the schema's own keywords; what it refers to; what `allOf` lists."""
        own = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        found: list[Any] = [own]
        if (target := self.target(schema.get("$ref"))) is not None:
            found.append(target)
        return found + schemas(schema, "allOf")

    def _of_reference(self, reference: str) -> Flat:
        target = self.target(reference)
        if target is None:
            return Flat({})
        if reference not in self._flat:
            # What refers to itself without a property between says nothing of itself.
            self._flat[reference] = Flat({}, frozenset((reference,)))
            schema, references, clash = self.flat(target)
            kept = {key: value for key, value in schema.items() if key not in _NOT_PASSED_ON}
            if kept.get("title") == reference.rpartition("/")[2]:
                del kept["title"]  # as generators name classes
            self._flat[reference] = Flat(kept, references | {reference}, clash)
        return self._flat[reference]


def merge(parts: Iterable[Schema]) -> tuple[dict[str, Any], bool]:
    """One schema that says what several say together; and whether they contradict one another.

    What narrows a type down twice stays in an `allOf`.
    """
    whole: dict[str, Any] = {}
    clash = False
    for part in parts:
        for key, value in part.items():
            if key == "additionalProperties" and not isinstance(value, Mapping):
                continue
            if key not in whole or key in _COMMENTS or whole[key] == value:
                whole[key] = value
            elif key == "properties":
                whole[key] = _both(properties(whole), properties(part))
            elif key in ("required", "allOf"):
                whole[key] = [*schemas(whole, key), *schemas(part, key)]
            elif key in TYPING:
                clash = True
            else:
                whole["allOf"] = [*schemas(whole, "allOf"), {key: value}]
    return whole, clash or _is_of_several_kinds(whole)


def _is_of_several_kinds(schema: Schema) -> bool:
    """Whether it speaks of objects, of arrays or of values, and of more than one of these."""
    kinds = {kind for kind, words in _KINDS.items() if not words.isdisjoint(schema)}
    named = schema.get("type")
    if isinstance(named, str):
        kinds.add(named if named in _KINDS else "value")
    return len(kinds) > 1 or {"enum", "const"} <= schema.keys()


def _both(one: Schema, other: Schema) -> dict[str, Any]:
    found = {**one, **other}
    for name in one.keys() & other.keys():
        if one[name] != other[name]:
            found[name] = {"allOf": [one[name], other[name]]}
    return {name: found[name] for name in {**one, **other}}


def _anchored(schema: object, name: str) -> Schema | None:
    level, seen = [schema], set()
    while level:
        place = level.pop()
        if id(place) in seen:
            continue
        seen.add(id(place))
        if isinstance(place, Mapping):
            if name in (place.get("$anchor"), place.get("$dynamicAnchor")):
                return place
            level += place.values()
        elif isinstance(place, (list, tuple)):
            level += place
    return None


def _keys(schema: object) -> Iterable[str]:
    return schema if isinstance(schema, Mapping) else ()


def says_type(schema: object) -> bool:
    """Whether a schema says of which type a value is."""
    return schema is False or (isinstance(schema, Mapping) and not TYPING.isdisjoint(schema))


def schemas(schema: Schema, word: str) -> list[Any]:
    """What a keyword lists; nothing where it is not there, or no list."""
    found = schema.get(word) if word in schema else None
    return list(found) if isinstance(found, (list, tuple)) else []


def properties(schema: Schema) -> Schema:
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def places(schema: Schema) -> list[Any]:
    """Of a tuple, the schemas of its places."""
    return schemas(schema, "prefixItems") or schemas(schema, "items")


def without(schema: Schema, words: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in words}
