"""What agents write to standard output and error, kept after the session's end: two files per session, of which the
newer is appended to; when it is full it becomes the older."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock

__all__ = ["Logs", "SessionLog"]

log = logging.getLogger(__name__)

_FLUSH_SECONDS = 0.05
_OWN = b"[agentkeep"
_BUFFER_LIMIT = 4 << 20


class SessionLog:
    """Takes a session's output as it comes and writes it behind the loop's back. What comes faster than the disk takes
    it is dropped, and that said."""

    def __init__(self, path: Path, limit: int, clock: Clock, writer: ThreadPoolExecutor) -> None:
        self._path = path
        self._limit = limit
        self._clock = clock
        self._writer = writer
        self._buffer = bytearray()
        self._dropped = 0
        self._flushing: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> None:
        """What the agent wrote. It cannot write a line of the platform's."""
        if _OWN in data:
            if data.startswith(_OWN):
                data = b" " + data
            data = data.replace(b"\n" + _OWN, b"\n " + _OWN)
        self._add(data)

    def _add(self, data: bytes) -> None:
        if len(self._buffer) + len(data) > _BUFFER_LIMIT:
            self._dropped += len(data)
        else:
            self._buffer += data
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._flush)

    def note(self, text: str) -> None:
        """A line of the platform's own, on a line of its own."""
        moment = self._clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        self._add(f"[agentkeep {moment}] {text}\n".encode())

    def _flush(self) -> None:
        self._timer = None
        if self._flushing is not None and not self._flushing.done():
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._flush)
            return
        if self._dropped:
            self._buffer += f"\n[agentkeep] {self._dropped} bytes of output came too fast and were dropped\n".encode()
            self._dropped = 0
        data, self._buffer = bytes(self._buffer), bytearray()
        if data:
            loop = asyncio.get_running_loop()
            self._flushing = loop.run_in_executor(self._writer, _append, self._path, data, self._limit)

    async def close(self) -> None:
        """All that was written is in the file when this returns."""
        while self._buffer or self._timer is not None or (self._flushing is not None and not self._flushing.done()):
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._flushing is not None:
                await asyncio.wait([self._flushing])
            self._flush()


class Logs:
    """`folder` is this plane's own. One thread writes: a slow disk delays logs and nothing else."""

    def __init__(self, folder: Path, limit: int, retention: float, clock: Clock) -> None:
        self._folder = folder
        self._limit = limit
        self._retention = retention
        self._clock = clock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="session-logs")

    def open(self, session: SessionRef) -> SessionLog:
        return SessionLog(self._path(session), self._limit, self._clock, self._writer)

    def _path(self, session: SessionRef) -> Path:
        # Session ids are callers' text, of up to 256 characters.
        name = hashlib.sha256(session.session_id.encode()).hexdigest()
        return self._folder / session.runtime_id / f"{name}.log"

    async def read(self, session: SessionRef) -> bytes | None:
        """All that is kept; None if the session is not known."""
        return await asyncio.to_thread(_read, self._path(session))

    async def find(self, session_id: str) -> list[SessionRef]:
        """The sessions of that id that have a log, of any runtime."""

        def look() -> list[SessionRef]:
            if not self._folder.is_dir():
                return []
            found = [SessionRef(entry.name, session_id) for entry in self._folder.iterdir() if entry.is_dir()]
            return sorted((ref for ref in found if self._path(ref).exists()), key=lambda ref: ref.runtime_id)

        return await asyncio.to_thread(look)

    async def collect(self) -> None:
        """Removes logs nobody wrote to for as long as they are kept."""
        await asyncio.to_thread(_collect, self._folder, time.time() - self._retention)

    def close(self) -> None:
        self._writer.shutdown(wait=True)


def _older(path: Path) -> Path:
    return path.with_suffix(".older.log")


def _append(path: Path, data: bytes, limit: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Half of the limit each.
        if path.exists() and path.stat().st_size + len(data) > limit // 2:
            path.replace(_older(path))
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, data[-limit // 2 :])
        finally:
            os.close(handle)
    except OSError as error:
        log.warning("a session's output cannot be kept: %s", error.strerror)


def _read(path: Path) -> bytes | None:
    pieces = [file.read_bytes() for file in (_older(path), path) if file.exists()]
    return b"".join(pieces) if pieces else None


def _collect(folder: Path, before: float) -> None:
    if not folder.is_dir():
        return
    for file in folder.glob("*/*.log"):
        if file.stat().st_mtime < before:
            file.unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not any(entry.iterdir()):
            entry.rmdir()
