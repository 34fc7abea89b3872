"""A memory's own variables of namespace templates, with the values they may have (the model's namespaceKeys)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from agentkeep.core.errors import FieldError, ValidationException
from agentkeep.memory.strategies import Strategy

__all__ = ["check_namespace_keys"]

_VARIABLE: Final = re.compile(r"\{([a-z][a-z0-9]*)\}")  # the model's keys; built-in ones have capitals


def check_namespace_keys(keys: Sequence[Mapping[str, Any]], strategies: Iterable[Strategy]) -> None:
    """Raises ValidationException: a key twice, a pattern that is none, or a template of the memory's strategies with a
    variable that is no key (any more)."""
    names = [key["key"] for key in keys]
    for index, key in enumerate(keys):
        if key["key"] in names[:index]:
            raise _invalid(f"{index + 1}.member.key", f"names {key['key']} twice")
        pattern = key.get("validation", {}).get("regexPattern")
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise _invalid(
                f"{index + 1}.member.validation.regexPattern", f"is no regular expression: {error}"
            ) from None
    for strategy in strategies:
        for variable in _VARIABLE.findall(" ".join(strategy.namespaces)):
            if variable not in names:
                raise _invalid("", f"must have {variable}, which strategy {strategy.name}'s namespace is made with")


def _invalid(member: str, message: str) -> ValidationException:
    field = f"namespaceKeys.{member}".rstrip(".")
    return ValidationException(f"{field} {message}", fields=[FieldError(field, message)])
