"""Conditions on a verified token's claims, as the files of rules and roles have them.

A value is equal in type and text; `{"contains": "x"}` is an element of a list; `{"anyOf": [...]}` one of several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import (
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from agentkeep.core.rules_file import Strict

__all__ = ["ClaimConditions", "claim", "first_unmet"]

_IN_WORDS: Final = ("scope", "scp")

_Scalar = StrictStr | StrictBool | StrictInt


class _Contains(Strict):
    """A list with this among its elements. Of text only the scopes are a list, in words: a part of somebody's name must
    not be taken for a group."""

    contains: StrictStr = Field(min_length=1)

    def accepts(self, name: str, value: Any) -> bool:
        if name in _IN_WORDS and isinstance(value, str):
            value = value.split()
        return isinstance(value, list) and self.contains in value


class _AnyOf(Strict):
    any_of: tuple[_Scalar, ...] = Field(min_length=1, alias="anyOf")

    def accepts(self, name: str, value: Any) -> bool:
        return any(_same(one, value) for one in self.any_of)


def _one_of_all(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError:  # it says of each form why it is none of them
        raise ValueError(
            'must be a text, a whole number, true or false, {"contains": "text"} or {"anyOf": [...]} of those'
        ) from None


ClaimConditions = dict[StrictStr, Annotated[_Scalar | _Contains | _AnyOf, WrapValidator(_one_of_all)]]


def first_unmet(conditions: ClaimConditions, claims: Mapping[str, Any]) -> str | None:
    """The claim that is not as it must be; None: all are."""
    for name, wanted in conditions.items():
        value = claim(claims, name)
        met = wanted.accepts(name, value) if isinstance(wanted, _Contains | _AnyOf) else _same(wanted, value)
        if not met:
            return name
    return None


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or a member of one that is an object (`realm_access.roles`); the token's own names, which
    may have dots in them, go first. None: there is none."""
    if name in claims:
        return claims[name]
    for place, character in enumerate(name):
        if character == ".":
            member = claims.get(name[:place])
            if isinstance(member, dict) and (found := claim(member, name[place + 1 :])) is not None:
                return found
    return None


def _same(wanted: str | bool | int, value: Any) -> bool:
    return type(wanted) is type(value) and bool(wanted == value)
