"""A port's methods as they travel, derived from the Protocol's type hints."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

__all__ = ["PortMethod", "describe"]


@dataclass(frozen=True, slots=True)
class PortMethod:
    """An asynchronous method. Its arguments travel as a JSON object by their names, its result as JSON."""

    name: str
    signature: inspect.Signature
    arguments: type[BaseModel]
    result: TypeAdapter[Any]

    def pack(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Raises TypeError, as a call with wrong arguments does."""
        bound = self.signature.bind(*args, **kwargs)
        return self.arguments.model_validate(bound.arguments).model_dump_json().encode()

    def unpack(self, data: bytes) -> dict[str, Any]:
        """The arguments, as the method takes them by name. Raises pydantic.ValidationError."""
        found = self.arguments.model_validate_json(data)
        return {name: getattr(found, name) for name in self.arguments.model_fields}

    def pack_result(self, value: Any) -> bytes:
        return self.result.dump_json(value)

    def unpack_result(self, data: bytes) -> Any:
        """Raises pydantic.ValidationError."""
        return self.result.validate_json(data)


def describe(protocol: type) -> dict[str, PortMethod]:
    """By name. Methods that do not wait are no part of the wire: clients answer them from what they know."""
    return {
        name: _method(name, member)
        for name, member in vars(protocol).items()
        if not name.startswith("_") and inspect.iscoroutinefunction(member)
    }


def _method(name: str, function: Callable[..., Any]) -> PortMethod:
    hints = get_type_hints(function)
    signature = inspect.signature(function)
    own = signature.replace(parameters=list(signature.parameters.values())[1:])
    fields: dict[str, Any] = {
        parameter.name: (
            hints[parameter.name],
            ... if parameter.default is inspect.Parameter.empty else parameter.default,
        )
        for parameter in own.parameters.values()
    }
    # Errors must not show what was sent: it may be a key or a token.
    configuration = ConfigDict(extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=False)
    arguments = create_model(name, __config__=configuration, **fields)
    return PortMethod(name, own, arguments, TypeAdapter(hints["return"]))
