"""What a container writes: the engine's frames taken apart, in whole lines, to a callback.

A frame is a stream's number, three zero bytes, the length (4 bytes, big-endian), and so many bytes of that stream.
Source: the Engine API's reference, "Attach to a container", stream format.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Protocol

__all__ = ["Output"]

logger = logging.getLogger(__name__)

_HEAD = struct.Struct(">BxxxL")
_LONGEST_LINE = 64 << 10
_TAIL = 8 << 10


class _Reader(Protocol):
    async def readexactly(self, n: int) -> bytes: ...


class Output:
    """`tail` is the end of what was written. `sink` may be replaced."""

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self.sink = sink
        self.tail = b""
        self._lines: dict[int, bytes] = {}

    async def follow(self, reader: _Reader) -> None:
        """Until the stream ends. What is left of a line is then given as it is."""
        try:
            while True:
                stream, length = _HEAD.unpack(await reader.readexactly(_HEAD.size))
                self._take(stream, await reader.readexactly(length))
        except asyncio.IncompleteReadError:
            pass
        finally:
            for rest in self._lines.values():
                if rest:
                    self._give(rest)
            self._lines.clear()

    def _take(self, stream: int, data: bytes) -> None:
        self.tail = (self.tail + data)[-_TAIL:]
        line = self._lines.get(stream, b"")
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            self._give(line + whole + newline)
            line = rest
        else:
            line += rest
        if len(line) > _LONGEST_LINE:
            self._give(line)
            line = b""
        self._lines[stream] = line

    def _give(self, text: bytes) -> None:
        try:
            self.sink(text)
        except Exception:  # a log that cannot be kept must not end the session
            logger.exception("the log callback failed")
