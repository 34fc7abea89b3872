"""What the plane's few plain HTTP routes share: ASGI's types, and answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote

import orjson

__all__ = ["Receive", "Scope", "Send", "body", "path_parts", "respond"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def respond(
    send: Send,
    status: int,
    content: object,
    headers: Iterable[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/json",
) -> None:
    """`content`: bytes as they are, anything else as JSON."""
    data = content if isinstance(content, bytes) else orjson.dumps(content)
    fields = [(b"content-type", content_type), (b"content-length", str(len(data)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": data})


async def body(receive: Receive) -> AsyncIterator[bytes]:
    """The request's body in pieces. Raises ConnectionError if the client leaves before its end."""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError("the client has left")
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return


def path_parts(scope: Scope, most: int) -> list[str]:
    """The path's segments, decoded one by one, so that an encoded slash is no separator. The last takes the rest."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return [unquote(part) for part in raw.decode("latin-1").lstrip("/").split("/", most - 1)]
