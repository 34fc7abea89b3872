"""Which records a request is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentkeep.core.errors import FieldError, ValidationException
from agentkeep.memory.long_term.namespaces import normalised
from agentkeep.memory.long_term.record import STRATEGY_KEY, metadata_value
from agentkeep.memory.memories import Memory
from agentkeep.storage.search import Condition, Operator, Selection, Value

__all__ = ["checked_path", "selection"]

_WITHOUT_RIGHT: Final = {Operator.EXISTS, Operator.NOT_EXISTS}
#: Which members of the right side an operator takes; every other operator takes a number.
_KINDS: Final[Mapping[Operator, tuple[str, ...]]] = {
    Operator.EQUALS_TO: ("stringValue", "numberValue"),
    Operator.CONTAINS: ("stringListValue", "stringValue"),
    Operator.BEFORE: ("dateTimeValue",),
    Operator.AFTER: ("dateTimeValue",),
}


def selection(
    memory: Memory, request: Mapping[str, Any], criteria: Mapping[str, Any], field: str = ""
) -> tuple[Selection, str]:
    """From ListMemoryRecords or RetrieveMemoryRecords: what is selected, and the normalised path it lies under.
    `criteria`: the structure with the filters, at `field` of the request. Raises ValidationException."""
    given = [member for member in ("namespace", "namespacePath") if member in request]
    if len(given) != 1:
        raise _invalid(
            "namespace", "exactly one of namespace (that one) and namespacePath (it and all beneath it) is needed"
        )
    path = checked_path(request[given[0]], given[0])
    conditions = list(_conditions(memory, criteria.get("metadataFilters", ()), f"{field}metadataFilters"))
    if "memoryStrategyId" in criteria:
        conditions.append(Condition(STRATEGY_KEY, Operator.EQUALS_TO, criteria["memoryStrategyId"]))
    if given == ["namespace"]:
        return Selection(namespace=path, conditions=conditions), path
    return Selection(namespace_path=path, conditions=conditions), path


def checked_path(path: str, field: str) -> str:
    """The path, normalised. Raises ValidationException."""
    try:
        return normalised(path)
    except ValueError as error:
        raise _invalid(field, str(error)) from None


def _conditions(memory: Memory, expressions: Sequence[Mapping[str, Any]], field: str) -> Sequence[Condition]:
    indexed = [key["key"] for key in memory.indexed_keys]
    return [_condition(expression, indexed, f"{field}.{index}.member") for index, expression in enumerate(expressions)]


def _condition(expression: Mapping[str, Any], indexed: Sequence[str], field: str) -> Condition:
    key, operator = expression["left"]["metadataKey"], Operator(expression["operator"])
    if key not in indexed:
        keys = f"this memory's are {', '.join(indexed)}" if indexed else "this memory has none"
        raise _invalid(f"{field}.left.metadataKey", f"{key} is not an indexed key: {keys}; UpdateMemory adds some")
    right = expression.get("right")
    if operator in _WITHOUT_RIGHT:
        if right is not None:
            raise _invalid(f"{field}.right", f"must not be given with {operator}")
        return Condition(key, operator)
    kinds = _KINDS.get(operator, ("numberValue",))
    given: Mapping[str, Any] = right["metadataValue"] if right is not None else {}
    if not any(kind in given for kind in kinds):
        raise _invalid(f"{field}.right", f"{operator} needs a {' or a '.join(kinds)}")
    try:
        value: Value = metadata_value(given, key)
    except ValueError as error:
        raise _invalid(f"{field}.right", str(error)) from None
    return Condition(key, operator, [value] if operator is Operator.CONTAINS and isinstance(value, str) else value)


def _invalid(field: str, message: str) -> ValidationException:
    return ValidationException(f"{field}: {message}", fields=[FieldError(field, message)])
