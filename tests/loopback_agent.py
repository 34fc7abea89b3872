"""An agent behind a plain loopback socket, outside any sandbox, and the sessions that lead to it: what the data path
needs to be tested without a driver. The agent misbehaves in every way an agent's server can."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentkeep.core.errors import ServiceError
from agentkeep.runtime.sessions.tracing import InvocationSpan
from agentkeep.runtime.sessions.turn import InvocationRequest, McpTurn


@dataclass
class Received:
    """A request as the agent saw it; `complete` False: its client left in the middle of the body."""

    line: bytes
    headers: dict[bytes, bytes]
    body: bytes = b""  # its beginning
    size: int = 0
    complete: bool = False


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


OK_CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class ScriptedAgent:
    """What it does is the first word of the body."""

    received: list[Received] = field(default_factory=list)
    connections: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)  # a client left before its answer was complete
    go_on: asyncio.Event = field(default_factory=asyncio.Event)  # what `wait` and `unread` wait for
    port: int = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.CancelledError):
            self.left.set()
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        line, *fields = head[:-4].split(b"\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (f.partition(b":") for f in fields)}
        request = Received(line, headers)
        self.received.append(request)
        if headers.get(b"x-test") == b"early":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly")
        if headers.get(b"x-test") == b"unread":
            await self.go_on.wait()
        try:
            async for piece in body(reader, headers):
                request.size += len(piece)
                if len(request.body) < 4096:
                    request.body += piece
        except asyncio.IncompleteReadError:
            self.left.set()
            return False
        request.complete = True
        if headers.get(b"x-test") == b"early":
            return True
        return await self._answer(request, reader, writer)

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        word, _, rest = request.body[:64].partition(b" ")
        match word:
            case b"sleep":
                await self._sleep(float(rest), reader)
            case b"wait":
                await self.go_on.wait()
            case b"stream":
                writer.write(OK_CHUNKED)
                for i in range(int(rest)):
                    writer.write(chunk(b"data: %d\n\n" % i))
                    await writer.drain()
                    await asyncio.sleep(0.01)
                writer.write(b"0\r\n\r\n")
                return True
            case b"flood":
                writer.write(OK_CHUNKED)
                for _ in range(int(rest)):
                    writer.write(chunk(b"x" * 65536))
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
                return True
            case b"hang":
                writer.write(OK_CHUNKED + chunk(b"data: 1\n\n"))
                await self._sleep(60, reader)
            case b"error":
                writer.write(b"HTTP/1.1 %b Bad\r\ncontent-length: 4\r\n\r\nboom" % (rest or b"500"))
                return True
            case b"cut-head":
                return False
            case b"cut-body":
                writer.write(OK_CHUNKED + chunk(b"data: half\n\n"))
                await writer.drain()
                await asyncio.sleep(0.05)
                return False
            case b"short":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
                await writer.drain()
                return False
            case b"eof":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)
                writer.write(b"to the end")
                await writer.drain()
                with contextlib.suppress(OSError):
                    writer.write_eof()
                await asyncio.sleep(0.02)
                return False
            case b"status":
                writer.write(b"HTTP/1.1 %b X\r\nx-private: 1\r\n\r\n" % rest)
                return True
            case b"interim":
                writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
            case b"garbage":
                writer.write(b"this is not HTTP\r\n\r\n")
                await asyncio.sleep(0.05)
                return False
            case b"twice":
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\naHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nb"
                )
                return True
            case b"split":
                writer.write(
                    b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\nx-evil: 1\r\nconnection: x\r\ncontent-length: 2\r\n\r\nok"
                )
                return True
        answer = b'{"n":%d}' % request.size
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer))
        writer.write(answer)
        await writer.drain()
        if word == b"close-after":
            writer.write_eof()
            await asyncio.sleep(0.2)
            return False
        return True

    async def _sleep(self, seconds: float, reader: asyncio.StreamReader) -> None:
        """Raises ConnectionError as soon as the client leaves."""
        try:
            async with asyncio.timeout(seconds):
                if not await reader.read(1):
                    raise ConnectionError
        except TimeoutError:
            pass


async def body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]):
    if headers.get(b"transfer-encoding") == b"chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return
    left = int(headers.get(b"content-length", b"0"))
    while left:
        piece = await reader.read(min(left, 1 << 16))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        yield piece


class LoopbackConnection:
    def __init__(self, socket: socket.socket, room: asyncio.Semaphore | None = None) -> None:
        self.socket = socket
        self.released = 0
        self._room = room

    def release(self) -> None:
        self.released += 1
        if self._room is not None:
            self._room.release()


@dataclass
class LoopbackTurn:
    sessions: LoopbackSessions
    request: InvocationRequest
    session_id: str
    path: str = "/invocations"
    ended: int = 0
    mcp: McpTurn | None = None

    def __post_init__(self) -> None:
        self.span = InvocationSpan("InvokeAgentRuntime", self.request.request_id, self.request.headers, {}, {})

    @property
    def environment_id(self) -> str:
        return f"loopback-{self.session_id}"

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        named = [
            (b"content-type", self.request.headers.get("content-type", "application/json").encode()),
            (b"x-amzn-bedrock-agentcore-runtime-session-id", self.session_id.encode()),
        ]
        if "x-test" in self.request.headers:
            named.append((b"x-test", self.request.headers["x-test"].encode()))
        return named

    async def connect(self) -> LoopbackConnection:
        room = self.sessions.room
        if room is not None:
            await room.acquire()
        loop = asyncio.get_running_loop()
        connected = socket.socket()
        connected.setblocking(False)
        try:
            await loop.sock_connect(connected, ("127.0.0.1", self.sessions.port))
        except BaseException:
            connected.close()
            if room is not None:
                room.release()
            raise
        connection = LoopbackConnection(connected, room)
        self.sessions.connections.append(connection)
        return connection

    def end(self, error: ServiceError | None = None, proved: bool = True) -> None:
        self.ended += 1


@dataclass
class LoopbackSessions:
    """Sessions that all lead to one agent. The first turn of a session goes through `begin`."""

    port: int
    live: set[str] = field(default_factory=set)
    turns: list[LoopbackTurn] = field(default_factory=list)
    connections: list[LoopbackConnection] = field(default_factory=list)
    requests: list[InvocationRequest] = field(default_factory=list)
    refusal: ServiceError | None = None
    start_seconds: float = 0.0
    room: asyncio.Semaphore | None = None  # for so many connections to the agent at once; others wait

    def begin_now(self, request: InvocationRequest) -> LoopbackTurn | None:
        if self.refusal is not None:
            raise self.refusal
        if request.session_id not in self.live:
            return None
        return self._turn(request, request.session_id)

    async def challenge(self, request: InvocationRequest) -> str | None:
        return None

    async def begin(self, request: InvocationRequest) -> LoopbackTurn:
        await asyncio.sleep(self.start_seconds)
        session_id = request.session_id or "made-" + "0" * 36
        self.live.add(session_id)
        return self._turn(request, session_id)

    def _turn(self, request: InvocationRequest, session_id: str) -> LoopbackTurn:
        turn = LoopbackTurn(self, request, session_id)
        self.turns.append(turn)
        self.requests.append(request)
        return turn
