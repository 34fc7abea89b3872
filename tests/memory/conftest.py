"""The memory plane on a real store, called as the service calls it."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from extraction_stand import ModelStand, extracting, serving

from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Call, Caller, CallerKind, Idempotency, SessionRef, User
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore

OPERATOR = Caller(CallerKind.OPERATOR, "arn:aws:iam::000000000000:user/operator", acts_for_users=True)
NOBODY = Caller(
    CallerKind.SESSION, "arn:aws:sts::000000000000:assumed-role/agent/s0", session=SessionRef("agent", "s0")
)

#: The same for every plane of a test, as for all replicas and restarts of a deployment.
KEY_SERVICE = LocalKeyService(b"a secret that only tests have...")


def session_of(user: str) -> Caller:
    return Caller(
        CallerKind.SESSION,
        f"arn:aws:sts::000000000000:assumed-role/agent/session-of-{user}",
        user=User(user, "https://issuer.example"),
        session=SessionRef("agent", f"session-of-{user}"),
    )


class Client:
    """Calls operations as one caller: `await client.create_event(memoryId=..., ...)`."""

    def __init__(self, backend: SelfBackend, caller: Caller) -> None:
        self._backend = backend
        self._caller = caller

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        operation = "".join(word.capitalize() for word in name.split("_"))

        async def call(token: str | None = None, **request: Any) -> dict[str, Any]:
            idempotency = Idempotency(f"{operation}/{token}", repr(sorted(request.items())).encode()) if token else None
            call = Call("bedrock-agentcore", operation, self._caller, "request-id", idempotency)
            return await self._backend.invoke(call, request)

        return call

    async def event(self, memory: str, actor: str, session: str, text: Any = "", at: float = 0, **rest: Any) -> str:
        """Creates an event; its id. `at`: seconds of 2026."""
        answer = await self.create_event(
            memoryId=memory,
            actorId=actor,
            sessionId=session,
            eventTimestamp=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=at),
            payload=[{"blob": text}],
            **rest,
        )
        return str(answer["event"]["eventId"])

    async def texts(self, memory: str, actor: str, session: str, **rest: Any) -> list[Any]:
        """The blobs of a session's events, newest first, page by page."""
        found: list[Any] = []
        token: dict[str, str] = {}
        while True:
            answer = await self.list_events(memoryId=memory, actorId=actor, sessionId=session, **rest, **token)
            found += [event["payload"][0]["blob"] for event in answer["events"]]
            if "nextToken" not in answer:
                return found
            token = {"nextToken": answer["nextToken"]}


class SetClock:
    """Stands still until it is moved; begins now."""

    def __init__(self) -> None:
        self.moment = datetime.now(UTC)

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)
        await asyncio.sleep(0)  # what only waits in turns must not keep others from theirs


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def store(valkey: EmbeddedValkey, clock: SetClock) -> AsyncIterator[KeyValueStore]:
    """Follows `clock`."""
    store = ValkeyKeyValueStore(valkey.url, prefix=f"{{test-{secrets.token_hex(8)}}}", clock=clock)
    yield store
    await store.close()


@pytest.fixture
async def search(tmp_path: Path, clock: SetClock) -> AsyncIterator[SqliteSearchStore]:
    """For long-term records, searched by words: takes no vectors. Follows `clock`."""
    search = SqliteSearchStore(tmp_path / "records.db", dimensions=None, clock=clock)
    yield search
    await search.close()


@pytest.fixture
async def backend(store: KeyValueStore, search: SqliteSearchStore, clock: SetClock) -> AsyncIterator[SelfBackend]:
    plane = MemoryPlane(store, Deployment("eu-west-1", "123456789012"), clock, search, key_service=KEY_SERVICE)
    yield SelfBackend(plane.operations)
    await plane.close()


@pytest.fixture
def operator(backend: SelfBackend) -> Client:
    return Client(backend, OPERATOR)


@pytest.fixture
async def memory(operator: Client) -> str:
    """The id of a memory."""
    answer = await operator.create_memory(name="notes", eventExpiryDuration=7)
    return str(answer["memory"]["id"])


# Planes that extract: by a model, or by rules alone.


@pytest.fixture
async def model() -> ModelStand:
    return ModelStand()


@pytest.fixture
async def model_url(model: ModelStand) -> AsyncIterator[str]:
    async with serving(model) as url:
        yield url


@pytest.fixture
async def by_model(
    store: KeyValueStore, search: SqliteSearchStore, clock: SetClock, model_url: str
) -> AsyncIterator[MemoryPlane]:
    async with extracting(store, search, clock, KEY_SERVICE, model_url) as plane:
        yield plane


@pytest.fixture
async def by_rules(store: KeyValueStore, search: SqliteSearchStore, clock: SetClock) -> AsyncIterator[MemoryPlane]:
    async with extracting(store, search, clock, KEY_SERVICE, None) as plane:
        yield plane
