"""Pages of a listing: the token names the last item of the page before, so that inserts and deletes shift nothing."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from agentkeep.core.errors import FieldError
from agentkeep.runtime.rules import invalid

__all__ = ["page"]

Item = TypeVar("Item")
DEFAULT_SIZE = 100


async def page(
    request: Mapping[str, Any],
    read: Callable[[str | None, int], Awaitable[list[Item]]],
    key: Callable[[Item], str],
) -> tuple[list[Item], str | None]:
    """One page of what `read(after, limit)` lists, and the token of the next."""
    size = int(request.get("maxResults") or DEFAULT_SIZE)
    found = await read(_after(request.get("nextToken")), size + 1)
    if len(found) <= size:
        return found, None
    return found[:size], base64.urlsafe_b64encode(key(found[size - 1]).encode()).decode().rstrip("=")


def _after(token: str | None) -> str | None:
    if token is None:
        return None
    try:
        return base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4)).decode()
    except (ValueError, binascii.Error):
        raise invalid(FieldError("nextToken", "is not a token this operation gave")) from None
