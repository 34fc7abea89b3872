"""What an agent says of itself at GET /ping."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum

import httptools
import orjson

from agentkeep.runtime.drivers.driver import Connection
from agentkeep.runtime.environments.exchange import AgentProtocolError, request

__all__ = ["Health", "PingStatus", "ping", "supports_ping"]

_BODY_LIMIT = 64 << 10


class PingStatus(StrEnum):
    HEALTHY = "Healthy"
    HEALTHY_BUSY = "HealthyBusy"


@dataclass(frozen=True, slots=True)
class Health:
    """`changed`: epoch seconds of the last change of status, by the agent's clock, if it said so."""

    status: PingStatus
    changed: float | None = None


def supports_ping(protocol: str) -> bool:
    """MCP servers have no /ping: one that accepts connections is healthy, and busy only while it has a request."""
    return protocol != "MCP"


async def ping(connection: Connection, timeout: float) -> Health | None:
    """None if the agent answers anything but 200. Raises OSError, TimeoutError."""
    try:
        async with asyncio.timeout(timeout), request(connection, "GET", "/ping") as answer:
            body = await answer.read(_BODY_LIMIT)
    except (AgentProtocolError, httptools.HttpParserError) as error:
        raise ConnectionError(str(error)) from None
    if answer.status != 200:
        return None
    return _health(body)


def _health(body: bytes) -> Health:
    """A body that is not the contract's is read as Healthy: the status says that much."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Health(PingStatus.HEALTHY)
    if not isinstance(document, dict):
        return Health(PingStatus.HEALTHY)
    busy = document.get("status") == PingStatus.HEALTHY_BUSY
    changed = document.get("time_of_last_update")
    at = float(changed) if isinstance(changed, int | float) else None
    return Health(PingStatus.HEALTHY_BUSY if busy else PingStatus.HEALTHY, at)
