"""The calling end of ports: an object with a port's methods, each of which asks the service that serves it.

Fails closed: a call without an answer raises PlaneUnavailable, never gives one made up. Nothing of what was sent or
received is logged or put into an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast

import aiohttp
from opentelemetry import propagate
from pydantic import ValidationError

from agentkeep.core.errors import InternalServerException, PlaneUnavailable
from agentkeep.service.credentials import ServiceCredentials
from agentkeep.service.ports.catalogue import Port
from agentkeep.service.ports.description import PortMethod
from agentkeep.service.ports.errors import load_error
from agentkeep.service.ports.server import ERROR_HEADER

__all__ = ["Peers"]

logger = logging.getLogger(__name__)

P = TypeVar("P")

_CONNECT_SECONDS: Final = 2.0
#: The other's listener closes idle connections after 65.
_KEPT_SECONDS: Final = 30.0


class _Unanswered(Exception):
    """No connection, or it ended before the answer."""


class Peers:
    """The other services, as this one calls them. `urls`: their internal listeners, by name. `start`, then `close`."""

    def __init__(self, credentials: ServiceCredentials, urls: Mapping[str, str]) -> None:
        self._credentials = credentials
        self._urls = {name: url.rstrip("/") for name, url in urls.items()}
        self._http: aiohttp.ClientSession

    async def start(self) -> None:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(None, connect=_CONNECT_SECONDS),
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.close()

    def port(self, port: Port[P]) -> P:
        """A client of `port`: its methods that wait. Those that do not are answered by caches."""
        methods = {name: self._method(port, method) for name, method in port.methods.items()}
        return cast(P, SimpleNamespace(**methods))

    async def answers(self, service: str) -> bool:
        """Whether `service` serves its ports and knows this one's credentials."""
        try:
            async with self._http.get(f"{self._urls[service]}/ports", headers=self._headers(service)) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    def _headers(self, service: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self._credentials.token(service)}"}

    def _method(self, port: Port[Any], method: PortMethod) -> Callable[..., Awaitable[Any]]:
        path, what = f"/ports/{port.name}/{method.name}", f"{port.name}.{method.name}"
        safe = method.name in port.safe

        async def call(*args: Any, **kwargs: Any) -> Any:
            data = await self._post(port, path, what, method.pack(args, kwargs), safe)
            try:
                return method.unpack_result(data)
            except ValidationError:
                raise InternalServerException(
                    f"The {port.plane} service's answer to {what} is not understood"
                ) from None

        return call

    async def _post(self, port: Port[Any], path: str, what: str, body: bytes, safe: bool) -> bytes:
        service = port.plane
        try:
            async with asyncio.timeout(port.seconds):
                try:
                    status, error, data = await self._once(service, path, body)
                except _Unanswered:
                    if not safe:
                        raise
                    status, error, data = await self._once(service, path, body)
        except TimeoutError:
            logger.error("the %s service did not answer %s within %g s", service, what, port.seconds)
            raise PlaneUnavailable(
                f"The {service} service did not answer within {port.seconds:g} seconds. Try again later"
            ) from None
        except _Unanswered as reason:
            logger.error("the %s service did not answer %s: %s", service, what, reason)
            raise PlaneUnavailable(f"The {service} service cannot be reached now. Try again later") from None
        if status == 200:
            return data
        if error:
            raise load_error(data)
        logger.error("the %s service refused %s with status %d", service, what, status)
        raise PlaneUnavailable(f"The {service} service refused a call of this platform's own. Its log tells more")

    async def _once(self, service: str, path: str, body: bytes) -> tuple[int, bool, bytes]:
        headers = self._headers(service) | {"content-type": "application/json"}
        propagate.inject(headers)
        try:
            async with self._http.post(self._urls[service] + path, data=body, headers=headers) as response:
                return response.status, ERROR_HEADER in response.headers, await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise _Unanswered(type(error).__name__) from None
