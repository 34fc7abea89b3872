"""HTTP to targets, of which nothing is trusted: neither where their names lead, nor what and how much they answer.

A connection is one call's and never another's, so that nothing a target ties to a connection can mix two users.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping

import httpx2

from agentkeep.core.telemetry import current_span, traceparent
from agentkeep.gateway.targets.addresses import AllowedAddresses
from agentkeep.gateway.targets.errors import TargetFailed

__all__ = ["TargetWire"]


class TargetWire:
    """`most_bytes`: of one answer. `connect_seconds`: to connect; the whole of a call is its caller's to limit."""

    def __init__(self, allowed: AllowedAddresses, *, most_bytes: int, connect_seconds: float = 10.0) -> None:
        self.allowed = allowed
        self.most_bytes = most_bytes
        self._tls = httpx2.create_ssl_context()
        self._timeout = httpx2.Timeout(None, connect=connect_seconds)
        # It logs each URL at INFO, in which a target's API key may be (QUERY_PARAMETER).
        logging.getLogger("httpx2").setLevel(logging.WARNING)

    def client(self, headers: Mapping[str, str]) -> httpx2.AsyncClient:
        """For one call. No proxies, no netrc, no redirects, no compression (an answer's size is what is sent). The
        target is told which trace it is part of."""
        span = current_span()
        traced = {} if span is None else {"traceparent": traceparent(span)}
        return httpx2.AsyncClient(
            transport=_GuardedTransport(self.allowed, self.most_bytes, httpx2.AsyncHTTPTransport(verify=self._tls)),
            headers={"user-agent": "agentkeep-gateway", **traced, **headers, "accept-encoding": "identity"},
            timeout=self._timeout,
            follow_redirects=False,
            max_redirects=0,
            trust_env=False,
        )


class _GuardedTransport(httpx2.AsyncBaseTransport):
    """Connects to addresses that were looked at, not to names: what a name leads to may change in between."""

    def __init__(self, allowed: AllowedAddresses, most_bytes: int, inner: httpx2.AsyncHTTPTransport) -> None:
        self._allowed = allowed
        self._most_bytes = most_bytes
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.host
        encrypted = request.url.scheme == "https"
        port = request.url.port or (443 if encrypted else 80)
        address = await self._allowed.resolve(host, port, encrypted=encrypted)
        pinned = httpx2.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,  # with the name, in Host
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )
        response = await self._inner.handle_async_request(pinned)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, self._most_bytes)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            await response.aclose()
            raise TargetFailed(f"the target's answer is encoded as {encoding!r}, which was not asked for")
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self._stream = stream
        self._left = most
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            self._left -= len(piece)
            if self._left < 0:
                raise TargetFailed(f"the target's answer is larger than {self._most} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
