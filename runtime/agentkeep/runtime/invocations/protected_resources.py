"""Where clients of a runtime with a JWT authorizer learn which provider's tokens it takes (RFC 9728).

    GET {public_url}/runtimes/{arn}/invocations/.well-known/oauth-protected-resource?qualifier=     unauthenticated

A 401 names this address. Runtimes invoked with signatures have no such document, and nor has what does not exist: the
same answer for both.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import quote

from agentkeep.core.errors import ServiceError
from agentkeep.runtime.agents.targets import Targets
from agentkeep.runtime.pump.target import parse_target
from agentkeep.service.asgi import Receive, Scope, Send, respond
from agentkeep.service.protected_resources import metadata

__all__ = ["PLACE", "ProtectedResourceApp", "resource_url"]

#: Host and path of every such document.
PLACE: Final = re.compile(rb"[^/]*/runtimes/[^/]+/invocations/\.well-known/oauth-protected-resource")


def resource_url(public_url: str, runtime_arn: str) -> str:
    """A runtime, as its clients address it."""
    return f"{public_url.rstrip('/')}/runtimes/{quote(runtime_arn, safe='')}/invocations"


class ProtectedResourceApp:
    """The ASGI application at `PLACE`."""

    def __init__(self, targets: Targets, public_url: str) -> None:
        self._targets = targets
        self._public_url = public_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        document = await self._document(scope["raw_path"], scope["query_string"]) if scope["method"] == "GET" else None
        if document is None:
            await respond(send, 404, {"message": "There is no such protected resource"})
        else:
            await respond(send, 200, document, ((b"cache-control", b"no-cache"),))

    async def _document(self, path: bytes, query: bytes) -> dict[str, Any] | None:
        try:
            named = parse_target(path, query)[:3]
            target = self._targets.cached(*named) or await self._targets.resolve(*named)
        except ServiceError:
            return None
        authorizer = target.settings.authorizer
        if authorizer is None:
            return None
        return metadata(resource_url(self._public_url, target.runtime_arn), authorizer)
