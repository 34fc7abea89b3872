"""`GET /alerts`: the latest alerts, latest first (`?limit=`, 1000 at most). For operators, and the command line."""

from __future__ import annotations

from dataclasses import asdict
from urllib.parse import parse_qs

from agentkeep.observability.alerts import KeyValueAlerts
from agentkeep.service.asgi import Receive, Scope, Send, answered, path_parts, respond

__all__ = ["AlertsApp"]

MOST = 1000


class AlertsApp:
    """An ASGI application. It checks no caller: mount it behind the check that lets operators through."""

    def __init__(self, alerts: KeyValueAlerts) -> None:
        self._alerts = alerts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("limit", ["100"])[0]
        if path_parts(scope, 2) != ["alerts"]:
            await respond(send, 404, {"message": "GET /alerts"})
        elif scope["method"] != "GET":
            await respond(send, 405, {"message": "Only GET"}, ((b"allow", b"GET"),))
        elif not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:5]) <= MOST:
            await respond(send, 400, {"message": f"limit is a number between 1 and {MOST}"})
        else:
            await answered(send, self._latest(int(limit)))

    async def _latest(self, limit: int) -> tuple[int, object]:
        kept = await self._alerts.latest(limit=limit)
        return 200, {"alerts": [asdict(found.alert) | {"count": found.count, "last": found.last} for found in kept]}
