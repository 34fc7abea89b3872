"""A gateway's URL: authenticates a request, takes its body in, and hands it to the MCP server.

    POST {public_url}/gateways/{gatewayId}/mcp                      and POST http://{gatewayId}.gateway.<any>/mcp
    GET  {public_url}/gateways/{gatewayId}/.well-known/oauth-protected-resource           (RFC 9728, unauthenticated)
    GET  {public_url}/.well-known/oauth-protected-resource/gateways/{gatewayId}/mcp

The gateway keeps no MCP sessions and streams nothing, so GET and DELETE are answered 405, as the protocol has it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterable
from typing import Final

import orjson
from mcp.types import INVALID_REQUEST, PARSE_ERROR, UNSUPPORTED_PROTOCOL_VERSION

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import (
    AccessDeniedException,
    InsufficientScope,
    ResourceNotFoundException,
    ServiceError,
    ServiceUnavailableException,
    UnauthorizedException,
)
from agentkeep.gateway.mcp.inbound import Inbound, InboundAuthentication, Proposed
from agentkeep.gateway.mcp.server import INBOUND, McpServer, supported_versions
from agentkeep.gateway.records import Resources
from agentkeep.service.asgi import ClientLeft, Message, Receive, Scope, Send, pieces, respond
from agentkeep.service.protected_resources import advertised_scopes, challenge, metadata
from agentkeep.service.request_id import new_request_id

__all__ = ["PLACE", "GatewayEndpoint"]

logger = logging.getLogger(__name__)

_ID: Final = rb"[0-9a-z](?:-?[0-9a-z]){10,110}"
_METADATA: Final = rb"\.well-known/oauth-protected-resource"
#: Host and path of everything served here.
PLACE: Final = re.compile(
    rb"(?P<base>[^/]*/gateways/(?P<id>%b))/(?:mcp|(?P<metadata>%b))"
    rb"|(?P<host>(?P<host_id>%b)\.gateway\.[^/]+)/(?:mcp|(?P<host_metadata>%b(?:/mcp)?))"
    rb"|[^/]*/%b/gateways/(?P<root_id>%b)/mcp" % (_ID, _METADATA, _ID, _METADATA, _METADATA, _ID)
)
_MOST_DEPTH: Final = 64
#: JSON-RPC's codes, as AgentCore gives them.
_CODES: Final[dict[type[ServiceError], int]] = {
    UnauthorizedException: -32001,
    AccessDeniedException: -32002,
    ResourceNotFoundException: -32004,
    ServiceUnavailableException: -32603,
}


class GatewayEndpoint:
    """The ASGI application of every gateway. `most_bytes`: of a request."""

    def __init__(
        self,
        server: McpServer,
        authentication: InboundAuthentication,
        resources: Resources,
        *,
        public_url: str,
        most_bytes: int,
    ) -> None:
        self._server = server
        self._authentication = authentication
        self._resources = resources
        self._public_url = public_url.rstrip("/")
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            headers[name] = value if name not in headers else headers[name] + b"," + value
        host = headers.get(b"host", b"")
        found = PLACE.fullmatch(host + scope["raw_path"])
        if found is None:
            await _refuse(send, 404, INVALID_REQUEST, "There is nothing at this path")
            return
        gateway_id = next(part for part in (found["id"], found["host_id"], found["root_id"]) if part).decode()
        base = f"{self._public_url}/gateways/{gateway_id}"
        if found["host"]:
            base = f"{scope.get('scheme', 'http')}://{host.decode('latin-1')}"
        if found["metadata"] or found["host_metadata"] or found["root_id"]:
            await self._metadata(scope["method"], gateway_id, base, send)
            return
        session: SessionRef | None = scope.get("agentkeep.session")
        request_id = new_request_id()
        send = _naming(send, request_id)
        request = Proposed(
            gateway_id, scope["method"].encode(), scope["raw_path"], scope["query_string"], headers, session,
            request_id,
        )  # fmt: skip
        try:
            claimed = await self._authentication.identify(request)
            body = await self._body(request, receive)
            if body is None:
                await _refuse(send, 413, INVALID_REQUEST, f"The request is larger than {self._most_bytes} bytes")
                return
            inbound = await self._authentication.prove(request, claimed, hashlib.sha256(body).hexdigest())
        except UnauthorizedException as error:
            await _refuse(send, 401, -32001, error.message, await self._challenge(gateway_id, base))
            return
        except InsufficientScope as error:
            told = await self._challenge(gateway_id, base, "insufficient_scope")
            await _refuse(send, 403, -32002, error.message, told)
            return
        except ServiceError as error:
            await _refuse(send, error.status, _CODES.get(type(error), -32603), error.message)
            return
        except ClientLeft:
            return
        await self._serve(inbound, scope, body, receive, send, headers.get(b"mcp-protocol-version"))

    async def _body(self, request: Proposed, receive: Receive) -> bytes | None:
        """None where it is too large."""
        if int(request.headers.get(b"content-length", b"0")) > self._most_bytes:
            return None
        body = bytearray()
        async for piece in pieces(receive):
            body += piece
            if len(body) > self._most_bytes:
                return None
        return bytes(body)

    async def _metadata(self, method: str, gateway_id: str, base: str, send: Send) -> None:
        gateway = await self._resources.gateway(gateway_id)
        if method != "GET" or gateway is None or gateway.authorizer_type != "CUSTOM_JWT" or gateway.authorizer is None:
            await respond(send, 404, {"message": "There is no such protected resource"})
            return
        await respond(send, 200, metadata(f"{base}/mcp", gateway.authorizer))

    async def _challenge(self, gateway_id: str, base: str, error: str | None = None) -> list[tuple[bytes, bytes]]:
        """How to get a token (`WWW-Authenticate`). The scopes are those of the document, which anybody may read."""
        gateway = await self._resources.gateway(gateway_id)
        authorizer = gateway.authorizer if gateway is not None and gateway.authorizer_type == "CUSTOM_JWT" else None
        told = challenge(f"{base}/.well-known/oauth-protected-resource", advertised_scopes(authorizer or {}), error)
        return [(b"www-authenticate", told.encode("latin-1", "replace"))]

    async def _serve(
        self, inbound: Inbound, scope: Scope, body: bytes, receive: Receive, send: Send, version: bytes | None
    ) -> None:
        if scope["method"] != "POST":
            await _refuse(send, 405, INVALID_REQUEST, "This gateway is called with POST", [(b"allow", b"POST")])
            return
        try:
            message = orjson.loads(body)
        except orjson.JSONDecodeError:
            await _refuse(send, 400, PARSE_ERROR, "The request must be JSON")
            return
        if _too_deep(message):
            await _refuse(send, 400, INVALID_REQUEST, f"The request is nested deeper than {_MOST_DEPTH} levels")
            return
        supported = supported_versions(inbound.gateway)
        said = None if version is None else version.decode("latin-1")
        if said is not None and said not in supported:
            # In these words newer clients understand which version to fall back to.
            id_ = message.get("id") if isinstance(message, dict) else None
            data = {"supported": list(supported), "requested": said[:64]}
            await _refuse(
                send, 400, UNSUPPORTED_PROTOCOL_VERSION, f"Unsupported MCP protocol version: {said[:64]}",
                data=data, id_=id_ if isinstance(id_, str | int) else None,
            )  # fmt: skip
            return
        # Written anew, so that what is served is what was looked at: each member once, numbers that JSON can hold.
        await self._hand_over({**scope, INBOUND: inbound}, orjson.dumps(message), receive, send)

    async def _hand_over(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Serves the request, and stops when the client leaves: so does the tool's call."""
        scope["headers"] = [
            (name, b"%d" % len(body) if name == b"content-length" else value)
            for name, value in scope["headers"]
            if name not in (b"transfer-encoding", b"authorization")
        ]
        left = asyncio.Event()
        given = False

        async def replay() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def leaving() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

        handling = asyncio.ensure_future(self._server.app(scope, replay, send))
        watching = asyncio.ensure_future(leaving())
        try:
            await asyncio.wait({handling, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not handling.done():
                handling.cancel()
                await asyncio.wait({handling})
            if not handling.cancelled():
                handling.result()
        finally:
            watching.cancel()
            handling.cancel()


def _naming(send: Send, request_id: str) -> Send:
    """Says in the answer under which id the request is in the audit trail."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"x-amzn-requestid", request_id.encode())]}
        await send(message)

    return named


def _too_deep(message: object) -> bool:
    level: list[object] = [message]
    for _ in range(_MOST_DEPTH):
        level = [child for part in level for child in _children(part)]
        if not level:
            return False
    return True


def _children(part: object) -> Iterable[object]:
    if isinstance(part, dict):
        return part.values()
    return part if isinstance(part, list) else ()


async def _refuse(
    send: Send,
    status: int,
    code: int,
    message: str,
    headers: Iterable[tuple[bytes, bytes]] = (),
    *,
    data: object = None,
    id_: str | int | None = 0,
) -> None:
    error: dict[str, object] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    await respond(send, status, {"jsonrpc": "2.0", "id": id_, "error": error}, headers)
