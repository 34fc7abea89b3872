"""A session is its user's, however it is spoken to: each protocol, WebSockets, commands in its shell, cards, the stop;
by users' tokens and by signatures; with whatever was stolen, kept or made up. On the wire, with the real front."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from runtime_wire import SESSION, RuntimeWire, runtime_wire

from agentkeep.core.call import SessionRef, User

USER = "x-amzn-bedrock-agentcore-runtime-user-id"
CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{}}'
UPGRADE = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
           "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One way to speak to a session. `served`: the status of what is let through."""

    protocol: str
    method: str = "POST"
    tail: str = "invocations"
    body: bytes = b"{}"
    served: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


WAYS = {
    "HTTP": Way("HTTP"),
    "MCP": Way("MCP", body=CALL),
    "MCP, listening": Way("MCP", "GET", body=b""),
    "MCP, the end": Way("MCP", "DELETE", body=b""),
    "A2A": Way("A2A", body=CALL),
    "A2A, the card": Way("A2A", "GET", "invocations/.well-known/agent-card.json", b""),
    "AG-UI": Way("AGUI"),
    "WebSocket": Way("HTTP", "GET", "ws", b"", 101, UPGRADE),
    "WebSocket of AG-UI": Way("AGUI", "GET", "ws", b"", 101, UPGRADE),
    "a command": Way("HTTP", tail="commands", body=b'{"command":"true"}'),
    "a command to MCP": Way("MCP", tail="commands", body=b'{"command":"true"}'),
    "stop": Way("HTTP", tail="stopruntimesession"),
}


class Ran:
    """A command that has ended."""

    async def read(self) -> None:
        return None

    async def wait(self) -> int:
        return 0

    async def kill(self) -> None:
        pass

    async def close(self) -> None:
        pass


@dataclass
class Bound:
    """Alice's session of one agent, which keeps count of what reaches it."""

    platform: Any
    wire: RuntimeWire
    provider: Any
    elsewhere: Any
    way: Way
    runtime_id: str = ""
    session_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    reached: int = 0
    keys: Credentials = field(default_factory=lambda: Credentials("", ""))
    workload_token: str = ""

    @property
    def ref(self) -> SessionRef:
        return SessionRef(self.runtime_id, self.session_id)

    @property
    def live(self) -> Any:
        return self.platform.plane._parts.sessions.live(self.ref)

    async def answer(self, agent: Any, request: web.Request) -> web.StreamResponse:
        self.reached += 1
        if "upgrade" in request.headers.get("connection", "").lower():
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            return socket
        return web.json_response({"name": "orders", "agent": agent.id})

    async def execute(self, line: str) -> Any:
        self.reached += 1
        return Ran()

    async def ask(
        self,
        way: Way | None = None,
        bearer: str | None = None,
        keys: Credentials | None = None,
        headers: Mapping[str, str] | None = None,
        unsigned: Mapping[str, str] | None = None,
        query: str = "",
    ) -> int:
        """The status of an answer. `bearer` or `keys`, or neither; `unsigned`: headers that no signature covers."""
        way = way or self.way
        url = self.wire.target(self.runtime_id, way.tail, query)
        sent = {
            "host": url.split("/")[2], "accept": "application/json, text/event-stream", SESSION: self.session_id,
            "content-type": "application/json", **way.headers, **(headers or {}),
        }  # fmt: skip
        if bearer is not None:
            sent["authorization"] = f"Bearer {bearer}"
        elif keys is not None:
            request = AWSRequest(way.method, url, data=way.body, headers=sent)
            SigV4Auth(keys, "bedrock-agentcore", self.platform.deployment.region).add_auth(request)
            sent = {name.lower(): value for name, value in request.headers.items()}
        sent |= {"content-length": str(len(way.body)), **(unsigned or {})}
        path = url.removeprefix(self.wire.url)
        head = f"{way.method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.wire.url.rsplit(":", 1)[1]))
        try:
            writer.write(head.encode() + b"\r\n" + way.body)
            async with asyncio.timeout(20):
                status = int((await reader.readuntil(b"\r\n")).split(b" ")[1])
                if status == 200:  # to its end, so that its turn is over
                    length = [line for line in (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                              if line.startswith(b"content-length: ")]  # fmt: skip
                    await (reader.readexactly(int(length[0][16:])) if length else reader.readuntil(b"\r\n0\r\n\r\n"))
                return status
        finally:
            writer.transport.abort()


@pytest.fixture
async def elsewhere(provider: Any, clock: Any) -> AsyncIterator[Any]:
    """Another provider, with a user of the same name."""
    other = type(provider)(clock)
    await other.start()
    yield other
    await other.stop()


@pytest.fixture
async def bind(platform: Any, provider: Any, elsewhere: Any) -> AsyncIterator[Callable[..., Any]]:
    async with runtime_wire(platform) as wire:

        async def bind(way: Way, *, by_token: bool) -> Bound:
            bound = Bound(platform, wire, provider, elsewhere, way)
            platform.driver.behaviour.answer = bound.answer
            platform.driver.behaviour.execute = bound.execute
            protocol = {"protocolConfiguration": {"serverProtocol": way.protocol}}
            authorizer = {"authorizerConfiguration": provider.authorizer} if by_token else {}
            bound.runtime_id = await platform.create(**protocol, **authorizer)
            first = WAYS["MCP"] if way.protocol in ("MCP", "A2A") else WAYS["HTTP"]
            if by_token:
                assert await bound.ask(first, bearer=provider.token("alice")) == 200
            else:
                assert await bound.ask(first, keys=wire.credentials, headers={USER: "alice"}) == 200
            assert bound.reached == 1
            alice = User("alice", provider.url if by_token else None)
            issued = await platform.identity.keys.issue_for_session(bound.ref, alice)
            bound.keys = Credentials(issued.access_key_id, issued.secret_access_key, issued.session_token)
            token = await platform.identity.workload_tokens.issue(bound.runtime_id, alice)
            bound.workload_token = token
            bound.reached = 0
            return bound

        yield bind


def _mixed(alice: str, bob: str) -> str:
    return ".".join((*alice.split(".")[:2], bob.split(".")[2]))


def _expires(bound: Bound, seconds: int) -> int:
    return int(bound.platform.clock.now().timestamp()) + seconds


#: What comes with an attempt on alice's session, where users come by token, and the status it gets.
BY_TOKEN: dict[str, tuple[Callable[[Bound], dict[str, Any]], int]] = {
    "another user's token": (lambda b: {"bearer": b.provider.token("bob")}, 403),
    "another user's token, and her name": (
        lambda b: {"bearer": b.provider.token("bob"), "headers": {USER: "alice"}}, 403),
    "her namesake's at another provider": (lambda b: {"bearer": b.elsewhere.token("alice")}, 401),
    "her own, of yesterday": (lambda b: {"bearer": b.provider.token("alice", exp=_expires(b, -86_400))}, 401),
    "her own, that expired a moment ago": (lambda b: {"bearer": b.provider.token("alice", exp=_expires(b, -61))}, 401),
    "her own, of tomorrow": (lambda b: {"bearer": b.provider.token("alice", nbf=_expires(b, 86_400))}, 401),
    "her own, for another service": (lambda b: {"bearer": b.provider.token("alice", aud="mail")}, 403),
    "her claims, another's signature": (
        lambda b: {"bearer": _mixed(b.provider.token("alice"), b.provider.token("bob"))}, 401),
    "her workload access token": (lambda b: {"bearer": b.workload_token}, 401),
    "her session's token": (lambda b: {"bearer": str(b.keys.token)}, 401),
    "no token": (lambda b: {}, 401),
    "an empty one": (lambda b: {"bearer": ""}, 401),
    "her own, in the query": (lambda b: {"query": f"?access_token={b.provider.token('alice')}"}, 401),
    "an operator's signature": (lambda b: {"keys": b.wire.credentials}, 403),
    "an operator's, and her name": (lambda b: {"keys": b.wire.credentials, "headers": {USER: "alice"}}, 403),
    "her session's keys": (lambda b: {"keys": b.keys}, 403),
}  # fmt: skip
#: The same where operators sign, and name their users.
SIGNED: dict[str, tuple[Callable[[Bound], dict[str, Any]], int]] = {
    "for another user": (lambda b: {"keys": b.wire.credentials, "headers": {USER: "bob"}}, 403),
    "for nobody": (lambda b: {"keys": b.wire.credentials}, 403),
    "for her, in other letters": (lambda b: {"keys": b.wire.credentials, "headers": {USER: "Alice"}}, 403),
    "for her, but not under the signature": (lambda b: {"keys": b.wire.credentials, "unsigned": {USER: "alice"}}, 403),
    "by a key that acts for nobody": (lambda b: {"keys": b.wire.plain, "headers": {USER: "alice"}}, 403),
    "by a key that was made up": (
        lambda b: {"keys": Credentials("AKIA" + "A" * 16, "x" * 40), "headers": {USER: "alice"}}, 403),
    "with her session's keys": (lambda b: {"keys": b.keys, "headers": {USER: "alice"}}, 403),
    "with her token": (lambda b: {"bearer": b.provider.token("alice")}, 403),
    "with nothing": (lambda b: {"headers": {USER: "alice"}}, 403),
}  # fmt: skip
#: Of an operator's stop: he may end what runs, whoever's it is. It reaches nothing of the session's.
OPERATORS_STOP = {"an operator's signature", "an operator's, and her name", "for another user", "for nobody",
                  "for her, in other letters", "by a key that acts for nobody"}  # fmt: skip


@pytest.mark.parametrize("by_token", [True, False], ids=["by token", "signed"])
@pytest.mark.parametrize("name", WAYS)
async def test_stolen_and_replayed(bind: Callable[..., Any], name: str, by_token: bool) -> None:
    """IDN-4, IDN-5, EXE-1: refused, and the agent hears nothing of it; she goes on; and after the end of the session
    nothing of it opens anything."""
    way = WAYS[name]
    bound = await bind(way, by_token=by_token)
    issued = await bound.platform.identity.keys.issue_operator_key("plain")
    bound.wire.plain = Credentials(issued.id, issued.secret)
    before = bound.live
    for attack, (make, expected) in (BY_TOKEN if by_token else SIGNED).items():
        if way.tail == "stopruntimesession" and attack in OPERATORS_STOP:
            continue
        # Of these operations only the stop has a 401 of its own for a signature that proves nothing.
        refusals = {expected, 401} if way.tail == "stopruntimesession" else {expected}
        assert await bound.ask(**make(bound)) in refusals, attack
        assert bound.reached == 0 and bound.live is before and before.turns == 0, attack
    good = {"bearer": bound.provider.token("alice")} if by_token else {
        "keys": bound.wire.credentials, "headers": {USER: "alice"}}  # fmt: skip
    assert await bound.ask(**good) == way.served, "the control"
    if way.tail != "stopruntimesession":
        assert bound.reached == 1 and bound.live is before
        await bound.platform.call(
            "stop_runtime_session", agentRuntimeArn=bound.runtime_id, runtimeSessionId=bound.session_id
        )
    # The end.
    assert await bound.platform.identity.keys.find(bound.keys.access_key) is None
    assert await bound.ask(keys=bound.keys) in (401, 403)
    if way.tail != "stopruntimesession":
        assert await bound.ask(**good) == way.served, "her token is good: for another environment, of the same id"
        assert bound.live is not before and len(bound.platform.driver.agents) == 2
    assert await bound.platform.identity.keys.find(bound.keys.access_key) is None


@pytest.mark.parametrize("name", ["HTTP", "MCP", "A2A", "AG-UI", "WebSocket", "a command"])
async def test_the_provider_is_away(platform: Any, provider: Any, name: str) -> None:
    """IDN-2: nobody is believed unseen; the answer is one that clients try again, as far as the protocol has one."""
    way = WAYS[name]
    protocol = {"protocolConfiguration": {"serverProtocol": way.protocol}}
    async with runtime_wire(platform) as wire:
        bound = Bound(platform, wire, provider, None, way)
        bound.runtime_id = await platform.create(**protocol, authorizerConfiguration=provider.authorizer)
        await provider.stop()
        expected = 200 if way.protocol == "MCP" else 503  # a call's answer there, with an error of JSON-RPC's in it
        assert await bound.ask(bearer=provider.token("alice")) == expected
        if way.protocol == "MCP":
            said = (await wire.ask(bound.runtime_id, CALL, bearer=provider.token("alice"))).json()["error"]
            assert said["code"] == -32603 and "Try again" in said["message"]
        assert platform.driver.agents == []
        await provider.start()
