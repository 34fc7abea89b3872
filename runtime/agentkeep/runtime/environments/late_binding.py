"""What an environment is given while it is nobody's: a session endpoint and a log that are bound when it is claimed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

__all__ = ["LateBinding"]

_OUTPUT_KEPT = 64 << 10


class LateBinding:
    """Until it is bound, connections to the session endpoint are closed at once (there is no session, so there are no
    credentials), and what the agent wrote last is kept for its session's log."""

    def __init__(self) -> None:
        self._endpoint: Callable[[], asyncio.Protocol] = _Closed
        self._log: Callable[[bytes], None] | None = None
        self._kept: deque[bytes] = deque()
        self._kept_size = 0

    def endpoint(self) -> asyncio.Protocol:
        return self._endpoint()

    def log(self, data: bytes) -> None:
        if self._log is not None:
            self._log(data)
            return
        self._kept.append(data)
        self._kept_size += len(data)
        while self._kept_size > _OUTPUT_KEPT and len(self._kept) > 1:
            self._kept_size -= len(self._kept.popleft())

    @property
    def output(self) -> str:
        """What is kept."""
        return b"".join(self._kept).decode(errors="replace")

    def bind(self, endpoint: Callable[[], asyncio.Protocol], log: Callable[[bytes], None]) -> None:
        """Once."""
        assert self._log is None
        for data in self._kept:
            log(data)
        self._kept.clear()
        self._log = log
        self._endpoint = endpoint


class _Closed(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()
