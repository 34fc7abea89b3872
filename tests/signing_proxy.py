"""A reverse proxy that signs: in front of a runtime that is invoked with SigV4, for clients that cannot sign.

What it passes on is as it came, both ways, but for Host, the signature and the headers it is told to add. Each request
has a connection of its own, so that where replicas take turns it goes to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from yarl import URL

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class SigningProxy:
    """`url` is what clients are given for `target`."""

    def __init__(self, target: str, credentials: Credentials, region: str, headers: Mapping[str, str] | None) -> None:
        self.url = ""
        self.requests: list[tuple[str, int]] = []
        self._target = target
        self._headers = dict(headers or {})
        self._signer = SigV4Auth(credentials, "bedrock-agentcore", region)
        self._http: aiohttp.ClientSession

    async def start(self) -> None:
        self._http = aiohttp.ClientSession(
            auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(None),
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
        )  # fmt: skip
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{tail:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/mcp"

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._http.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        sent = {k: v for k, v in request.headers.items() if k.lower() not in _HOP} | self._headers
        signed = AWSRequest(request.method, self._target, data=body, headers=sent)
        self._signer.add_auth(signed)
        headers = {**sent, **dict(signed.headers.items())}
        async with self._http.request(
            request.method, URL(self._target, encoded=True), data=body or None, headers=headers
        ) as answer:
            self.requests.append((request.method, answer.status))
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP:
                    response.headers.add(name, value)
            try:
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
            except (aiohttp.ClientPayloadError, ConnectionError):
                if request.transport is not None:
                    request.transport.abort()
            return response


@asynccontextmanager
async def signing_proxy(
    target: str, credentials: Any, region: str, headers: Mapping[str, str] | None = None
) -> AsyncIterator[SigningProxy]:
    proxy = SigningProxy(target, credentials, region, headers)
    await proxy.start()
    try:
        yield proxy
    finally:
        await asyncio.shield(proxy.stop())
