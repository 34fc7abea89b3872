"""Operations on a session, at whichever replica they arrive: they are handed on to the one that runs it.

It goes for every route below a runtime that names a session in its header, whatever the operation, as long as it is
served by the application; invocations and WebSockets are the pump's, which hands them on itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_to_bytes

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import DependencyError, PlaneUnavailable, ServiceError
from agentkeep.runtime.invocations.headers import SESSION_HEADER
from agentkeep.runtime.replicas.forwarding import FORWARDED, Address, Forwarding, OwnerChanged
from agentkeep.runtime.sessions.table import in_progress
from agentkeep.service.asgi import App, Receive, Scope, Send, header
from agentkeep.service.relay import Handed, Relay, Unreachable, refuse
from agentkeep.wire import Router

__all__ = ["ReplicaRelay"]

log = logging.getLogger(__name__)

_PREFIX: Final = b"/runtimes/"
_TRIES: Final = 5
_LOOK_SECONDS: Final = 0.5


class ReplicaRelay:
    """An ASGI application around the runtime service's own. `runtime_id`: of an ARN or id as a caller gave it. `start`,
    `close`."""

    def __init__(
        self, application: App, router: Router, forwarding: Forwarding, runtime_id: Callable[[str], str]
    ) -> None:
        self._application = application
        self._router = router
        self._forwarding = forwarding
        self._runtime_id = runtime_id
        self._relay = Relay()
        self.start = self._relay.start
        self.close = self._relay.close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ref = self._named(scope)
        if ref is None:
            await self._application(scope, receive, send)
            return
        handed = Handed(scope, receive, send)
        for _ in range(_TRIES):
            try:
                address = await self._forwarding.locate(ref, scope.get("agentkeep.session"))
            except DependencyError as error:
                log.warning("where a session runs is not known: %s", error)
                address = None  # what follows fails as it would have
            if address is None:
                await self._application(scope, handed.receive_anew, send)
                return
            try:
                if await self._hand_on(address, scope, handed):
                    return
            except ServiceError as error:
                await refuse(self._router, error, scope, handed)
                return
        await refuse(self._router, in_progress(), scope, handed)

    async def _hand_on(self, address: Address, scope: Scope, handed: Handed) -> bool:
        """Whether it was. Raises ServiceError."""
        to = "the replica that runs the session"
        handing = asyncio.create_task(self._relay.hand_on(address.url, to, address.headers, scope, handed))
        try:
            while not handing.done():
                await asyncio.wait([handing], timeout=_LOOK_SECONDS)
                if not handing.done() and self._forwarding.is_lost(address):
                    handing.cancel()
                    await asyncio.wait([handing])
                    if handed.begun:
                        raise ConnectionAbortedError("the replica that answered is dead")
                    raise PlaneUnavailable("The replica that ran the session is lost. Try again")
            await handing
        except Unreachable:
            try:
                (await self._forwarding.connect(address)).socket.close()  # it comes back, or is dead
            except OwnerChanged:
                pass
            return False
        finally:
            handing.cancel()
        return True

    def _named(self, scope: Scope) -> SessionRef | None:
        path: bytes = scope["raw_path"]
        session_id = header(scope, SESSION_HEADER.encode())
        if not session_id or not path.startswith(_PREFIX) or header(scope, FORWARDED.encode()):
            return None
        try:
            runtime_id = self._runtime_id(unquote_to_bytes(path[len(_PREFIX) :].partition(b"/")[0]).decode())
            return SessionRef(runtime_id, session_id.decode("ascii"))
        except (UnicodeDecodeError, ServiceError):
            return None  # the application says what is wrong with it
