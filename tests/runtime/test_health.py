"""Pings answered by agents that mean harm, or do not know HTTP."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agentkeep.runtime.environments.health import PingStatus, ping

OK = b"HTTP/1.1 200 OK\r\n"


class Dialled:
    """A connection to an agent, as a driver gives it."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def release(self) -> None:
        pass


async def pinged(answer: bytes, again: bytes = b"", times: int = 0) -> object:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    _, writer = await asyncio.open_connection(sock=theirs)

    async def play() -> None:
        try:
            writer.write(answer)
            for _ in range(times):
                writer.write(again)
                await writer.drain()
        except OSError:
            pass

    playing = asyncio.create_task(play())
    try:
        return await ping(Dialled(ours), 5)
    finally:
        playing.cancel()
        writer.transport.abort()


async def test_health() -> None:
    health = await pinged(OK + b'Content-Length: 24\r\n\r\n{"status":"HealthyBusy"}')
    assert getattr(health, "status", None) is PingStatus.HEALTHY_BUSY


@pytest.mark.parametrize(
    ("answer", "again"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", b""),
        (b"nonsense\r\n\r\n", b""),
        (OK, b"a: b\r\n" * 1000),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 1000),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a" * 6000),
        (OK + b"Content-Length: 99999999\r\n\r\n", b"a" * 6000),
    ],
    ids=["upgrade", "nonsense", "head", "trailers", "extension", "body"],
)
async def test_answers_that_are_none(answer: bytes, again: bytes) -> None:
    """EXE-3: a ping that failed, in time and without taking memory; never another error, which nobody counts."""
    with pytest.raises(ConnectionError):
        await pinged(answer, again, 2000)
