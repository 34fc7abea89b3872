"""From an HTTP request to an operation's input: where each member travels, and what the body holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import orjson

from agentkeep.wire.faults import ROOT, Faults, cannot_parse
from agentkeep.wire.model import Member, OperationModel
from agentkeep.wire.parser import Parse, ShapeParsers, from_text

__all__ = ["MAX_DEPTH", "RequestParser", "unquote"]

#: How deep JSON may nest. orjson writes 254 levels; answers wrap what was received a few levels deeper.
MAX_DEPTH: Final = 128


def unquote(text: bytes) -> str | None:
    """Percent-decoded; None where that is not UTF-8. A `%` that encodes nothing stands for itself."""
    try:
        return (unquote_to_bytes(text) if b"%" in text else text).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        cannot_parse(f"The request body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})")
    if type(value) is not dict:
        cannot_parse("The request body must be a JSON object")
    # Counting brackets is much cheaper than walking; strings can only add to the count.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _too_deep(value):
        cannot_parse(f"The request body is nested more than {MAX_DEPTH} levels deep")
    return value


def _query(query: bytes) -> dict[str, list[bytes]]:
    """Values still encoded, by decoded name. A plus sign is a plus sign, as it is when signed."""
    found: dict[str, list[bytes]] = {}
    for pair in query.split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            key = unquote(name)
            if key is not None:
                found.setdefault(key, []).append(value)
    return found


class RequestParser:
    """Parses requests of one operation. Raises ValidationException."""

    def __init__(self, operation: OperationModel, parsers: ShapeParsers) -> None:
        shape = operation.input
        members = () if shape is None else tuple(shape.members.values())
        self._labels = self._at("uri", members, parsers)
        self._headers = [(m, m.wire.lower(), parse) for m, parse in self._at("header", members, parsers)]
        self._query = self._at("querystring", members, parsers)
        self._payload = None if shape is None else shape.payload
        self._body: Parse | None = None
        if self._payload is not None:
            if self._payload.shape.kind != "blob":
                self._body = parsers.of(self._payload.shape)
        elif shape is not None and any(m.location is None for m in members):
            self._body = parsers.of(shape)
        self.raw_payload = self._payload is not None and self._payload.shape.kind == "blob"

    @staticmethod
    def _at(location: str, members: tuple[Member, ...], parsers: ShapeParsers) -> list[tuple[Member, Parse | None]]:
        return [(m, parsers.of(m.shape)) for m in members if m.location == location]

    def parse(self, labels: Mapping[str, str], query: bytes, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """`labels` by their names in the path's template, decoded; `query` raw; `headers` with lower-case names."""
        faults = Faults()
        request = self._parse_body(body, faults)
        for member, parse in self._labels:
            self._set(request, member, parse, labels.get(member.wire), faults)
        if self._headers:
            for member, name, parse in self._headers:
                self._set(request, member, parse, headers.get(name), faults)
        if self._query:
            given = _query(query) if query else {}
            for member, parse in self._query:
                self._set_query(request, member, parse, given.get(member.wire), faults)
        if faults:
            faults.check()
        return request

    def _parse_body(self, body: bytes, faults: Faults) -> dict[str, Any]:
        payload = self._payload
        if payload is None:
            if self._body is None:
                return {}
            parsed = self._body(_json(body) if body else {}, ROOT, faults)
            return parsed if type(parsed) is dict else {}
        if self.raw_payload:
            high = payload.shape.high
            if high is not None and len(body) > high:
                faults.add((ROOT, payload.name), b"", f"Member must have length less than or equal to {high}")
            return {payload.name: body} if body or payload.required else {}
        if not body:
            if payload.required:
                faults.missing((ROOT, payload.name))
            return {}
        value = _json(body)
        return {payload.name: value if self._body is None else self._body(value, (ROOT, payload.name), faults)}

    @staticmethod
    def _set(request: dict[str, Any], member: Member, parse: Parse | None, text: str | None, faults: Faults) -> None:
        if text is None:
            if member.required:
                faults.missing((ROOT, member.name))
            return
        value = from_text(member.shape, text)
        request[member.name] = value if parse is None else parse(value, (ROOT, member.name), faults)

    def _set_query(
        self, request: dict[str, Any], member: Member, parse: Parse | None, raw: list[bytes] | None, faults: Faults
    ) -> None:
        if raw is None:
            self._set(request, member, parse, None, faults)
            return
        texts = [unquote(value) for value in raw]
        if None in texts:
            faults.add((ROOT, member.name), "", "Member must be percent-encoded UTF-8")
        elif member.shape.kind == "list":
            values = [from_text(member.shape.item, text) for text in texts if text is not None]
            request[member.name] = values if parse is None else parse(values, (ROOT, member.name), faults)
        elif len(texts) > 1:
            faults.add((ROOT, member.name), "", "Member must be given once")
        else:
            self._set(request, member, parse, texts[0], faults)
