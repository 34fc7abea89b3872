"""A request's body, taken in as a whole before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from agentkeep.core.errors import ValidationException
from agentkeep.service.asgi import Message, Receive, pieces
from agentkeep.service.spool import Spool, Spools

__all__ = ["Body", "read_body"]

_IN_MEMORY = 1 << 20


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
    try:
        async for data in pieces(receive):
            body.add(data)
            if body.size > limit:
                raise _too_large(limit)
    except BaseException:
        body.close()
        raise
    return body


def _too_large(limit: int) -> ValidationException:
    return ValidationException(f"The request's body is larger than {limit} bytes", "CannotParse")
