"""A token's claims as text, for policies.

Scalars as JSON writes them, lists joined by spaces (white space within an element becomes `_`, so that no element can
pass for two), members of objects under a dotted name (`realm_access.roles`). What cannot be said so is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agentkeep.core.call import INCOMPLETE_CLAIMS, RESERVED_CLAIMS
from agentkeep.core.token_claims import claims_of

__all__ = ["LONGEST", "MOST", "as_text", "of_verified"]

logger = logging.getLogger(__name__)

#: Claims kept of a token, and bytes of each in UTF-8, its name included.
MOST: Final = 64
LONGEST: Final = 1024
_DEEPEST: Final = 3


def as_text(claims: Mapping[str, Any]) -> dict[str, str]:
    """Bounded: a claim that is too long is left out rather than cut short, for half a list of groups is another list.
    INCOMPLETE_CLAIMS then says how many. A claim of a token's own name goes before a member of an object that would
    have the same; names that the platform keeps for itself are dropped."""
    found: dict[str, str] = {}
    left_out = 0
    flat = [(name, value) for name, value in claims.items() if not isinstance(value, dict)]
    nested = [one for name, value in claims.items() if isinstance(value, dict) for one in _members(name, value, 1)]
    for name, value in (*flat, *nested):
        text = _text(value)
        if text is None or name in found or name.startswith(RESERVED_CLAIMS):
            continue
        if len(found) >= MOST or len(name.encode()) + len(text.encode()) > LONGEST:
            left_out += 1
            continue
        found[name] = text
    if left_out:
        found[INCOMPLETE_CLAIMS] = str(left_out)
        logger.warning("%d claims of a token are too many or too long, and no policy will see them", left_out)
    return found


def of_verified(token: str) -> dict[str, str]:
    """Of a JWT whose signature was verified before; none of what is no JWT."""
    return as_text(claims_of(token))


def _members(prefix: str, value: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for name, member in value.items():
        dotted = f"{prefix}.{name}"
        if not isinstance(member, dict):
            yield dotted, member
        elif depth < _DEEPEST:
            yield from _members(dotted, member, depth + 1)


def _text(value: Any) -> str | None:
    if isinstance(value, list):
        texts = [_scalar(one) for one in value]
        return " ".join("_".join(text.split()) for text in texts if text is not None)
    return _scalar(value)


def _scalar(value: Any) -> str | None:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case int() | float():
            return str(value)
    return None
