"""Answers on their way out: the chain's, through ASGI; and errors, for exchanges that frame their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

import orjson

from agentkeep.core.errors import ServiceError
from agentkeep.service.asgi import Receive, Send
from agentkeep.wire import Response
from agentkeep.wire.errors import error_response
from agentkeep.wire.model import OperationModel

__all__ = ["error_answer", "health_response", "send_response"]

logger = logging.getLogger(__name__)


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
    try:
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await _send_stream(response.body, request_id, receive, send)
    finally:
        end = getattr(response.body, "aclose", None)
        if end is not None:
            with contextlib.suppress(Exception):
                await end()


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


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def error_answer(error: ServiceError, operation: OperationModel | None) -> tuple[int, list[bytes], bytes]:
    """Status, header lines (CRLF included, without framing) and body. An error without a code has no error type:
    clients name it by its status."""
    response = error_response(error, operation)
    assert isinstance(response.body, bytes)
    lines = [b"%b: %b\r\n" % (name, value) for name, value in response.headers if value or name != b"x-amzn-errortype"]
    return response.status, lines, response.body


def health_response(missing: Sequence[str]) -> Response:
    """Of /healthz (nothing is ever missing) and /readyz."""
    document = {"status": "NotReady", "missing": missing} if missing else {"status": "Healthy"}
    return Response(503 if missing else 200, [(b"content-type", b"application/json")], orjson.dumps(document))
