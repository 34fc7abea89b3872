"""Planes behind the whole HTTP chain, with listeners as sessions have them: each knows its session from its socket."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import Plane, SelfBackend
from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

DEPLOYMENT = Deployment()


@dataclass
class SessionStack:
    server: Server
    keys: AccessKeys
    listeners: list[asyncio.Server] = field(default_factory=list)

    async def listen(self, session: SessionRef) -> str:
        """The URL of a listener of this session's."""
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self.server.front.protocol(session), "127.0.0.1", 0)
        self.listeners.append(listener)
        return f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def credentials(self, session: SessionRef, user: User | None) -> dict[str, str]:
        """As boto3's clients take them."""
        issued = await self.keys.issue_for_session(session, user)
        return {
            "aws_access_key_id": issued.access_key_id,
            "aws_secret_access_key": issued.secret_access_key,
            "aws_session_token": issued.session_token,
        }

    async def operator(self) -> dict[str, Any]:
        """Arguments of an operator's boto3 client."""
        issued = await self.keys.issue_operator_key("operator", acts_for_users=True)
        return {
            "endpoint_url": f"http://127.0.0.1:{self.server.port}",
            "region_name": DEPLOYMENT.region,
            "aws_access_key_id": issued.id,
            "aws_secret_access_key": issued.secret,
        }


@asynccontextmanager
async def session_stack(store: ValkeyKeyValueStore, planes: Iterable[Plane]) -> AsyncIterator[SessionStack]:
    keys = AccessKeys(store, FileMasterKey(secrets.token_bytes(32)), DEPLOYMENT, SystemClock(), IdentitySettings())
    server = Server(Front(Application(Router(), Switch(SelfBackend(planes)), Authenticator(keys))))
    await server.start()
    stack = SessionStack(server, keys)
    try:
        yield stack
    finally:
        for listener in stack.listeners:
            listener.close()
        await server.stop(drain=0)
        await server.front.close()
