"""Policies in IAM's shape: statements that allow or deny actions on resources, and what they say together.

One evaluator for all there are: resource policies (which name principals) and roles' (which are attached to theirs). An
explicit deny outweighs every allow; what no statement allows is not allowed. Source: IAM user guide, "Policy evaluation
logic", "JSON policy elements".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from agentkeep.core.errors import ValidationException

__all__ = [
    "OPERATORS",
    "Asked",
    "Condition",
    "Decision",
    "Policy",
    "Statement",
    "decide",
    "pattern",
    "statements",
    "texts",
]

STATEMENTS: Final = 100
_VERSIONS: Final = ("2012-10-17", "2008-10-17")


class Decision(Enum):
    """Of all policies together: a deny outweighs every allow; NONE says nothing."""

    ALLOW = "allow"
    DENY = "deny"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants to do. `principals`: every name he goes by. `context`: the request's condition keys, in lower
    case; one that is not there was not in the request."""

    action: str
    resource: str = ""
    principals: frozenset[str] = frozenset()
    context: Mapping[str, str] = field(default_factory=dict)


#: Condition operators that are honoured: whether they compare patterns, without regard to case, and for difference.
OPERATORS: Final[Mapping[str, tuple[bool, bool, bool]]] = {
    "StringEquals": (False, False, False),
    "StringNotEquals": (False, False, True),
    "StringEqualsIgnoreCase": (False, True, False),
    "StringNotEqualsIgnoreCase": (False, True, True),
    "StringLike": (True, False, False),
    "StringNotLike": (True, False, True),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """`key` in lower case. `if_exists`: it holds where the request has no such key; otherwise only operators of
    difference do."""

    operator: str
    key: str
    values: tuple[str, ...]
    if_exists: bool = False

    def holds(self, context: Mapping[str, str]) -> bool:
        like, any_case, negated = OPERATORS[self.operator]
        value = context.get(self.key)
        if value is None:
            return self.if_exists or negated
        if like:
            found = any(pattern(wanted).fullmatch(value) is not None for wanted in self.values)
        elif any_case:
            found = value.casefold() in {wanted.casefold() for wanted in self.values}
        else:
            found = value in self.values
        return found is not negated


@dataclass(frozen=True, slots=True)
class Statement:
    """`principals`: ARNs, account ids or "*"; None: whoever the policy is attached to. `actions`: patterns in lower
    case. `resources`: patterns; None: the one the policy is attached to."""

    allows: bool
    actions: tuple[str, ...]
    resources: tuple[str, ...] | None = None
    principals: frozenset[str] | None = None
    conditions: tuple[Condition, ...] = ()

    def applies(self, asked: Asked) -> bool:
        if self.principals is not None and "*" not in self.principals and asked.principals.isdisjoint(self.principals):
            return False
        action = asked.action.lower()
        if not any(pattern(one).fullmatch(action) for one in self.actions):
            return False
        if self.resources is not None and not any(pattern(one).fullmatch(asked.resource) for one in self.resources):
            return False
        return all(condition.holds(asked.context) for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class Policy:
    statements: tuple[Statement, ...]


def decide(policies: Iterable[Policy], asked: Asked) -> Decision:
    decision = Decision.NONE
    for policy in policies:
        for statement in policy.statements:
            if statement.applies(asked):
                if not statement.allows:
                    return Decision.DENY
                decision = Decision.ALLOW
    return decision


@lru_cache(4096)
def pattern(text: str) -> re.Pattern[str]:
    """`*` is any text, `?` any character; nothing else is special. Matching takes time in proportion to both texts at
    most: whoever writes patterns may not keep whoever matches them. So each `*` but the last is as short as it can be
    and stays so (atomic groups), which finds a match wherever there is one."""
    first, *rest = ("".join("." if one == "?" else re.escape(one) for one in part) for part in text.split("*"))
    last = f".*{rest.pop()}" if rest else ""
    return re.compile(first + "".join(f"(?>.*?{part})" for part in rest if part) + last, re.DOTALL)


def statements(document: Any, most: int = STATEMENTS) -> list[Any]:
    """The statements of a policy document. Raises ValidationException saying what is wrong around them."""
    if not isinstance(document, dict) or document.get("Version") not in _VERSIONS:
        raise ValidationException('The policy must be an object with "Version": "2012-10-17".')
    if unknown := document.keys() - {"Version", "Id", "Statement"}:
        raise ValidationException(f"The policy has unknown members: {', '.join(sorted(unknown))}.")
    found = document.get("Statement")
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list) or not 1 <= len(found) <= most:
        raise ValidationException(f"The policy must have between 1 and {most} statements.")
    return found


def texts(value: Any) -> list[str]:
    """One text or a list of them; none where it is anything else."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(v, str) and v for v in values) else []
