"""From an operation's output to an answer: status, headers, and a body that is whole or a stream."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from agentkeep.wire.events import EventWriter
from agentkeep.wire.eventstream import CONTENT_TYPE as EVENT_STREAM
from agentkeep.wire.json_writer import JsonWriter
from agentkeep.wire.model import OperationModel
from agentkeep.wire.response import Headers, Response, header_value
from agentkeep.wire.timestamps import http_date

__all__ = ["ResponseWriter"]

_CONTENT_TYPE: Final = b"content-type"
_JSON: Final = b"application/json"
_BYTES: Final = b"application/octet-stream"


class ResponseWriter:
    """Writes the answers of one operation."""

    def __init__(self, operation: OperationModel) -> None:
        shape = operation.output
        members = () if shape is None else tuple(shape.members.values())
        self._status = operation.status
        self._headers = [(m.name, m.wire.lower().encode()) for m in members if m.location == "header"]
        self._status_member = next((m.name for m in members if m.location == "statusCode"), None)
        self._located = frozenset(m.name for m in members if m.location is not None)
        self._payload = None if shape is None else shape.payload
        self._json: JsonWriter | None = None
        self._events: EventWriter | None = None
        if self._payload is None:
            if shape is not None:
                self._json = JsonWriter(shape)
        elif self._payload.shape.event_stream:
            self._events = EventWriter(self._payload.shape, operation)
        elif self._payload.shape.kind != "blob":
            self._json = JsonWriter(self._payload.shape)

    def write(self, output: Mapping[str, Any] | None) -> Response:
        """`output` as the operation returned it; None where it has nothing to say."""
        output = output or {}
        status = self._status
        if self._status_member is not None:
            status = output.get(self._status_member) or status
        headers = self._located_headers(output) if self._headers else []
        payload = self._payload
        if payload is None:
            if status == 204:
                return Response(status, headers, b"")
            if self._located or None in output.values():  # the nulls at the top are many; those below cost more
                output = {k: v for k, v in output.items() if v is not None and k not in self._located}
            body = self._json.write(output) if self._json is not None else b"{}"
            return Response(status, [*headers, (_CONTENT_TYPE, _JSON)], body)
        value = output.get(payload.name)
        if self._events is not None:
            self._default_type(headers, EVENT_STREAM)
            return Response(status, headers, b"" if value is None else self._events.stream(value))
        if self._json is not None:
            self._default_type(headers, _JSON)
            return Response(status, headers, b"" if value is None else self._json.write(value))
        self._default_type(headers, _BYTES)
        return Response(status, headers, b"" if value is None else value)

    def _located_headers(self, output: Mapping[str, Any]) -> Headers:
        headers: Headers = []
        for name, wire in self._headers:
            value = output.get(name)
            if value is None:
                continue
            if isinstance(value, datetime):
                value = http_date(value)
            elif isinstance(value, bool):
                value = "true" if value else "false"
            headers.append((wire, header_value(str(value))))
        return headers

    @staticmethod
    def _default_type(headers: Headers, value: bytes) -> None:
        if not any(name == _CONTENT_TYPE for name, _ in headers):
            headers.append((_CONTENT_TYPE, value))
