"""What is served beside the operations: small ASGI applications under a path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agentkeep.core.errors import ValidationException
from agentkeep.service.asgi import App, Message, Receive, Scope, Send

__all__ = ["OPERATORS_MOUNTS", "Access", "AnswerCut", "Mount", "mount_actions"]

#: The mounts for operators, by which policies of roles name what may be done there.
OPERATORS_MOUNTS: Final = (
    "/alerts", "/artifacts", "/audit", "/audit-records", "/catalogue", "/logs", "/memory", "/operator-keys", "/roles",
    "/sessions", "/traces", "/usage",
)  # fmt: skip
_READS: Final = ("GET", "HEAD")


def mount_actions(prefix: str) -> tuple[str, str]:
    """The actions of reading and of writing at an operators' mount: `agentkeep:ReadTraces`, `agentkeep:WriteTraces`."""
    name = "".join(word.capitalize() for word in prefix.strip("/").split("-"))
    return f"agentkeep:Read{name}", f"agentkeep:Write{name}"


class Access(StrEnum):
    """Which listener a mount is on, and who may use it there."""

    PUBLIC = "public"  # the public listener; nobody is asked who he is, unless the application does
    OPERATOR = "operator"  # the public listener, signed with an operator's key, or a role's that may
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

    def action(self, method: str) -> str:
        """What a role's policies call this, where the mount is operators'."""
        reading, writing = mount_actions(self.prefix)
        return reading if method in _READS else writing

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
