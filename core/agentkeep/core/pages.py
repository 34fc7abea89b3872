"""Pages of a listing, `maxResults` and `nextToken`.

A token is nothing but the place reached within the listing: the last item of the page before, so that items that come
and go in between shift nothing. It is read within what the *request* was authorised for: forged, or carried over to
another user's listing, it can only choose another place in one's own data. `bound` says besides which listing it is of,
so that one of another request is refused rather than taken for a place.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson

from agentkeep.core.errors import FieldError, ValidationException

__all__ = ["bound", "page", "place", "token", "unbound"]

Item = TypeVar("Item")

_DEFAULT_SIZE = 100
_LONGEST = 2048


async def page(
    request: Mapping[str, Any],
    read: Callable[[str | None, int], Awaitable[list[Item]]],
    key: Callable[[Item], str],
    default_size: int = _DEFAULT_SIZE,
) -> tuple[list[Item], str | None]:
    """One page of what `read(after, limit)` lists, and the token of the next; None at the end."""
    size = int(request.get("maxResults") or default_size)
    found = await read(place(request.get("nextToken")), size + 1)
    if len(found) <= size:
        return found, None
    return found[:size], token(key(found[size - 1]))


def token(sort: str) -> str:
    """The token of the page that begins behind the item `sort`."""
    return base64.urlsafe_b64encode(sort.encode()).decode()


def place(next_token: str | None) -> str | None:
    """Behind which item to go on; None: from the beginning. Raises ValidationException for what `token` never made."""
    if next_token is None:
        return None
    try:
        if not 0 < len(next_token) <= _LONGEST:
            raise ValueError
        return base64.b64decode(next_token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise _unknown() from None


def bound(next_token: str, operation: str, request: Mapping[str, Any]) -> str:
    """The token, for this operation with these parameters; the size of a page may change."""
    return _listing(operation, request) + next_token


def unbound(next_token: str, operation: str, request: Mapping[str, Any]) -> str:
    """Raises ValidationException for a token that another request was answered with."""
    listing = _listing(operation, request)
    if not next_token.startswith(listing):
        raise _unknown()
    return next_token[len(listing) :]


def _listing(operation: str, request: Mapping[str, Any]) -> str:
    asked = {name: value for name, value in request.items() if name not in ("maxResults", "nextToken")}
    digest = hashlib.sha256(operation.encode() + orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).digest()
    return base64.urlsafe_b64encode(digest[:9]).decode()


def _unknown() -> ValidationException:
    message = "is not a token this request was answered with: pass nextToken back unchanged, or leave it out"
    return ValidationException(f"nextToken {message}", fields=[FieldError("nextToken", message)])
