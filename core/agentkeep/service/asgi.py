"""ASGI's types, and the two ends of the chain: a body taken in, an answer handed out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from hashlib import sha256
from typing import Any, TypeAlias

from agentkeep.core.errors import ValidationException
from agentkeep.service.spool import Spool, Spools
from agentkeep.wire import Response

__all__ = ["App", "Body", "ClientLeft", "Message", "Receive", "Scope", "Send", "read_body", "send_response"]

logger = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_IN_MEMORY = 1 << 20


class ClientLeft(Exception):
    """Before its request was complete: there is nobody to answer."""


class Body:
    """A request's body and its digest. With `spools`, what is larger than a megabyte waits on disk."""

    def __init__(self, spools: Spools | None) -> None:
        self.size = 0
        self._digest = sha256()
        self._parts: list[bytes] = []
        self._spools = spools
        self._spool: Spool | None = None
        self._replayed = False

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._digest.update(data)
        if self._spool is None and self._spools is not None and self.size > _IN_MEMORY:
            self._spool = self._spools.open()
            for part in self._parts:
                self._spool.write(part)
            self._parts.clear()
        if self._spool is not None:
            self._spool.write(data)
        else:
            self._parts.append(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def whole(self) -> bytes:
        """Only of a body made without `spools`."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def replay(self, receive: Receive) -> Receive:
        """The body once more, as ASGI messages; after it, what the connection has to say."""

        async def again() -> Message:
            if self._spool is not None:
                data = self._spool.read()
                more = not self._spool.exhausted
                if not more:
                    self.close()
                    self._replayed = True
                return {"type": "http.request", "body": data, "more_body": more}
            if not self._replayed:
                self._replayed = True
                return {"type": "http.request", "body": self.whole(), "more_body": False}
            return await receive()

        return again

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None


async def read_body(receive: Receive, headers: Mapping[str, str], limit: int, spools: Spools | None = None) -> Body:
    """Raises ValidationException when it is larger than `limit` bytes, ClientLeft."""
    if int(headers.get("content-length", "0")) > limit:
        raise _too_large(limit)
    body = Body(spools)
    more = True
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            body.add(message.get("body", b""))
            if body.size > limit:
                raise _too_large(limit)
            more = message.get("more_body", False)
    except BaseException:
        body.close()
        raise
    return body


def _too_large(limit: int) -> ValidationException:
    return ValidationException(f"The request's body is larger than {limit} bytes", "CannotParse")


async def send_response(response: Response, request_id: str, receive: Receive, send: Send, *, close: bool) -> None:
    """`close`: the connection ends with this answer."""
    headers = [*response.headers, (b"x-amzn-requestid", request_id.encode())]
    if close:
        headers.append((b"connection", b"close"))
    if isinstance(response.body, bytes):
        if response.status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(response.body)))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})
        return
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await _send_stream(response.body, request_id, receive, send)


async def _send_stream(body: AsyncIterator[bytes], request_id: str, receive: Receive, send: Send) -> None:
    """Sends pieces as they come, and stops their source as soon as the client leaves. A source that fails cuts the
    connection: after a status, nothing else tells the truth."""
    leaving = asyncio.ensure_future(_left(receive))
    try:
        async with asyncio.timeout(None) as present:
            loop = asyncio.get_running_loop()
            leaving.add_done_callback(lambda _: None if leaving.cancelled() else present.reschedule(loop.time()))
            async for piece in body:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            leaving.cancel()
    except TimeoutError:
        if not leaving.done():
            logger.exception("the answer to request %s was cut off", request_id)
    except Exception:
        logger.exception("the answer to request %s was cut off", request_id)
    finally:
        leaving.cancel()
        close = getattr(body, "aclose", None)
        if close is not None:
            with contextlib.suppress(Exception):
                await close()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
