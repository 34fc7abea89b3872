"""A session's request handed on to another service: what arrives, what comes back, what the ends do to each other."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from joserfc.jwk import OKPKey
from port_server import KEYS, PortServer, credentials, serving, whose
from service_stack import Subject

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.service.application import Application
from agentkeep.service.asgi import Receive, Scope, Send, pieces, respond
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.mounts import Access, Mount
from agentkeep.service.ownership import PLANES
from agentkeep.service.relay import SessionRelay
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

SESSION = SessionRef("agent-0123456789", "session-" + "0" * 32)
OTHER = SessionRef("agent-0123456789", "session-" + "1" * 32)


@dataclass
class Behind:
    """A mount of the service behind: keeps what it was asked, and does as it is told."""

    scopes: list[Scope] = field(default_factory=list)
    received: int = 0
    digest: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    does: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        try:
            if self.does is not None:
                await self.does(scope, receive, send)
                return
            digest = hashlib.sha256()
            async for piece in pieces(receive):
                self.received += len(piece)
                digest.update(piece)
            self.digest = digest.hexdigest()
            await respond(send, 200, {"session": str(scope["agentkeep.session"]), "bytes": self.received})
        finally:
            self.ended.set()


@dataclass
class Relayed:
    keys: AccessKeys
    plane: Subject
    behind: Behind
    service: PortServer
    front: Front
    relay: SessionRelay
    listeners: list[asyncio.Server] = field(default_factory=list)

    async def listen(self, session: SessionRef) -> str:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self.front.protocol(session), "127.0.0.1", 0)
        self.listeners.append(listener)
        return f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def signed(self, url: str, session: SessionRef, path: str, body: bytes, **headers: str) -> httpx.Response:
        """As an agent of `session` signs for its session endpoint, whatever address it is sent to."""
        issued = await self.keys.issue_for_session(session, User("alice"))
        request = AWSRequest("POST", "http://169.254.170.2" + path, data=body, headers=headers)
        key = Credentials(issued.access_key_id, issued.secret_access_key, issued.session_token)
        SigV4Auth(key, "bedrock-agentcore", "us-east-1").add_auth(request)
        fields = {**dict(request.headers.items()), "host": "169.254.170.2"}
        async with httpx.AsyncClient(trust_env=False) as http:
            return await http.post(url + path, content=body, headers=fields)


@pytest.fixture
async def relayed(store: ValkeyKeyValueStore) -> AsyncIterator[Relayed]:
    """A memory service, and in front of it session listeners as the runtime service has them."""
    keys = AccessKeys(store, FileMasterKey(b"k" * 32), Deployment(), SystemClock(), IdentitySettings())
    plane, behind = Subject(), Behind()
    mounts = [Mount("/v1", behind, Access.SESSION, max_body=64 << 20)]
    application = Application(Router(), Switch(SelfBackend([plane])), Authenticator(keys), mounts)
    async with serving("memory", {}, application) as service:
        relay = SessionRelay(
            "runtime",
            whose,
            Router(),
            credentials("runtime"),
            dict.fromkeys(PLANES, service.url),
            lambda path: "memory" if path.startswith((b"/memories", b"/v1", b"/model")) else None,
        )
        await relay.start()
        front = Front(relay)
        await front.start()
        stack = Relayed(keys, plane, behind, service, front, relay)
        yield stack
        for listener in stack.listeners:
            listener.close()
        await front.close()
        await relay.close()


EVENT = b'{"actorId": "alice", "sessionId": "s", "eventTimestamp": 1, "payload": []}'


async def test_the_signature_of_the_agent_holds(relayed: Relayed) -> None:
    """IDN-2: path with encoded slashes, query and Host arrive as they were signed."""
    url = await relayed.listen(SESSION)
    answer = await relayed.signed(url, SESSION, "/memories/mem-0123456789/events", EVENT)
    assert answer.status_code == 201, answer.text
    [(call, _)] = relayed.plane.calls
    assert (call.caller.session, call.caller.user) == (SESSION, User("alice"))
    names = [name for name, _ in answer.headers.multi_items()]
    assert (names.count("date"), names.count("x-amzn-requestid")) == (1, 1)


async def test_a_key_is_good_at_its_own_sessions_listener_only(relayed: Relayed) -> None:
    url = await relayed.listen(OTHER)
    answer = await relayed.signed(url, SESSION, "/memories/mem-0123456789/events", EVENT)
    assert answer.status_code == 403, answer.text
    assert relayed.plane.calls == []


async def test_an_operators_key_is_no_good_from_inside(relayed: Relayed) -> None:
    url = await relayed.listen(SESSION)
    operator = await relayed.keys.operator_key("operator", acts_for_users=True)
    request = AWSRequest("POST", url + "/memories/mem-0123456789/events", data=EVENT)
    SigV4Auth(Credentials(operator.id, operator.secret), "bedrock-agentcore", "us-east-1").add_auth(request)
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(str(request.url), content=EVENT, headers=dict(request.headers.items()))
    assert answer.status_code == 403, answer.text


async def test_what_arrives_is_what_was_sent(relayed: Relayed) -> None:
    url = await relayed.listen(SESSION)
    target = "/v1/a%2Fb/%7e//c?x=%20y&x=+&&z"
    async with httpx.AsyncClient(trust_env=False) as http:
        request = http.build_request(
            "PUT",
            url,
            content=b"hello",
            headers=[
                ("Host", "169.254.170.2"),
                ("X-Twice", "one"),
                ("X-Twice", "two"),
                ("X-Text", "ключ".encode()),
                ("X-AgentKeep-Session", "forged"),
                ("Connection", "keep-alive, X-Mine"),
                ("X-Mine", "of this connection only"),
                ("Expect", "100-continue"),
            ],
        )
        request.extensions["target"] = target.encode()
        answer = await http.send(request)
    assert answer.json() == {"session": str(SESSION), "bytes": 5}
    [scope] = relayed.behind.scopes
    assert (scope["method"], scope["raw_path"]) == ("PUT", b"/v1/a%2Fb/%7e//c")
    assert scope["query_string"] == b"x=%20y&x=+&&z"
    fields = scope["headers"]
    assert [value for name, value in fields if name == b"host"] == [b"169.254.170.2"]
    assert [value for name, value in fields if name == b"x-twice"] == [b"one", b"two"]
    assert dict(fields)[b"x-text"] == "ключ".encode()
    assert dict(fields)[b"content-length"] == b"5"
    assert not {b"x-agentkeep-session", b"x-mine", b"expect", b"connection"} & {name for name, _ in fields}


@pytest.mark.parametrize("chunked", [True, False])
async def test_large_bodies_stream(relayed: Relayed, chunked: bool) -> None:
    url = await relayed.listen(SESSION)
    body = bytes(range(256)) * (4096 * 20)  # 20 MB

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1 << 18):
            yield body[start : start + (1 << 18)]

    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        answer = await http.post(url + "/v1/x", content=parts() if chunked else body)
    assert answer.json()["bytes"] == len(body)
    assert relayed.behind.digest == hashlib.sha256(body).hexdigest()


async def test_limits_hold_where_the_request_is_served(relayed: Relayed) -> None:
    url = await relayed.listen(SESSION)
    answer = await relayed.signed(url, SESSION, "/memories/mem-0123456789/events", b"x" * 26_000_000)
    assert answer.status_code == 400, answer.text
    assert "larger than" in answer.text


async def test_answers_stream_as_they_come(relayed: Relayed) -> None:
    url = await relayed.listen(SESSION)
    more = asyncio.Event()

    async def does(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 207, "headers": [(b"x-a", b"1"), (b"x-a", b"2")]})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await more.wait()
        await send({"type": "http.response.body", "body": b"second"})

    relayed.behind.does = does
    async with httpx.AsyncClient(trust_env=False) as http, http.stream("GET", url + "/v1/x") as answer:
        assert (answer.status_code, answer.headers.get_list("x-a")) == (207, ["1", "2"])
        parts = answer.aiter_raw()
        assert await anext(parts) == b"first"
        more.set()
        assert await anext(parts) == b"second"


async def test_an_agent_that_leaves_ends_it_there_too(relayed: Relayed) -> None:
    url = await relayed.listen(SESSION)

    async def does(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    relayed.behind.does = does
    async with httpx.AsyncClient(trust_env=False) as http, http.stream("GET", url + "/v1/x") as answer:
        assert await anext(answer.aiter_raw()) == b"first"
    async with asyncio.timeout(5):
        await relayed.behind.ended.wait()


async def test_an_agent_that_leaves_in_the_middle_of_its_body(relayed: Relayed) -> None:
    port = int((await relayed.listen(SESSION)).rsplit(":", 1)[1])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf")
    await writer.drain()
    while not relayed.behind.scopes:
        await asyncio.sleep(0.01)
    writer.transport.abort()
    async with asyncio.timeout(5):
        await relayed.behind.ended.wait()


async def test_who_does_not_read_stops_the_other_side(relayed: Relayed) -> None:
    """Memory does not grow with an answer nobody takes."""
    port = int((await relayed.listen(SESSION)).rsplit(":", 1)[1])
    sent = 0

    async def does(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1024):
            await send({"type": "http.response.body", "body": b"x" * (1 << 16), "more_body": True})
            sent += 1 << 16

    relayed.behind.does = does
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 14)
    writer.write(b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.sleep(0.5)
    before = sent
    await asyncio.sleep(0.3)
    assert before == sent < 16 << 20, "of 64 MB"
    writer.transport.abort()


async def test_an_answer_that_breaks_is_never_a_clean_end(relayed: Relayed) -> None:
    url = await relayed.listen(SESSION)

    async def does(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        for connection in relayed.service.server.front.connections():
            connection.transport.abort()

    relayed.behind.does = does
    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(url + "/v1/x")


@pytest.mark.parametrize("path", ["/memories/m/events", "/model/m/converse", "/v1/x"])
async def test_a_service_that_is_away(relayed: Relayed, path: str) -> None:
    """503, which SDKs try again."""
    url = await relayed.listen(SESSION)
    await relayed.service.server.stop(drain=0)
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(url + path, content=b"{}")
        assert answer.status_code == 503
        assert answer.headers["x-amzn-errortype"] == "ServiceUnavailableException"
        assert "memory service cannot be reached" in answer.json()["message"]
        # What the runtime service serves by itself is served.
        assert (await http.get(url + "/credentials")).json() == {"session": str(SESSION)}


async def test_the_public_listener_hands_nothing_on(relayed: Relayed) -> None:
    server = Server(relayed.front)
    await server.start()
    token = credentials("runtime").token("memory", SESSION)
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(server.url + "/v1/x", headers={"x-agentkeep-session": token})
    await server.stop(drain=0)
    assert answer.json() == {"session": "None"}
    assert relayed.behind.scopes == []


# Statements.


class Later(SystemClock):
    """Some seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> Any:
        return super().now() + timedelta(seconds=self._seconds)


def stated(token: str) -> dict[str, str]:
    return {"x-agentkeep-session": token}


@pytest.mark.parametrize(
    ("make", "believed"),
    [
        (lambda: stated(credentials("runtime").token("memory", SESSION)), True),
        (lambda: stated(credentials("runtime", Later(-45)).token("memory", SESSION)), True),
        (lambda: stated(credentials("runtime", Later(-70)).token("memory", SESSION)), False),  # expired
        (lambda: stated(credentials("runtime", Later(60)).token("memory", SESSION)), False),  # not yet
        (lambda: stated(credentials("runtime").token("gateway", SESSION)), False),  # for another service
        (lambda: stated(credentials("gateway").token("memory", SESSION)), False),  # who has no listeners
        (lambda: stated(credentials("runtime", key=KEYS["gateway"]).token("memory", SESSION)), False),
        (lambda: stated(credentials("runtime", key=OKPKey.generate_key("Ed25519")).token("memory", SESSION)), False),
        (lambda: stated(credentials("runtime").token("memory")), False),  # a call, not a statement
        (lambda: stated("eyJhbGciOiJub25lIn0.e30."), False),
        (lambda: stated(""), False),
        (lambda: stated("a" * 5000), False),
        (lambda: {"authorization": f"Bearer {credentials('runtime').token('memory')}"}, False),  # calls have no session
        (lambda: {"authorization": f"Bearer {credentials('runtime').token('memory', SESSION)}"}, False),
        (dict, False),
    ],
)
async def test_whose_statements_are_believed(make: Callable[[], dict[str, str]], believed: bool) -> None:
    """IDN-2. Those that are, again and again until they expire."""
    headers = make()
    async with serving("memory", {}) as service, httpx.AsyncClient(base_url=service.url, trust_env=False) as http:
        for _ in range(2):
            answer = await http.post("/v1/x", headers=headers)
            if believed:
                assert answer.json() == {"session": str(SESSION)}
            else:
                assert answer.status_code == 401, answer.text
                assert "session-" not in answer.text


async def test_what_was_believed_expires() -> None:
    clock = Later(0)
    async with (
        serving("memory", {}, clock=clock) as service,
        httpx.AsyncClient(base_url=service.url, trust_env=False) as http,
    ):
        headers = stated(credentials("runtime").token("memory", SESSION))
        assert (await http.post("/v1/x", headers=headers)).status_code == 200
        clock._seconds = 66
        assert (await http.post("/v1/x", headers=headers)).status_code == 401


async def test_a_service_without_its_application_serves_health_only() -> None:
    async with serving("memory", {}) as service, httpx.AsyncClient(base_url=service.url, trust_env=False) as http:
        service.internal._application = None
        assert (await http.get("/healthz")).status_code == 200
        headers = stated(credentials("runtime").token("memory", SESSION))
        assert (await http.post("/v1/x", headers=headers)).status_code == 503


def test_tokens_are_used_again_and_forgotten_with_their_session() -> None:
    runtime = credentials("runtime")
    token = runtime.token("memory", SESSION)
    assert runtime.token("memory", SESSION) == token
    assert runtime.token("gateway", SESSION) != token
    assert "key" not in repr(runtime).lower()
