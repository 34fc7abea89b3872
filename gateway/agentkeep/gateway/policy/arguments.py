"""A tool's arguments as Cedar values, and the Cedar types its JSON schema declares for them.

Each value becomes the Cedar value that stands for it and for nothing else. One that its declared type cannot hold (an
integer beyond 64 bits, a number with more than four decimals, a null) becomes a value of another type, equal to none
of the declared one: comparing it for equality is right, and ordering it is an evaluation error, which denies. So
nothing is rounded into a limit, and nothing that a policy does not look at is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

__all__ = ["NULL", "Undecidable", "declared", "value", "values"]

#: The type of the entity that stands for JSON's null.
NULL: Final = "AgentCore::Null"

_LONG: Final = range(-(2**63), 2**63)
_MOST_DECIMALS: Final = 4  # of Cedar's decimal, a 64-bit number of ten-thousandths
_DEEPEST: Final = 32
#: What Cedar's JSON format takes for an entity, an extension value or an expression rather than for a record.
_ESCAPES: Final = frozenset({"__entity", "__extn", "__expr"})

Schema = Mapping[str, Any]


class Undecidable(Exception):
    """The arguments cannot be put to a policy; the message says why."""


def values(arguments: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """The record `context.input`, in Cedar's JSON format. Raises Undecidable."""
    record: dict[str, Any] = value(dict(arguments), {**schema, "type": "object"}, _definitions(schema))
    return record


def value(given: Any, schema: Schema, definitions: Schema, depth: int = 0) -> Any:
    """One value of the kind the schema declares."""
    if depth > _DEEPEST:
        raise Undecidable(f"the arguments nest more than {_DEEPEST} levels")
    schema = _resolved(schema, definitions)
    if isinstance(given, bool | str):  # before int, of which bool is one
        return given
    if given is None:
        return {"__entity": {"type": NULL, "id": "null"}}
    if isinstance(given, int | float | Decimal):
        return _number(given, schema.get("type"))
    if isinstance(given, list | tuple):
        items = schema.get("items")
        items = items if isinstance(items, dict) else {}
        return [value(one, items, definitions, depth + 1) for one in given]
    if isinstance(given, dict):
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        if not all(isinstance(name, str) for name in given):
            raise Undecidable("the arguments have a name that is no text")
        if reserved := _ESCAPES.intersection(given):
            raise Undecidable(f"the arguments have a member {min(reserved)}, which policies reserve")
        return {name: value(one, _property(properties, name), definitions, depth + 1) for name, one in given.items()}
    raise Undecidable(f"the arguments hold a {type(given).__name__}, which is not JSON")


def declared(schema: Schema, definitions: Schema | None = None, depth: int = 0) -> dict[str, Any] | None:
    """The Cedar type (JSON schema format) of values of this JSON schema; None where Cedar has none for it (unions,
    arrays of anything), so that no policy can be written about them."""
    definitions = _definitions(schema) if definitions is None else definitions
    schema = _resolved(schema, definitions)
    if depth > _DEEPEST:
        return None
    match _single(schema.get("type")):
        case "string":
            return {"type": "String"}
        case "integer":
            return {"type": "Long"}
        case "boolean":
            return {"type": "Boolean"}
        case "number":
            return {"type": "Extension", "name": "decimal"}
        case "array":
            items = schema.get("items")
            element = declared(items, definitions, depth + 1) if isinstance(items, dict) else None
            return {"type": "Set", "element": element} if element is not None else None
        case "object":
            return _record(schema, definitions, depth)
    return None


def _record(schema: Schema, definitions: Schema, depth: int) -> dict[str, Any]:
    properties, required = schema.get("properties"), schema.get("required")
    attributes: dict[str, Any] = {}
    for name, one in properties.items() if isinstance(properties, dict) else ():
        kind = declared(one, definitions, depth + 1) if isinstance(one, dict) and name not in _ESCAPES else None
        if kind is not None:
            wanted = isinstance(required, list) and name in required
            attributes[name] = {**kind, "required": wanted}
    return {"type": "Record", "attributes": attributes}


def _number(given: int | float | Decimal, kind: Any) -> Any:
    kind = _single(kind)
    if kind != "number" and (isinstance(given, int) or given == given // 1):
        whole = int(given)
        if whole in _LONG:
            return whole
        return str(given)
    exact = Decimal(repr(given)) if isinstance(given, float) else Decimal(given)
    scaled = exact.scaleb(_MOST_DECIMALS) if exact.is_finite() else exact
    if not exact.is_finite() or scaled != scaled.to_integral_value() or int(scaled) not in _LONG:
        return str(given)
    text = format(exact, "f")
    return {"__extn": {"fn": "decimal", "arg": text if "." in text else text + ".0"}}


def _single(kind: Any) -> Any:
    """`type`, where it names one type besides null."""
    if isinstance(kind, list):
        others = [one for one in kind if one != "null"]
        return others[0] if len(others) == 1 else None
    return kind


def _property(properties: Schema, name: str) -> Schema:
    found = properties.get(name)
    return found if isinstance(found, dict) else {}


def _definitions(schema: Schema) -> Schema:
    found = schema.get("$defs", schema.get("definitions"))
    return found if isinstance(found, dict) else {}


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    """What a local reference (#/$defs/Name) leads to; an empty schema where it leads nowhere."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref")
        if reference is None:
            return schema
        prefix, _, name = reference.rpartition("/") if isinstance(reference, str) else ("", "", "")
        found = definitions.get(name) if prefix in ("#/$defs", "#/definitions") else None
        if not isinstance(found, dict):
            return {}
        schema = found
    return {}
