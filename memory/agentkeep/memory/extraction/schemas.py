"""The shapes of models' answers, as JSON Schemas that providers can hold a model to: every member is required."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentkeep.memory.strategies import Strategy

__all__ = ["CONSOLIDATION", "SUMMARY", "facts", "inferred", "preferences"]

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_TEXTS: Final[Schema] = {"type": "array", "items": _TEXT}
_NUMBERS: Final[Schema] = {"type": "array", "items": {"type": "integer"}}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(**properties: Schema) -> Schema:
    return {"type": "array", "items": _object(**properties)}


CONSOLIDATION: Final = _object(
    operations=_list(
        fact={"type": "integer"},
        operation={"type": "string", "enum": ["AddMemory", "UpdateMemory", "SkipMemory"]},
        record={"type": ["integer", "null"]},
        text={"type": ["string", "null"]},
    )
)
SUMMARY: Final = _object(summary=_TEXT)


def facts(strategy: Strategy) -> Schema:
    return _object(facts=_list(fact=_TEXT, messages=_NUMBERS, **_metadata(strategy)))


def preferences(strategy: Strategy) -> Schema:
    return _object(
        preferences=_list(preference=_TEXT, context=_TEXT, categories=_TEXTS, messages=_NUMBERS, **_metadata(strategy))
    )


def inferred(strategy: Strategy) -> Sequence[Mapping[str, Any]]:
    """The entries of its record schema that a model is to fill."""
    entries = (strategy.record_schema or {}).get("metadataSchema", ())
    return [entry for entry in entries if entry.get("extractionType", "LLM_INFERRED") == "LLM_INFERRED"]


def _metadata(strategy: Strategy) -> dict[str, Schema]:
    members = {entry["key"]: _value(entry) for entry in inferred(strategy)}
    return {"metadata": _object(**members)} if members else {}


def _value(entry: Mapping[str, Any]) -> Schema:
    validation = entry.get("extractionConfig", {}).get("llmExtractionConfig", {}).get("validation", {})
    match entry.get("type", "STRING"):
        case "NUMBER":
            found: Schema = {"type": ["number", "null"]}
            rules = validation.get("numberValidation", {})
            found |= {name: rules[given] for name, given in _BOUNDS.items() if given in rules}
        case "STRINGLIST":
            rules = validation.get("stringListValidation", {})
            items = {"type": "string", "enum": rules["allowedValues"]} if "allowedValues" in rules else _TEXT
            found = {"type": ["array", "null"], "items": items}
            found |= {"maxItems": rules["maxItems"]} if "maxItems" in rules else {}
        case _:
            found = {"type": ["string", "null"]}
            if allowed := validation.get("stringValidation", {}).get("allowedValues"):
                found = {"anyOf": [{"type": "string", "enum": allowed}, {"type": "null"}]}
    return found


_BOUNDS: Final = {"minimum": "minValue", "maximum": "maxValue"}
