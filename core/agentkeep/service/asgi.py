"""The ASGI there is here: its types, and what every application on a mount needs of a request and an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import unquote

import orjson

from agentkeep.core.errors import ServiceError, StoreUnavailable

__all__ = [
    "App", "ClientLeft", "Message", "Receive", "Scope", "Send", "answered", "header", "path_parts", "pieces", "respond",
]  # fmt: skip

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClientLeft(Exception):
    """Before its request was complete: there is nobody to answer."""


def header(scope: Scope, name: bytes) -> bytes:
    """One request header, empty where it is not sent. ASGI's names are lower-case."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def path_parts(scope: Scope, most: int) -> list[str]:
    """The path's segments, decoded one by one, so that an encoded slash is no separator. The last takes the rest."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return [unquote(part) for part in raw.decode("latin-1").lstrip("/").split("/", most - 1)]


async def pieces(receive: Receive) -> AsyncIterator[bytes]:
    """The request's body as it comes. Raises ClientLeft."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        if data := message.get("body"):
            yield data
        more = message.get("more_body", False)


async def respond(
    send: Send,
    status: int,
    content: object,
    headers: Iterable[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/json",
) -> None:
    """An answer in one piece. `content`: bytes as they are, anything else as JSON."""
    data = content if isinstance(content, bytes) else orjson.dumps(content)
    fields = [(b"content-type", content_type), (b"content-length", b"%d" % len(data)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": data})


async def answered(send: Send, work: Awaitable[tuple[int, object]]) -> None:
    """Answers with what `work` gives (status, document), or with why it gives nothing, as operators' routes say it."""
    try:
        status, content = await work
    except ServiceError as error:
        status, content = error.status, {"code": error.code, "message": error.message}
    except StoreUnavailable:
        status, content = 503, {"message": "The store does not answer now. Try again later."}
    await respond(send, status, content)
