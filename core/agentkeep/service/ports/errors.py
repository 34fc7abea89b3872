"""Errors on their way between services: by class, message and what else their class has, raised again as they were."""

from __future__ import annotations

from typing import Any, Final

import orjson

from agentkeep.core import errors
from agentkeep.core.errors import (
    AgentkeepError,
    ConditionFailed,
    EnvironmentStartFailed,
    FieldError,
    InsufficientScope,
    InternalServerException,
    ServiceError,
    UnauthorizedException,
    ValidationException,
)

__all__ = ["dump_error", "load_error", "status_of"]

#: What travels. The two left out belong to a store and a driver, which are no ports, and have members of their own.
_CLASSES: Final = {
    name: found
    for name in errors.__all__
    if isinstance(found := getattr(errors, name), type)
    and issubclass(found, AgentkeepError)
    and found not in (ConditionFailed, EnvironmentStartFailed)
}


def status_of(error: AgentkeepError) -> int:
    return error.status if isinstance(error, ServiceError) else 503


def dump_error(error: AgentkeepError) -> bytes:
    """As the nearest class that travels."""
    name = next(each.__name__ for each in type(error).__mro__ if each.__name__ in _CLASSES)
    document: dict[str, Any] = {"error": name, "message": str(error)}
    if isinstance(error, ValidationException):
        document |= {"reason": error.reason, "fields": [list(field) for field in error.fields]}
    if isinstance(error, UnauthorizedException | InsufficientScope):
        document["challenge"] = error.challenge
    return orjson.dumps(document)


def load_error(data: bytes) -> AgentkeepError:
    """An error to raise; InternalServerException where `data` is none that is known here."""
    try:
        document = orjson.loads(data)
        found, message = _CLASSES[document["error"]], str(document["message"])
        if issubclass(found, ValidationException):
            return found(message, document["reason"], [FieldError(*field) for field in document["fields"]])
        if issubclass(found, UnauthorizedException | InsufficientScope):
            return found(message, document["challenge"])
        return found(message)
    except (ValueError, KeyError, TypeError):
        return InternalServerException("Another service of the platform failed; its log tells more")
