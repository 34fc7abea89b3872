"""What a process writes to its standard streams, in whole lines, to a callback."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

__all__ = ["LogPipe"]

logger = logging.getLogger(__name__)

_LONGEST_LINE = 64 << 10
_TAIL = 8 << 10


class LogPipe:
    """Reads a pipe until its last writer is gone. `writer` is to be handed to the process, then `close_writer`.

    `tail` is the end of what was written; `ended` completes at the end of the stream: when that happens no process
    that had the pipe is left.
    """

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sink = sink
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._line = b""
        self.tail = b""
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._reader, self._readable)

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        """Takes what is there already and ends."""
        self.close_writer()
        while not self.ended.done() and self._readable():
            pass
        self._end()

    def _readable(self) -> bool:
        try:
            data = os.read(self._reader, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._end()
            return False
        self.tail = (self.tail + data)[-_TAIL:]
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            self._give(self._line + whole + newline)
            self._line = rest
        else:
            self._line += rest
        if len(self._line) > _LONGEST_LINE:
            self._give(self._line)
            self._line = b""
        return True

    def _give(self, text: bytes) -> None:
        try:
            self._sink(text)
        except Exception:  # a log that cannot be kept must not end the session
            logger.exception("the log callback failed")

    def _end(self) -> None:
        if self.ended.done():
            return
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        if self._line:
            self._give(self._line)
            self._line = b""
        self.ended.set_result(None)
