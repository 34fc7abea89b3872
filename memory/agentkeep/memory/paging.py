"""Pages of a listing.

A token is nothing but the place reached within the listing, and is read within the partition the *request* was
authorised for. Forged or carried over to another user's listing it can only choose another place in one's own data.
"""

from __future__ import annotations

import base64
import binascii

from agentkeep.core.errors import FieldError, ValidationException

__all__ = ["place", "token"]

_LONGEST = 2048


def token(sort: str) -> str:
    """The token of the page that begins behind the item `sort`."""
    return base64.urlsafe_b64encode(sort.encode()).decode()


def place(next_token: str | None) -> str | None:
    """Behind which item to go on; None: from the beginning."""
    if next_token is None:
        return None
    try:
        if len(next_token) > _LONGEST:
            raise ValueError
        return base64.b64decode(next_token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        message = "is not a token this operation returned: pass nextToken back unchanged, or leave it out"
        raise ValidationException(f"nextToken {message}", fields=[FieldError("nextToken", message)]) from None
