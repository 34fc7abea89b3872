"""Pages of listings ordered by name: `nextToken` says after which name the next one begins."""

from __future__ import annotations

import base64
import binascii

from agentkeep.core.errors import ValidationException

__all__ = ["page_start", "page_token"]


def page_token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def page_start(token: str | None) -> str | None:
    """Raises ValidationException for what `page_token` never made."""
    if token is None:
        return None
    try:
        name = base64.b64decode(token, b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        name = ""
    if not name:
        raise ValidationException("nextToken is not one that this operation returned")
    return name
