"""CONNECT at session endpoints, as the front sees it."""

from __future__ import annotations

from agentkeep.runtime.egress.egress import Egress
from agentkeep.runtime.egress.passage import Passage
from agentkeep.service.direct import ClientConnection, Exchange, Head

__all__ = ["EgressRoute"]


class EgressRoute:
    """A DirectRoute. It is there without rules too, to say that there are none."""

    def __init__(self, egress: Egress) -> None:
        self.egress = egress
        self.passages: set[Passage] = set()
        self.now = 0.0  # the loop's time, as of the last sweep

    def matches(self, method: bytes, path: bytes, websocket: bool) -> bool:
        return method == b"CONNECT"

    def open(self, head: Head, connection: ClientConnection) -> Exchange:
        return Passage(self, head, connection)

    def sweep(self, now: float) -> None:
        self.now = now
        idle = now - self.egress.limits.idle
        for passage in [one for one in self.passages if one.deadline < now or one.idle_since < idle]:
            passage.cut()

    async def close(self) -> None:
        for passage in list(self.passages):
            passage.cut()
        await self.egress.close()
