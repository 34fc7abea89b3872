"""A backend answers calls: this platform itself (`own.py`), or whatever else speaks AgentCore; the switch chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from agentkeep.core.call import Call

#: A request or response as the service model shapes it: camelCase members, `datetime` timestamps, `bytes` blobs.
#: An event-stream member of a response is an async iterator of one-key dictionaries (`{"messageStart": {...}}`).
Document = dict[str, Any]


class Backend(Protocol):
    """`invoke` raises ServiceError for what the caller may see; anything else is a defect or a DependencyError."""

    async def invoke(self, call: Call, request: Mapping[str, Any]) -> Document: ...


class Switch:
    """Chooses the backend that answers a call. Today there is one; a second one comes in here."""

    def __init__(self, own: Backend) -> None:
        self._own = own

    async def invoke(self, call: Call, request: Mapping[str, Any]) -> Document:
        return await self._own.invoke(call, request)
