"""One HTTP/1.1 request to an agent over a connection of its own, for what is not the hot path (which is the pump's):
health checks, and InvokeAgentRuntime called in-process.

Answers are never read to the end of the connection where they say how long they are: a process the agent forked may
hold it open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import httptools

from agentkeep.runtime.drivers.driver import Connection

__all__ = ["AgentAnswer", "AgentProtocolError", "request"]

_READ = 64 << 10
#: Of an answer that may come without a byte of body.
_FRAMING_LIMIT = 128 << 10


class AgentProtocolError(Exception):
    """The agent's answer is not HTTP, or was cut short."""


class AgentAnswer:
    """An agent's answer. `headers` have lower-case names. The body is read once, by `read` or by iterating."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._headed = False
        self._complete = False
        self._framing_size = 0  # since the body's last byte

    # httptools' callbacks.

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:  # else a trailer: nobody reads those
            self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        # An interim answer (103 Early Hints); the one that counts follows.
        if self.status < 200:
            self.headers.clear()
        else:
            self._headed = True
            self._framing_size = 0

    def on_body(self, piece: bytes) -> None:
        self._framing_size = 0
        if not self._complete:  # else a second answer's
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        if self._headed:
            self._complete = True

    # Reading.

    async def head(self) -> None:
        while not self._headed:
            if not await self._feed():
                raise AgentProtocolError("the agent closed the connection before it answered")

    async def _feed(self) -> bool:
        data = await self._reader.read(_READ)
        if not data:
            return False
        self._framing_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise AgentProtocolError(f"the agent does not speak HTTP: {error}") from None
        except httptools.HttpParserUpgrade:  # no HttpParserError
            raise AgentProtocolError("the agent answers with an upgrade nobody asked for") from None
        if self._framing_size > _FRAMING_LIMIT:
            raise AgentProtocolError("the agent's answer is all head, chunk sizes or trailers")
        return True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            if self._complete:
                return
            if not pieces and not await self._feed():
                framed = any(name in ("content-length", "transfer-encoding") for name, _ in self.headers)
                if framed:
                    raise AgentProtocolError("the agent's answer was cut short")
                return

    async def read(self, limit: int) -> bytes:
        body = b""
        async for piece in self:
            body += piece
            if len(body) > limit:
                raise AgentProtocolError(f"the agent's answer is larger than {limit} bytes")
        return body


@asynccontextmanager
async def request(
    connection: Connection,
    method: str,
    path: str,
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: bytes = b"",
) -> AsyncIterator[AgentAnswer]:
    """Sends a request, waits for the answer's head, and closes the connection at the end whatever happens.

    Raises AgentProtocolError, OSError.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection(sock=connection.socket)
        head = [f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n".encode()]
        head += [name + b": " + value + b"\r\n" for name, value in headers]
        if method != "GET" or body:
            head.append(b"content-length: %d\r\n" % len(body))
        writer.write(b"".join([*head, b"\r\n", body]))
        await writer.drain()
        answer = AgentAnswer(reader)
        await answer.head()
        yield answer
    finally:
        if writer is not None:
            writer.transport.abort()
        else:
            connection.socket.close()
        connection.release()
