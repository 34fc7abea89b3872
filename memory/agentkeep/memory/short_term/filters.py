"""Metadata filters of ListEvents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentkeep.core.errors import FieldError, ValidationException
from agentkeep.memory.short_term.event import Event

__all__ = ["metadata_matches"]


def metadata_matches(expressions: Sequence[Mapping[str, Any]]) -> Callable[[Event], bool]:
    """All of a request's EventMetadataFilterExpressions at once. Raises ValidationException."""
    equal: dict[str, list[str]] = {}
    present: set[str] = set()
    absent: set[str] = set()
    for index, expression in enumerate(expressions):
        key, operator, right = expression["left"]["metadataKey"], expression["operator"], expression.get("right")
        if (operator == "EQUALS_TO") != (right is not None):
            name = f"filter.eventMetadata.{index}.member.right"
            message = "is needed with EQUALS_TO" if right is None else f"must not be given with {operator}"
            raise ValidationException(f"{name} {message}", fields=[FieldError(name, message)])
        if right is not None:
            equal.setdefault(key, []).append(right["metadataValue"]["stringValue"])
        elif operator == "EXISTS":
            present.add(key)
        else:
            absent.add(key)

    def matches(event: Event) -> bool:
        metadata = event.metadata
        return (
            all(metadata.get(key) == value for key, values in equal.items() for value in values)
            and present <= metadata.keys()
            and absent.isdisjoint(metadata)
        )

    return matches
