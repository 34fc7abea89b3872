"""The serving end of ports: an ASGI application for `POST /ports/<port>/<method>`.

`scope["agentkeep.service"]` is the service that calls, proved by whoever serves this.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import context, propagate
from pydantic import ValidationError

from agentkeep.core.errors import (
    AccessDeniedException,
    AgentkeepError,
    InternalServerException,
    ResourceNotFoundException,
    ValidationException,
)
from agentkeep.service.asgi import ClientLeft, Receive, Scope, Send, path_parts, pieces, respond
from agentkeep.service.ports.catalogue import Port
from agentkeep.service.ports.errors import dump_error, status_of

__all__ = ["ERROR_HEADER", "PREFIX", "PortsApp"]

logger = logging.getLogger(__name__)

PREFIX: Final = b"/ports"
#: On answers that carry one of the platform's errors; without it, a status is somebody else's.
ERROR_HEADER: Final = "x-agentkeep-error"
_MOST_BYTES: Final = 4 << 20


class PortsApp:
    """`served`: the ports of this service, each with the object that has its methods. What a method does is not undone
    when its caller leaves: it ends as it would have."""

    def __init__(self, served: Mapping[Port[Any], object]) -> None:
        self._served = {port.name: (port, target) for port, target in served.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match path_parts(scope, 4):
            case ["ports"] if scope["method"] == "GET":
                await respond(send, 200, {"ports": sorted(self._served)})
                return
            case ["ports", port, method] if scope["method"] == "POST":
                pass
            case _:
                await respond(send, 404, {"message": "POST /ports/{port}/{method}"})
                return
        try:
            answer = await self._call(scope, receive, port, method)
        except ClientLeft:
            return
        except AgentkeepError as error:
            await _refuse(send, error)
        except Exception:
            logger.exception("%s.%s failed, called by %s", port, method, scope["agentkeep.service"])
            await _refuse(send, InternalServerException("A service of the platform failed; its log tells more"))
        else:
            await respond(send, 200, answer)

    async def _call(self, scope: Scope, receive: Receive, port_name: str, method_name: str) -> bytes:
        caller: str = scope["agentkeep.service"]
        if port_name not in self._served or method_name not in (found := self._served[port_name])[0].methods:
            raise ResourceNotFoundException(f"There is no port {port_name}.{method_name} here")
        port, target = found
        if caller not in port.callers.get(method_name, ()):
            logger.warning("the %s service called %s.%s, which is not its to call", caller, port_name, method_name)
            raise AccessDeniedException(f"The {caller} service may not call {port_name}.{method_name}")
        body = bytearray()
        async for piece in pieces(receive):
            body += piece
            if len(body) > _MOST_BYTES:
                raise ValidationException(f"More than {_MOST_BYTES} bytes were sent", "CannotParse")
        method = port.methods[method_name]
        try:
            arguments = method.unpack(bytes(body))
        except ValidationError as error:
            places = ", ".join(".".join(map(str, each["loc"])) for each in error.errors(include_input=False))
            raise ValidationException(f"Arguments of {port_name}.{method_name} are wrong: {places}") from None
        token = context.attach(propagate.extract(_headers(scope)))
        try:
            return method.pack_result(await getattr(target, method_name)(**arguments))
        finally:
            context.detach(token)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def _refuse(send: Send, error: AgentkeepError) -> None:
    await respond(send, status_of(error), dump_error(error), ((ERROR_HEADER.encode(), b"1"),))
