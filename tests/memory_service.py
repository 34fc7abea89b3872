"""The memory plane behind the real front, for clients that block: served from a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
from anyio.from_thread import BlockingPortal, start_blocking_portal
from botocore.config import Config
from botocore.credentials import Credentials

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.memory.plane import MemoryPlane
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.storage.embedding_minilm import MiniLmEmbedder
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

REGION = "us-west-2"


@dataclass
class MemoryService:
    """`credentials`: an operator's."""

    portal: BlockingPortal
    server: Server
    keys: AccessKeys
    credentials: Credentials

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def client(self, service: str, url: str | None = None, credentials: Credentials | None = None) -> Any:
        """An unmodified boto3 client."""
        held = credentials or self.credentials
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=url or self.url,
            aws_access_key_id=held.access_key,
            aws_secret_access_key=held.secret_key,
            aws_session_token=held.token,
            config=Config(retries={"total_max_attempts": 1}),
        )

    @contextmanager
    def session(self, user: str | None) -> Iterator[Any]:
        """boto3's data-plane client as an agent in a session of `user` has it: the session's listener and keys."""
        session = SessionRef("agent-0123456789", secrets.token_hex(17))

        async def begin() -> tuple[asyncio.Server, Credentials]:
            listener = await asyncio.get_running_loop().create_server(self.server.front.protocol(session), "127.0.0.1")
            issued = await self.keys.issue_for_session(session, User(user) if user is not None else None)
            return listener, Credentials(issued.access_key_id, issued.secret_access_key, issued.session_token)

        listener, credentials = self.portal.call(begin)
        try:
            port = listener.sockets[0].getsockname()[1]
            yield self.client("bedrock-agentcore", f"http://127.0.0.1:{port}", credentials)
        finally:
            self.portal.call(listener.close)


@contextmanager
def memory_service(valkey_url: str) -> Iterator[MemoryService]:
    @asynccontextmanager
    async def serve() -> Any:
        async with AsyncExitStack() as on_exit:
            clock, deployment = SystemClock(), Deployment(REGION, "123456789012")
            store = ValkeyKeyValueStore(valkey_url, prefix=f"{{test-{secrets.token_hex(8)}}}")
            on_exit.push_async_callback(store.close)
            keys = AccessKeys(store, FileMasterKey(secrets.token_bytes(32)), deployment, clock, IdentitySettings())
            embedder = MiniLmEmbedder()
            on_exit.push_async_callback(embedder.close)
            folder = Path(on_exit.enter_context(TemporaryDirectory()))
            search = SqliteSearchStore(folder / "records.db", dimensions=embedder.dimensions, model=embedder.name)
            on_exit.push_async_callback(search.close)
            key_service = LocalKeyService(secrets.token_bytes(32))
            plane = MemoryPlane(store, deployment, clock, search, embedder, key_service=key_service)
            on_exit.push_async_callback(plane.close)
            application = Application(Router(), Switch(SelfBackend(plane.operations)), Authenticator(keys, clock))
            front = Front(application)
            on_exit.push_async_callback(front.close)
            server = Server(front)
            await server.start()
            on_exit.push_async_callback(server.stop, 1)
            issued = await keys.issue_operator_key("operator", acts_for_users=True)
            yield server, keys, Credentials(issued.id, issued.secret)

    with (
        start_blocking_portal("asyncio", {"use_uvloop": True}) as portal,
        portal.wrap_async_context_manager(serve()) as made,
    ):
        yield MemoryService(portal, *made)
