"""Schemas of OpenAPI documents as JSON Schema: references into the document, and what 3.0 says in words of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from agentkeep.gateway.targets.errors import TargetRefused

__all__ = ["Schemas", "pointer"]

_DEEPEST: Final = 64
#: OpenAPI's own, of no meaning for validation.
_DROPPED: Final = frozenset({"discriminator", "xml", "externalDocs", "example", "nullable", "readOnly", "writeOnly"})
_SCHEMA_LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMA_MAPS: Final = ("properties", "patternProperties", "$defs", "dependentSchemas")
_SCHEMAS: Final = (
    "items", "not", "if", "then", "else", "contains", "propertyNames", "additionalProperties", "unevaluatedProperties",
)  # fmt: skip


def pointer(place: tuple[str, ...]) -> str:
    """RFC 6901, as a fragment: `#/paths/~1orders/get`."""
    return "#" + "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in place)


class Schemas:
    """`nullable`: whether the document is of OpenAPI 3.0, whose schemas are not quite JSON Schema."""

    def __init__(self, document: Mapping[str, Any], *, nullable: bool) -> None:
        self._document = document
        self._nullable = nullable
        self._definitions: dict[str, Any] = {}

    def resolved(self, entry: Any, place: tuple[str, ...]) -> Mapping[str, Any]:
        """An object that may be a reference (a parameter, a body, a path item)."""
        for _ in range(_DEEPEST):
            if not isinstance(entry, dict):
                raise TargetRefused(f"The OpenAPI document cannot be used: {pointer(place)} must be an object")
            if "$ref" not in entry:
                return entry
            entry = self._at(entry["$ref"], place)
        raise TargetRefused(f"The OpenAPI document cannot be used: {pointer(place)} refers to itself")

    def converted(self, schema: Any, place: tuple[str, ...], depth: int = 0) -> Any:
        """JSON Schema. What it refers to is kept under `$defs` (`add_definitions`)."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict) or depth > _DEEPEST:
            what = "is nested too deeply" if depth > _DEEPEST else "must be a schema"
            raise TargetRefused(f"The OpenAPI document cannot be used: {pointer(place)} {what}")
        if "$ref" in schema:
            return self._reference(schema, place)
        made = {name: value for name, value in schema.items() if name not in _DROPPED and not name.startswith("x-")}
        for name in _SCHEMA_LISTS:
            if isinstance(made.get(name), list):
                made[name] = [
                    self.converted(one, (*place, name, str(index)), depth + 1) for index, one in enumerate(made[name])
                ]
        for name in _SCHEMA_MAPS:
            if isinstance(made.get(name), dict):
                made[name] = {
                    key: self.converted(one, (*place, name, key), depth + 1)
                    for key, one in made[name].items()
                    # Of no use in a request: the specification says that they should not be sent.
                    if not (name == "properties" and isinstance(one, dict) and one.get("readOnly"))
                }
        for name in _SCHEMAS:
            if isinstance(made.get(name), dict):
                made[name] = self.converted(made[name], (*place, name), depth + 1)
        if isinstance(made.get("required"), list) and isinstance(made.get("properties"), dict):
            shown = schema.get("properties", {})
            made["required"] = [name for name in made["required"] if name in made["properties"] or name not in shown]
        return self._modern(schema, made) if self._nullable else made

    def definition(self, schema: Any) -> Any:
        """A converted schema, or what it refers to."""
        for _ in range(_DEEPEST):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            schema = self._definitions[schema["$ref"].removeprefix("#/$defs/")]
        return schema

    def add_definitions(self, schema: dict[str, Any]) -> None:
        """Puts what is referred to, from anywhere within, into the schema's `$defs`."""
        wanted: dict[str, Any] = {}
        waiting: list[Any] = [schema]
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict):
                name = part.get("$ref")
                name = name.removeprefix("#/$defs/") if isinstance(name, str) else None
                if name in self._definitions and name not in wanted:
                    wanted[name] = self._definitions[name]
                    waiting.append(wanted[name])
                waiting += part.values()
            elif isinstance(part, list):
                waiting += part
        if wanted:
            schema["$defs"] = wanted

    def _reference(self, schema: Mapping[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
        target = schema["$ref"]
        found = self._at(target, place)
        name = ".".join(str(target).removeprefix("#/").split("/"))
        if name not in self._definitions:
            self._definitions[name] = {}  # one that refers to itself finds this
            self._definitions[name] = self.converted(found, tuple(str(target).removeprefix("#/").split("/")))
        return {"$ref": f"#/$defs/{name}"}

    def _at(self, target: Any, place: tuple[str, ...]) -> Any:
        if not isinstance(target, str) or not target.startswith("#/"):
            raise TargetRefused(
                f"The OpenAPI document cannot be used: {pointer(place)} refers to {target!r}; references must stay in "
                "the document"
            )
        found: Any = self._document
        for part in target[2:].split("/"):
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise TargetRefused(
                    f"The OpenAPI document cannot be used: {pointer(place)} refers to {target}, which is not there"
                )
            found = found[name]
        return found

    @staticmethod
    def _modern(schema: Mapping[str, Any], made: dict[str, Any]) -> dict[str, Any]:
        """OpenAPI 3.0's `nullable`, and its boolean `exclusiveMinimum` and `exclusiveMaximum`."""
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            flag = made.pop(exclusive, None) if isinstance(made.get(exclusive), bool) else None
            if flag and bound in made:
                made[exclusive] = made.pop(bound)
        if schema.get("nullable") is True:
            kinds = made.get("type")
            if isinstance(kinds, str):
                made["type"] = [kinds, "null"]
                if isinstance(made.get("enum"), list) and None not in made["enum"]:
                    made["enum"] = [*made["enum"], None]
            elif kinds is None and made:
                return {"anyOf": [made, {"type": "null"}]}
        return made
