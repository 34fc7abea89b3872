"""Messages with descriptors over a SEQPACKET socket, without blocking the event loop."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

__all__ = ["Channel", "Message", "memory_file"]

_MOST_DESCRIPTORS = 253  # of one message: the kernel's SCM_MAX_FD
_CREDENTIALS = struct.Struct("3i")  # struct ucred


@dataclass(slots=True)
class Message:
    """`data` is b"" when the other end is closed. `pid` is the sender's, as the kernel translates it for us. The
    receiver owns the descriptors."""

    data: bytes
    descriptors: list[int] = field(default_factory=list)
    pid: int = 0

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


class Channel:
    """Our end of a socket pair; `theirs` is the other, to be handed over and closed here."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._ours.setblocking(False)

    async def send(self, data: bytes, descriptors: Iterable[int] = ()) -> None:
        """Raises OSError when the other end is closed."""
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        while True:
            try:
                self._ours.sendmsg([data], ancillary)
                return
            except BlockingIOError:
                await asyncio.sleep(0.001)  # the other end has thousands of messages to read; it is not stuck often

    async def receive(self) -> Message:
        while (message := self._receive_now()) is None:
            loop = asyncio.get_running_loop()
            readable: asyncio.Future[None] = loop.create_future()
            descriptor = self._ours.fileno()
            loop.add_reader(descriptor, _set, readable)
            try:
                await readable
            finally:
                loop.remove_reader(descriptor)
        return message

    def _receive_now(self) -> Message | None:
        space = socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS) + socket.CMSG_SPACE(_CREDENTIALS.size)
        try:
            data, ancillary, _, _ = self._ours.recvmsg(65536, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return Message(b"")
        message = Message(data)
        for level, kind, payload in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                message.descriptors.extend(received)
            elif kind == socket.SCM_CREDENTIALS:
                message.pid = _CREDENTIALS.unpack(payload[: _CREDENTIALS.size])[0]
        return message

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextlib.contextmanager
def memory_file(content: Any) -> Any:
    """A descriptor of an anonymous file holding `content` as JSON: any size passes in one message, and nothing of it
    touches a disk."""
    descriptor = os.memfd_create("agentkeep", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(orjson.dumps(content))
        yield descriptor
    finally:
        os.close(descriptor)
