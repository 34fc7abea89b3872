"""CONNECT at a session's listener: who may, what is refused and how, what is bounded, what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from tls_front import TlsFront, tls_front

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import StoreUnavailable
from agentkeep.core.ports import AuditRecord
from agentkeep.runtime.egress.egress import Egress
from agentkeep.runtime.egress.limits import EgressLimits
from agentkeep.runtime.egress.records import EgressRecords
from agentkeep.runtime.egress.route import EgressRoute
from agentkeep.runtime.egress.rules import EgressRules
from agentkeep.service.front import Front

NAME = "api.example.com"


class DomainNames:
    """A name server that answers what a test says."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def addresses(self, host: str) -> list[Any]:
        self.asked.append(host)
        await self.hold.wait()
        if host not in self.answers:
            raise OSError("no such name")
        return [ip_address(address) for address in self.answers[host]]

    def close(self) -> None:
        pass


class KeptRecords:
    """An audit store; `away`: it is."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []
        self.away = False

    async def record(self, record: AuditRecord) -> None:
        if self.away:
            raise StoreUnavailable("the store is away")
        self.records.append(record)

    def codes(self) -> list[str]:
        return [record.details["code"] for record in self.records if record.kind == "egress-refused"]


class Echo:
    """What is outside: says again what it is told. `quiet`: it reads nothing."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.got = 0
        self.lost = 0
        self.read = asyncio.Event()
        self.read.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while data := await reader.read(65536):
                await self.read.wait()
                self.got += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self.lost += 1
            writer.close()


@dataclass
class Stand:
    platform: Any
    runtime_id: str
    audit: KeptRecords
    names: DomainNames
    echo: Echo
    tls: TlsFront
    certificate: Path
    limits: EgressLimits = field(default_factory=EgressLimits)
    route: Any = None
    front: Any = None
    listeners: list[asyncio.Server] = field(default_factory=list)

    async def open(self, rules: Any = None, **limits: Any) -> None:
        """A front with the way out."""
        plane = self.platform.plane
        given = [
            {"name": "API", "agents": ["agent"], "hosts": [f"{NAME}:{self.tls.port}"], "networks": ["127.0.0.0/8"]}
        ]
        text = json.dumps({"rules": given if rules is None else rules, "default": "refuse"})
        records = EgressRecords(self.audit, self.platform.clock, self.platform.deployment)
        self.limits = replace(self.limits, **limits)
        egress = Egress(
            EgressRules.parse(text.encode(), "") if rules != [] else None,
            plane.egress.egress._living, records, self.names, self.limits,
        )  # fmt: skip
        self.route = EgressRoute(egress)
        self.front = Front(_nothing, [self.route])
        await self.front.start()

    async def session(self) -> tuple[SessionRef, int]:
        """One that lives, and its listener's port."""
        ref = SessionRef(self.runtime_id, str(uuid.uuid4()))
        (await self.platform.begin(ref.runtime_id, ref.session_id, user_id="alice")).end()
        return ref, await self.listen(ref)

    async def listen(self, ref: SessionRef | None) -> int:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self.front.protocol(ref), "127.0.0.1", 0)
        self.listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    async def stop(self, ref: SessionRef) -> None:
        await self.platform.call(
            "stop_runtime_session", agentRuntimeArn=ref.runtime_id, runtimeSessionId=ref.session_id
        )

    async def close(self) -> None:
        for listener in self.listeners:
            listener.close()
        if self.front is not None:
            await self.route.close()
            await self.front.close()


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no request is read here")


@pytest.fixture
async def stand(platform: Any, tmp_path: Path) -> AsyncIterator[Stand]:
    """A runtime with an agent; outside, a server of TLS at `NAME`, on loopback."""
    echo, names = Echo(), DomainNames()
    names.answers[NAME] = ["127.0.0.1"]
    server = await asyncio.start_server(lambda *ends: echo.serve(*ends), "127.0.0.1", 0)
    async with tls_front(NAME, server.sockets[0].getsockname()[1], tmp_path) as tls:
        stand = Stand(platform, await platform.create(), KeptRecords(), names, echo, tls, tmp_path / "tls.pem")
        yield stand
        await stand.close()
    server.close()


async def connect(port: int, target: str, more: str = "", version: str = "1.1") -> tuple[Any, Any, bytes]:
    """What a CONNECT is answered, up to the end of the head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"CONNECT {target} HTTP/{version}\r\n{more}\r\n".encode())
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    except asyncio.IncompleteReadError as error:
        head = error.partial
    return reader, writer, head


async def through(stand: Stand, port: int, name: str | None = NAME) -> tuple[Any, Any]:
    """A TLS connection with the server outside."""
    reader, writer, head = await connect(port, f"{NAME}:{stand.tls.port}")
    assert head.startswith(b"HTTP/1.1 200 "), head
    context = stand.tls.trust
    if name != NAME:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        await writer.start_tls(context, server_hostname=name or "")
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)


async def test_bytes_pass_both_ways_and_it_is_on_record(stand: Stand) -> None:
    """IDN-1: to the named host, with what is large, in both versions of HTTP; counted, and by whom."""
    await stand.open()
    ref, port = await stand.session()
    reader, writer = await through(stand, port)
    sent = bytes(range(256)) * 8000
    writer.write(sent)
    assert await asyncio.wait_for(reader.readexactly(len(sent)), 20) == sent
    writer.close()
    await until(lambda: not stand.route.passages)
    _, old, head = await connect(port, f"{NAME.upper()}.:{stand.tls.port}", version="1.0")
    assert head.startswith(b"HTTP/1.1 200 ")
    old.close()
    [record] = stand.audit.records
    assert (record.kind, record.session, record.user_id) == ("egress-opened", ref, "alice")
    assert record.details == {"host": NAME, "port": str(stand.tls.port), "rule": "API"}
    await stand.route.egress._records._tally.flush()
    assert [record.count for record in stand.audit.records] == [1, 1]


HEADS = [
    (b"CONNECT /runtimes/x/invocations HTTP/1.1\r\n\r\n", 400),
    (b"CONNECT http://api.example.com:443/ HTTP/1.1\r\n\r\n", 400),
    (b"CONNECT user@api.example.com:443 HTTP/1.1\r\n\r\n", 400),
    (b"CONNECT api.example.com HTTP/1.1\r\n\r\n", 400),
    (b"CONNECT api.example.com:443?x HTTP/1.1\r\n\r\n", 400),
    (b"CONNECT api.example.com:443#x HTTP/1.1\r\n\r\n", 400),
    (b"CONNECT b\xc3\xbccher.example:443 HTTP/1.1\r\n\r\n", 400),
    (b"CONNECT 0x7f000001:443 HTTP/1.1\r\n\r\n", 400),
    (b"CONNECT api.example.com:443 HTTP/1.1\r\nHost: other.example\r\n\r\n", 400),
    (b"CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com\r\nHost: api.example.com\r\n\r\n", 400),
    (b"CONNECT api.example.com:443 HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
    (b"CONNECT api.example.com:443 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 400),
    (b"CONNECT api.example.com:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"CONNECT api.example.com:443 HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", 400),
    (b"GET https://api.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 400),
    (b"POST http://api.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 400),
    (b"CONNECT api.example.com:443 HTTP/1.1\r\n\r\n", 403),  # a rule, for another port
    (b"CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n", 403),
    (b"CONNECT 127.0.0.1:443 HTTP/1.1\r\n\r\n", 403),
    (b"CONNECT [::ffff:169.254.169.254]:443 HTTP/1.1\r\n\r\n", 403),
]


async def test_one_answer_and_the_connection_ends(stand: Stand) -> None:
    """IDN-2: what two readers might read differently is refused, and nothing behind a refusal is read as a request."""
    await stand.open()
    _, port = await stand.session()
    for head, status in HEADS:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"GET /credentials HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n")
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 %d " % status), (head, answer)
        assert answer.count(b"HTTP/1.1 ") == 1
        writer.close()
    assert not stand.names.asked and not stand.echo.writers
    assert all(record.kind == "egress-refused" for record in stand.audit.records)


async def test_clients_as_they_are(stand: Stand) -> None:
    """httpx, requests and aiohttp, told of the proxy and of nothing else."""

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        writer.close()

    stand.echo.serve = page  # type: ignore[method-assign]
    await stand.open()
    _, port = await stand.session()
    url, proxy = f"https://{NAME}:{stand.tls.port}/", f"http://127.0.0.1:{port}"
    authority = str(stand.certificate)
    async with httpx.AsyncClient(proxy=proxy, verify=stand.tls.trust) as http:
        assert (await http.get(url)).text == "hello"
    plain = await asyncio.to_thread(requests.get, url, proxies={"https": proxy}, verify=authority, timeout=10)
    assert plain.text == "hello"
    async with aiohttp.ClientSession() as client, client.get(url, proxy=proxy, ssl=stand.tls.trust) as answer:
        assert await answer.text() == "hello"
    with pytest.raises(httpx.ProxyError, match="No rule of AGENTKEEP_RUNTIME_EGRESS_RULES"):
        async with httpx.AsyncClient(proxy=proxy) as http:
            await http.get("https://other.example/")
    with pytest.raises(requests.exceptions.ProxyError, match="No rule of AGENTKEEP_RUNTIME_EGRESS_RULES"):
        await asyncio.to_thread(requests.get, "https://other.example/", proxies={"https": proxy}, timeout=10)


async def test_the_answer_says_what_is_missing(stand: Stand) -> None:
    """In the status line, which is what clients show; refusals are counted together."""
    await stand.open()
    ref, port = await stand.session()
    for host in ("one.example", "two.example", "three.example"):
        _, writer, head = await connect(port, f"{host}:443")
        line = head.partition(b"\r\n")[0].decode()
        assert line == f"HTTP/1.1 403 No rule of AGENTKEEP_RUNTIME_EGRESS_RULES lets this agent reach {host}:443"
        writer.close()
    await until(lambda: stand.audit.records)
    [record] = stand.audit.records
    assert (record.session, record.user_id, record.details["host"]) == (ref, "alice", "one.example")
    await stand.route.egress._records._tally.flush()
    assert [record.count for record in stand.audit.records] == [1, 2]
    await stand.stop(ref)
    logs = stand.platform.folder / "runtime" / "logs"
    log = b"".join(path.read_bytes() for path in logs.rglob("*") if path.is_file())
    assert b"no way out (NoRule): No rule of AGENTKEEP_RUNTIME_EGRESS_RULES lets this agent reach two.example" in log


async def test_only_a_living_sessions_own_listener(stand: Stand) -> None:
    """IDN-2, IDN-4: not the public port, not a session that has ended or never was, not without rules."""
    await stand.open()
    target = f"{NAME}:{stand.tls.port}"
    public = await stand.listen(None)
    _, writer, head = await connect(public, target, "Host: x\r\nx-session: s\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"errortype: ValidationException" in head
    writer.close()
    ref, port = await stand.session()
    await stand.stop(ref)
    unknown = await stand.listen(SessionRef(stand.runtime_id, str(uuid.uuid4())))
    for ended in (port, unknown):
        _, writer, head = await connect(ended, target)
        assert head.startswith(b"HTTP/1.1 403 The session has ended"), head
        writer.close()
    assert not stand.echo.writers
    await stand.close()
    await stand.open([])
    _, port = await stand.session()
    _, writer, head = await connect(port, target)
    assert head.startswith(b"HTTP/1.1 403 No rule of"), head
    writer.close()


ADDRESSES = [
    (["169.254.169.254"], 403),
    (["10.0.0.1"], 403),
    (["::1"], 403),
    (["::ffff:10.0.0.1"], 403),
    ([], 403),
    (["169.254.169.254", "10.0.0.1", "127.0.0.1"], 200),
    (["127.0.0.2", "127.0.0.1"], 200),
    (None, 502),
]


async def test_connects_only_to_addresses_it_has_checked(stand: Stand) -> None:
    """IDN-2: a name that leads inside reaches nothing; of several addresses those that are good; looked up once, so
    that it cannot lead elsewhere a moment later."""
    await stand.open()
    _, port = await stand.session()
    for number, (addresses, status) in enumerate(ADDRESSES, 1):
        stand.names.answers = {} if addresses is None else {NAME: addresses}
        _, writer, head = await connect(port, f"{NAME}:{stand.tls.port}")
        assert head.startswith(b"HTTP/1.1 %d " % status), (addresses, head)
        assert stand.names.asked == [NAME] * number
        writer.close()
    assert stand.audit.codes() == ["AddressRefused"]


async def test_tls_is_for_the_host_that_was_named(stand: Stand) -> None:
    """IDN-2: a connection let through for one name is not used for another at the same address."""
    await stand.open()
    _, port = await stand.session()
    for name in ("other.example.com", None):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await through(stand, port, name)
    await until(lambda: stand.audit.codes() == ["ServerNameRefused"] and not stand.route.passages)
    assert not stand.echo.got


async def test_only_tls_passes(stand: Stand) -> None:
    await stand.open()
    _, port = await stand.session()
    reader, writer, head = await connect(port, f"{NAME}:{stand.tls.port}")
    assert head.startswith(b"HTTP/1.1 200 ")
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    await until(lambda: stand.audit.codes() == ["ServerNameRefused"])


async def test_without_a_record_no_connection(stand: Stand) -> None:
    """IDN-2: nothing is looked up or connected to that is not on record."""
    await stand.open()
    _, port = await stand.session()
    stand.audit.away = True
    _, writer, head = await connect(port, f"{NAME}:{stand.tls.port}")
    assert head.startswith(b"HTTP/1.1 503 "), head
    assert not stand.names.asked and not stand.audit.records
    writer.close()
    stand.audit.away = False
    _, again, head = await connect(port, f"{NAME}:{stand.tls.port}")
    assert head.startswith(b"HTTP/1.1 200 ")
    again.close()


async def test_ends_with_its_session_at_once(stand: Stand) -> None:
    """IDN-4: open tunnels, and those on their way, are gone when the session is."""
    await stand.open()
    ref, port = await stand.session()
    reader, writer = await through(stand, port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    stand.names.hold.clear()
    late = asyncio.create_task(connect(port, f"{NAME}:{stand.tls.port}"))
    await until(lambda: len(stand.names.asked) == 2)
    await stand.stop(ref)
    assert not stand.route.passages
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await asyncio.wait_for(reader.readexactly(1), 10)
    stand.names.hold.set()
    with contextlib.suppress(ConnectionError):
        _, unanswered, head = await late
        unanswered.close()
        assert head == b""
    await until(lambda: stand.echo.lost == 1)
    assert len(stand.echo.writers) == 1
    writer.transport.abort()


async def test_bounds(stand: Stand) -> None:
    """So many of a session, so many in all, so many hosts; what is given back can be had again."""
    rule = {"name": "all", "agents": ["*"], "hosts": [f"*.example.com:{stand.tls.port}"], "networks": ["127.0.0.0/8"]}
    await stand.open([rule], connections_of_session=2, connections=3, hosts=2)
    _, one = await stand.session()
    _, two = await stand.session()
    target = f"{NAME}:{stand.tls.port}"
    opened = [await connect(port, target) for port in (one, one, two)]
    assert all(head.startswith(b"HTTP/1.1 200 ") for *_, head in opened)
    for port in (one, two):
        _, writer, head = await connect(port, target)
        assert head.startswith(b"HTTP/1.1 429 "), head
        writer.close()
    opened[0][1].close()
    await until(lambda: len(stand.route.passages) == 2)
    for host, status in (("b.example.com", 502), ("c.example.com", 429), (NAME, 200)):
        _, writer, head = await connect(one, f"{host}:{stand.tls.port}")
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        writer.close()
        await until(lambda: len(stand.route.passages) == 2)
    for _, writer, _ in opened:
        writer.close()
    await until(lambda: not stand.route.passages)
    assert stand.route.egress._open == 0


@pytest.mark.parametrize("limit", ["hello", "idle", "life"])
async def test_time_limits(stand: Stand, limit: str) -> None:
    await stand.open(**{limit: 0.3})
    _, port = await stand.session()
    if limit == "hello":
        reader, writer, head = await connect(port, f"{NAME}:{stand.tls.port}")
        assert head.startswith(b"HTTP/1.1 200 ")
        writer.write(b"\x16\x03\x01")
    else:
        reader, writer = await through(stand, port)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await asyncio.wait_for(reader.readexactly(10_000), 10)
    assert not stand.route.passages
    writer.transport.abort()


async def test_nobody_answers(stand: Stand) -> None:
    """A name server that is silent, and a port at which nobody listens."""
    await stand.open(connect=0.2)
    _, port = await stand.session()
    stand.names.hold.clear()
    _, writer, head = await connect(port, f"{NAME}:{stand.tls.port}")
    assert head.startswith(b"HTTP/1.1 504 "), head
    stand.names.hold.set()
    writer.close()
    stand.names.answers[NAME] = ["127.0.0.9"]
    _, writer, head = await connect(port, f"{NAME}:{stand.tls.port}")
    assert head.startswith(b"HTTP/1.1 502 "), head
    writer.close()


async def test_who_reads_slowly_is_waited_for(stand: Stand) -> None:
    """What is outside reads nothing: what the platform holds for it stays small, and then all arrives."""
    await stand.open()
    _, port = await stand.session()
    reader, writer = await through(stand, port)
    stand.echo.read.clear()
    sent = bytes(12_000_000)
    writer.write(sent)
    [passage] = stand.route.passages
    held = 0
    for _ in range(30):
        await asyncio.sleep(0.01)
        held = max(held, passage._outside.transport.get_write_buffer_size())
    assert 0 < held < 2_000_000
    stand.echo.read.set()
    assert len(await asyncio.wait_for(reader.readexactly(len(sent)), 30)) == len(sent)
    writer.close()
