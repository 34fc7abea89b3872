"""Stand-ins for what is outside: a model provider's server with a wire on loopback; and calls to make."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from agentkeep.core.call import Call, Caller, CallerKind, SessionRef, User

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SESSION = SessionRef("support-0123456789", "session-1")


class StandIn:
    """Answers every request with `answer`, and keeps what was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.requests: list[web.Request] = []
        self.answer: Handler = self.nothing

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        body = await request.read()
        self.asked.append(json.loads(body) if body.startswith(b"{") else {"raw": body})
        return await self.answer(request)

    async def nothing(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "no answer set"}, status=500)

    def answers(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.json_response(body, status=status, headers=headers)

        self.answer = answer

    def streams(self, *pieces: bytes, content_type: str, cut: bool = False, hold: float = 0) -> None:
        """`cut`: the connection breaks after the pieces; `hold`: it stays open and silent for so long."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"content-type": content_type})
            await response.prepare(request)
            for piece in pieces:
                await response.write(piece)
            await asyncio.sleep(hold)
            if cut:
                assert request.transport is not None
                request.transport.abort()
            return response

        self.answer = answer


def event(name: str, payload: bytes, *, exception: bool = False) -> bytes:
    """A frame of an AWS event stream."""
    kind = "exception" if exception else "event"
    headers = b""
    for key, value in ((f":{kind}-type", name), (":content-type", "application/json"), (":message-type", kind)):
        headers += bytes([len(key)]) + key.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    prelude += struct.pack(">I", binascii.crc32(prelude))
    message = prelude + headers + payload
    return message + struct.pack(">I", binascii.crc32(message))


def chunk(document: dict[str, Any]) -> bytes:
    """A chunk of InvokeModelWithResponseStream."""
    inner = base64.b64encode(json.dumps(document).encode()).decode()
    return event("chunk", json.dumps({"bytes": inner}).encode())


def call(operation: str = "Converse", *, kind: CallerKind = CallerKind.SESSION) -> Call:
    in_session = kind is CallerKind.SESSION
    caller = Caller(
        kind,
        "arn:aws:sts::000000000000:assumed-role/x/y",
        user=User("alice") if in_session else None,
        session=SESSION if in_session else None,
    )
    return Call("bedrock-runtime", operation, caller, request_id=f"request-{operation}")


def says(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"text": text}]}
