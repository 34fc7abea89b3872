"""An operation on the wire: what the service chain needs to serve it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from agentkeep.core.errors import ServiceError
from agentkeep.wire.errors import error_response
from agentkeep.wire.model import OperationModel, ServiceModel
from agentkeep.wire.parser import ShapeParsers
from agentkeep.wire.request import RequestParser
from agentkeep.wire.response import Response
from agentkeep.wire.serializer import ResponseWriter

__all__ = ["Operation"]


class Operation:
    """One operation of a service model. Parser and serializer are made at first use: all of them together would take a
    quarter of a second at start."""

    def __init__(self, service: ServiceModel, name: str, parsers: ShapeParsers) -> None:
        self.service = service.name
        self.name = name
        self.signing_name = service.signing_name
        self._service = service
        self._parsers = parsers

    def __repr__(self) -> str:
        return f"<operation {self.service} {self.name}>"

    @cached_property
    def model(self) -> OperationModel:
        return self._service.operation(self.name)

    @cached_property
    def status(self) -> int:
        """The HTTP status of success."""
        return self.model.status

    @cached_property
    def idempotency_member(self) -> str | None:
        """The member that is a client token. A session id, which clients fill in too, is none: it names a resource."""
        members = self.model.input.members.values() if self.model.input is not None else ()
        return next((m.name for m in members if m.idempotency_token and m.location != "header"), None)

    @cached_property
    def streaming_input(self) -> bool:
        """The request's body is a blob, raw: it need not be read whole before the operation starts."""
        return self._parser.raw_payload

    @cached_property
    def _parser(self) -> RequestParser:
        return RequestParser(self.model, self._parsers)

    @cached_property
    def _writer(self) -> ResponseWriter:
        return ResponseWriter(self.model)

    def parse(self, labels: Mapping[str, str], query: bytes, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """The operation's input, checked against the model. `labels` as `Router.find` gave them; `query` raw;
        `headers` with lower-case names. Raises ValidationException, which names all that is wrong."""
        return self._parser.parse(labels, query, headers, body)

    def serialize(self, response: Mapping[str, Any] | None) -> Response:
        return self._writer.write(response)

    def serialize_error(self, error: ServiceError) -> Response:
        """As this operation models it: status and name may differ between operations."""
        return error_response(error, self.model)
