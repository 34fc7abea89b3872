"""The little of ASGI that this plane's applications need: a body with a limit, an answer in one piece."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

__all__ = ["BodyTooLarge", "Receive", "Scope", "Send", "body", "header", "respond"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class BodyTooLarge(Exception):
    pass


async def body(receive: Receive, limit: int) -> bytes:
    """The request's body. Raises BodyTooLarge as soon as more than `limit` bytes have come."""
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError("the client is gone")
        data += message.get("body", b"")
        if len(data) > limit:
            raise BodyTooLarge
        if not message.get("more_body", False):
            return bytes(data)


def header(scope: Scope, name: bytes) -> bytes:
    """One request header, empty where it is not sent. ASGI's names are lower-case."""
    return next((value for key, value in scope["headers"] if key == name), b"")


async def respond(
    send: Send, status: int, content: bytes, content_type: bytes, headers: Mapping[bytes, bytes] | None = None
) -> None:
    fields = [(b"content-type", content_type), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fields, *(headers or {}).items()]})
    await send({"type": "http.response.body", "body": content})
