"""The connection to Valkey or Redis: commands of all tasks in one stream, answers in order.

redis-py's asyncio client costs a few hundred microseconds of CPU for each command, several times the rest of an
operation (benchmarks/memory.py measures both). This one speaks the same protocol through the same parser (hiredis) and
keeps what a server needs: time limits, reconnection, TLS, passwords, back-pressure. URLs are redis-py's.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import parse_url

from agentkeep.core.errors import StoreUnavailable

__all__ = ["Argument", "Endpoint", "RespClient", "ServerError"]

logger = logging.getLogger(__name__)

Argument = bytes | str | int
Command = tuple[Argument, ...]

_pack: Final[Callable[[Command], bytes]] = hiredis.pack_command  # type: ignore[assignment]  # stub: tuples of one

#: Replies by which the server says that it did not run the command, and that it may soon: it loads its data, another
#: node took over, a script is running. Safe to repeat, whatever the command.
_NOT_YET: Final = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY")
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.5


class ServerError(StoreUnavailable):
    """The server answered a command with an error; `code` is its first word."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the store answered: {message}")
        self.code = message.split(" ", 1)[0]


class _Lost(Exception):
    """The connection ended with the command unanswered."""


class Endpoint:
    """Where the server is and how to prove who asks: `unix:///path`, `redis://[user:password@]host:port/db` or
    `rediss://` (TLS; `?ssl_ca_certs=PATH`), as redis-py reads them."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {**parse_url(url)}
        self.path: str | None = options.get("path")
        self.host: str = options.get("host", "localhost")
        self.port: int = options.get("port", 6379)
        self.ssl: ssl.SSLContext | None = None
        if url.startswith("rediss://"):
            self.ssl = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
            if "ssl_certfile" in options:
                self.ssl.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
        self._db: int = options.get("db", 0)
        self._username: str | None = options.get("username")
        self._password: str | None = options.get("password")

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def greeting(self) -> list[Command]:
        commands: list[Command] = []
        if self._password is not None:
            commands.append(("AUTH", self._username or "default", self._password))
        if self._db:
            commands.append(("SELECT", self._db))
        commands.append(("CLIENT", "SETNAME", "agentkeep"))
        return commands


class _Connection(asyncio.Protocol):
    """One socket. A command's future gets its reply, or _Lost."""

    def __init__(self, time_limit: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._time_limit = time_limit
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._out: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport  # from connection_made on, which comes before all else
        self._lost: str | None = None
        self.resume: asyncio.Future[None] | None = None  # set while the server takes less than is sent

    @property
    def usable(self) -> bool:
        return self._lost is None

    def send(self, command: Command) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._lost is not None:
            future.set_exception(_Lost(self._lost))
            return future
        idle = not self._waiting
        self._waiting.append((self._loop.time() + self._time_limit, future))
        if idle:
            self._transport.write(_pack(command))
        else:
            if not self._out:
                self._loop.call_soon(self._flush)  # one write for all that is asked in this turn of the loop
            self._out.append(_pack(command))
        if self._timer is None:
            self._timer = self._loop.call_later(self._time_limit, self._check_time)
        return future

    def close(self, why: str) -> None:
        """All that waits fails."""
        if self._lost is None:
            self._lost = why
            if self._timer is not None:
                self._timer.cancel()
            self._transport.abort()
            while self._waiting:
                _, future = self._waiting.popleft()
                if not future.done():
                    future.set_exception(_Lost(why))
            self.resume_writing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not instances of it

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(f"connection closed: {exc}" if exc else "connection closed by the store")

    def pause_writing(self) -> None:
        if self.resume is None:
            self.resume = self._loop.create_future()

    def resume_writing(self) -> None:
        if self.resume is not None:
            self.resume.set_result(None)
            self.resume = None

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                _, future = waiting.popleft()
                if not future.done():  # else its task was cancelled
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self.close(f"not the protocol expected: {error!r}")

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._lost is None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _check_time(self) -> None:
        """One timer for all commands: replies come in order, so only the oldest can be the first to be late."""
        self._timer = None
        if not self._waiting:
            return
        left = self._waiting[0][0] - self._loop.time()
        if left <= 0:
            self.close(f"no answer within {self._time_limit:g} s")
        else:
            self._timer = self._loop.call_later(left, self._check_time)


class RespClient:
    """Commands to one server over one connection, made when first needed and again when lost. For one event loop.

    `time_limit`: seconds a command may take, waiting for a connection included.
    """

    def __init__(self, endpoint: Endpoint, time_limit: float = 5.0, scripts: Sequence[str] = ()) -> None:
        self._endpoint = endpoint
        self._time_limit = time_limit
        self._scripts = scripts
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._closed = False

    async def execute(self, command: Command, *, repeatable: bool) -> Any:
        """The reply. `repeatable`: doing it twice does what doing it once does, so it may be sent again when the
        connection is lost before its reply; else that raises StoreUnavailable."""
        connection = self._connection
        if connection is not None and connection.usable and connection.resume is None:
            try:
                reply = await connection.send(command)
            except _Lost as lost:
                if not repeatable:
                    raise self._unknown_fate(lost) from None
            else:
                if not isinstance(reply, hiredis.ReplyError):
                    return reply
                if not str(reply).startswith(_NOT_YET):
                    raise ServerError(str(reply))
        return await self._persist(command, repeatable)

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait((self._connecting,))
        if self._connection is not None:
            self._connection.close("closed")
            await asyncio.sleep(0)  # lets the transport's connection_lost run

    async def _persist(self, command: Command, repeatable: bool) -> Any:
        """Sends the command until it has an answer, or must not be sent again, or the time is up."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._time_limit, _FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    connection = await self._connected()
                    while connection.resume is not None:
                        await asyncio.shield(connection.resume)
                reply = await connection.send(command)
                if not isinstance(reply, hiredis.ReplyError):
                    return reply
                if not str(reply).startswith(_NOT_YET):
                    raise ServerError(str(reply))
                why = str(reply)
                if why.startswith("READONLY"):
                    connection.close(why)  # the name may lead to the new primary by now
            except TimeoutError:
                raise StoreUnavailable(
                    f"no connection to the store at {self._endpoint} within {self._time_limit:g} s"
                ) from None
            except OSError as error:
                why = f"cannot connect: {error}"
            except _Lost as lost:
                if not repeatable:
                    raise self._unknown_fate(lost) from None
                why = str(lost)
            if loop.time() + pause > deadline:
                raise StoreUnavailable(f"the store at {self._endpoint} is not available: {why}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _connected(self) -> _Connection:
        """The connection; one task makes it for all who wait."""
        if self._closed:
            raise StoreUnavailable("the store's client is closed")
        if self._connection is not None and self._connection.usable:
            return self._connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(_retrieve)  # all who waited may have been cancelled
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        at = self._endpoint

        def protocol() -> _Connection:
            return _Connection(self._time_limit)

        async with asyncio.timeout(self._time_limit):
            if at.path is not None:
                _, connection = await loop.create_unix_connection(protocol, at.path)
            else:
                _, connection = await loop.create_connection(protocol, at.host, at.port, ssl=at.ssl)
            loads: list[Command] = [("SCRIPT", "LOAD", script) for script in self._scripts]
            try:
                for reply in await asyncio.gather(*map(connection.send, [*at.greeting(), *loads])):
                    if isinstance(reply, hiredis.ReplyError):
                        if str(reply).startswith(_NOT_YET):
                            raise ConnectionRefusedError(str(reply))
                        raise ServerError(str(reply))
            except _Lost as lost:
                raise ConnectionError(str(lost)) from None
            except BaseException as error:
                connection.close(f"greeting failed: {error}")
                raise
        self._connection = connection
        return connection

    def _unknown_fate(self, lost: _Lost) -> StoreUnavailable:
        return StoreUnavailable(
            f"the store at {self._endpoint} did not answer ({lost}): it is not known whether it wrote"
        )


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
