"""What is served beside the operations: small ASGI applications under a path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from agentkeep.core.errors import ValidationException
from agentkeep.service.asgi import App, Message, Receive, Scope, Send

__all__ = ["Access", "AnswerCut", "Mount"]


class Access(StrEnum):
    """Which listener a mount is on, and who may use it there."""

    PUBLIC = "public"  # the public listener; nobody is asked who he is, unless the application does
    OPERATOR = "operator"  # the public listener, signed with an operator's key
    SESSION = "session"  # session listeners; the socket says whose session it is, nothing need be signed


@dataclass(frozen=True, slots=True)
class Mount:
    """`app` sees the whole path, and in its scope `agentkeep.session` (SessionRef) or `agentkeep.caller` (Caller).

    An operator's body is proved before `app` begins; large ones wait on disk.

    `place` is for what no prefix describes: it is matched with host and path as sent (`example.org:80/a/b`), whole, and
    goes before every prefix.
    """

    prefix: str
    app: App
    access: Access
    max_body: int = 25_000_000
    place: re.Pattern[bytes] | None = None

    def covers(self, path: bytes, host: bytes = b"") -> bool:
        if self.place is not None:
            return self.place.fullmatch(host + path) is not None
        prefix = self.prefix.encode()
        return path == prefix or path.startswith(prefix if prefix.endswith(b"/") else prefix + b"/")

    async def serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        """Adds the request id to the answer. Raises AnswerCut; and what the application raised before it answered."""
        started = False
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body:
                raise ValidationException(f"The request's body is larger than {self.max_body} bytes", "CannotParse")
            return message

        async def named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = list(message.get("headers", ()))
                if all(name.lower() != b"x-amzn-requestid" for name, _ in headers):
                    headers.append((b"x-amzn-requestid", request_id.encode()))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, limited, named)
        except Exception as error:
            if not started:
                raise
            raise AnswerCut from error


class AnswerCut(Exception):
    """A mount failed in the middle of its answer."""
