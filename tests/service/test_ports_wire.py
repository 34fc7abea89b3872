"""What only the wire between services has: the catalogue of ports, errors on their way, who may call, what is lost."""

from __future__ import annotations

import asyncio
import base64
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from canaries import canary, leaks
from port_server import PortServer, calling, credentials, serving

from agentkeep.core import ports
from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import (
    AccessDeniedException,
    AgentkeepError,
    FieldError,
    InternalServerException,
    PlaneUnavailable,
    ProviderError,
    ServiceUnavailableException,
    StoreUnavailable,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.service.front import Server
from agentkeep.service.ports.catalogue import (
    KEYS,
    PORTS,
)
from agentkeep.service.ports.errors import dump_error, load_error
from agentkeep.testing.ports import (
    SESSION,
)

# The catalogue.


def test_every_port_is_served_and_every_method_somebodys() -> None:
    """A port or method that is added to core/ports.py is refused to everybody until the catalogue names its callers."""
    protocols = {found for name in ports.__all__ if getattr(found := getattr(ports, name), "_is_protocol", False)}
    assert {port.protocol for port in PORTS.values()} == protocols
    for port in PORTS.values():
        assert set(port.callers) == set(port.methods), port.name
        assert port.safe <= set(port.methods)
        waits = {name for name, member in vars(port.protocol).items() if inspect.iscoroutinefunction(member)}
        assert set(port.methods) == waits
        assert port.plane not in set().union(*port.callers.values()), "in its own process it is an object"


# The wire.


class Subject:
    """A port's object that does as it is told."""

    def __init__(self) -> None:
        self.calls = 0
        self.does: Callable[[], Awaitable[Any]] | None = None

    async def find(self, access_key_id: str) -> Any:
        self.calls += 1
        assert self.does is not None
        return await self.does()

    async def issue_for_session(self, session: SessionRef, user: User | None, user_token: str | None = None) -> Any:
        return await self.find("")


def raises(error: Exception) -> Callable[[], Awaitable[Any]]:
    async def does() -> Any:
        raise error

    return does


@pytest.fixture
async def subject() -> Subject:
    return Subject()


@pytest.fixture
async def service(subject: Subject) -> AsyncIterator[PortServer]:
    async with serving("identity", {KEYS: subject}) as server:
        yield server


@pytest.mark.parametrize(
    "error",
    [
        ValidationException("wrong", "CannotParse", [FieldError("a.b", "is"), FieldError("c", "was")]),
        UnauthorizedException("who are you?", 'Bearer realm="x"'),
        UnauthorizedException("who are you?"),
        AccessDeniedException("no: ключ"),
        ServiceUnavailableException("not now"),
        StoreUnavailable("no connection to the store within 5 s"),
        ProviderError("the provider said 500"),
        PlaneUnavailable("try again"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_errors_arrive_as_they_were(service: PortServer, subject: Subject, error: AgentkeepError) -> None:
    subject.does = raises(error)
    async with calling("gateway", service.url) as peers:
        with pytest.raises(type(error)) as raised:
            await peers.port(KEYS).find("AKIA")
    assert type(raised.value) is type(error)
    assert str(raised.value) == str(error)
    for member in ("reason", "fields", "challenge", "code", "status"):
        assert getattr(raised.value, member, None) == getattr(error, member, None)


def test_of_classes_below_the_tree_the_nearest_arrives() -> None:
    class OfOneStore(StoreUnavailable):
        pass

    assert type(load_error(dump_error(OfOneStore("away")))) is StoreUnavailable


async def test_a_defect_says_nothing_of_itself(
    service: PortServer, subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    subject.does = raises(KeyError("hunter2"))
    async with calling("gateway", service.url) as peers:
        with pytest.raises(InternalServerException) as raised:
            await peers.port(KEYS).find("AKIA")
    assert "hunter2" not in str(raised.value)
    assert any(entry.levelno == logging.ERROR for entry in caplog.records)


async def test_who_may_call_what(service: PortServer, subject: Subject) -> None:
    """Only the runtime service issues sessions' keys; nobody calls with another's key, or without one."""
    subject.does = raises(AssertionError("not reached"))
    async with calling("gateway", service.url) as peers:
        with pytest.raises(AccessDeniedException, match="gateway service may not"):
            await peers.port(KEYS).issue_for_session(SESSION, None)
    assert subject.calls == 0
    async with httpx.AsyncClient(base_url=service.url, trust_env=False) as http:
        body = b'{"access_key_id": "AKIA"}'
        for headers in (
            {},
            {"authorization": "Bearer x"},
            {"authorization": "Basic " + base64.b64encode(b"a:b").decode()},
            {"authorization": f"Bearer {credentials('gateway').token('memory')}"},
            {"authorization": f"Bearer {credentials('gateway', key=credentials('memory')._key).token('identity')}"},
            {"authorization": f"Bearer {credentials('runtime').token('identity', SESSION)}"},
        ):
            answer = await http.post("/ports/keys/find", content=body, headers=headers)
            assert answer.status_code == 401, headers
    assert subject.calls == 0


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/ports/keys/cached", b'{"access_key_id": "A"}', 404),
        ("/ports/keys/__class__", b"{}", 404),
        ("/ports/keys/list_operator_keys", b"{}", 404),
        ("/ports/usage/record", b"{}", 404),
        ("/ports/keys/find", b"", 400),
        ("/ports/keys/find", b"[]", 400),
        ("/ports/keys/find", b'{"access_key_id": 1}', 400),
        ("/ports/keys/find", b'{"access_key_id": "A", "more": 1}', 400),
        ("/ports/keys/find", b'{"access_key_id": "' + b"A" * (5 << 20) + b'"}', 400),
    ],
    ids=lambda value: value[:40].decode() if isinstance(value, bytes) else str(value),
)
async def test_what_is_no_call(service: PortServer, subject: Subject, path: str, body: bytes, status: int) -> None:
    headers = {"authorization": f"Bearer {credentials('runtime').token('identity')}"}
    async with httpx.AsyncClient(base_url=service.url, trust_env=False) as http:
        answer = await http.post(path, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert subject.calls == 0


async def test_secrets_are_in_no_error_and_no_log(
    service: PortServer, subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    planted = canary()

    async def no_key() -> Any:
        return {"secret": planted}

    subject.does = no_key
    async with calling("runtime", service.url) as peers:
        keys = peers.port(KEYS)
        with pytest.raises(InternalServerException) as raised:
            await keys.find(planted)
        with pytest.raises(ValueError, match="session") as wrong:
            await keys.issue_for_session(planted, None)  # type: ignore[arg-type]
    seen = f"{raised.value}{wrong.value}{caplog.text}"
    assert not leaks(seen.encode(), [planted])


async def test_nobody_there() -> None:
    async with calling("runtime", "http://127.0.0.1:1") as peers:
        with pytest.raises(PlaneUnavailable, match="identity service") as raised:
            await peers.port(KEYS).find("AKIA")
        assert await peers.answers("identity") is False
    assert raised.value.code == "ServiceUnavailableException"
    assert raised.value.status == 503


async def test_an_answer_that_does_not_come(service: PortServer, subject: Subject) -> None:
    async def never() -> Any:
        await asyncio.sleep(60)

    subject.does = never
    async with calling("runtime", service.url) as peers:
        object.__setattr__(KEYS, "seconds", 0.2)
        try:
            with pytest.raises(PlaneUnavailable, match=r"0\.2 seconds"):
                await peers.port(KEYS).find("AKIA")
        finally:
            object.__setattr__(KEYS, "seconds", 5.0)


@pytest.mark.parametrize(("safe", "calls"), [(True, 2), (False, 1)])
async def test_only_what_is_safe_is_sent_again(service: PortServer, subject: Subject, safe: bool, calls: int) -> None:
    """The connection breaks while the call is under way: nobody knows whether it was done."""

    async def breaks() -> Any:
        for connection in service.server.front.connections():
            connection.transport.abort()
        await asyncio.sleep(0.05)

    subject.does = breaks
    async with calling("runtime", service.url) as peers:
        keys = peers.port(KEYS)
        with pytest.raises(PlaneUnavailable):
            await (keys.find("AKIA") if safe else keys.issue_for_session(SESSION, None))
    assert subject.calls == calls


async def test_a_service_that_came_back_is_called_again(subject: Subject) -> None:
    async def nothing() -> Any:
        return None

    subject.does = nothing
    async with serving("identity", {KEYS: subject}) as server:
        port = server.server.port
        async with calling("runtime", server.url) as peers:
            keys = peers.port(KEYS)
            assert await keys.find("AKIA") is None
            await server.server.stop(drain=0)
            with pytest.raises(PlaneUnavailable):
                await keys.find("AKIA")
            again = Server(server.server.front, port=port)
            await again.start()
            assert await keys.find("AKIA") is None
            assert await peers.answers("identity")
            await again.stop(drain=0)
