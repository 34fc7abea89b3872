"""AWS event streams: binary messages of headers and a payload, with checksums.

    total length u32 | headers length u32 | CRC-32 of these eight | headers | payload | CRC-32 of all before

Source: the "Amazon Event Stream" section of the Smithy specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias
from uuid import UUID
from zlib import crc32

__all__ = ["CONTENT_TYPE", "BadEventStream", "EventDecoder", "HeaderValue", "Message", "encode"]

CONTENT_TYPE: Final = b"application/vnd.amazon.eventstream"

HeaderValue: TypeAlias = bool | int | bytes | str | datetime | UUID

_PRELUDE: Final = struct.Struct("!II")
_U32: Final = struct.Struct("!I")
_STRING: Final = 7
_OVERHEAD: Final = 16  # prelude, its checksum, the message's
_MAX_HEADERS: Final = 128 * 1024
_MAX_MESSAGE: Final = 24 * 1024 * 1024


class BadEventStream(ValueError):
    """What was received is no event stream."""


@dataclass(frozen=True, slots=True)
class Message:
    headers: Mapping[str, HeaderValue]
    payload: bytes


def encode(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One message; header values are strings, the only type AWS's JSON services use."""
    fields = bytearray()
    for name, text in headers.items():
        key, value = name.encode(), text.encode()
        fields += struct.pack(f"!B{len(key)}sBH", len(key), key, _STRING, len(value))
        fields += value
    prelude = _PRELUDE.pack(_OVERHEAD + len(fields) + len(payload), len(fields))
    message = b"".join((prelude, _U32.pack(crc32(prelude)), fields, payload))
    return message + _U32.pack(crc32(message))


class EventDecoder:
    """Takes bytes as they come, gives whole messages. Raises BadEventStream."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        self._buffer += data
        while (message := self._next()) is not None:
            yield message

    def finish(self) -> None:
        """The stream ended. Raises if that was inside a message."""
        if self._buffer:
            raise BadEventStream(f"the stream ended inside a message ({len(self._buffer)} bytes of it came)")

    def _next(self) -> Message | None:
        buffer = self._buffer
        if len(buffer) < 12:
            return None
        total, header_length = _PRELUDE.unpack_from(buffer)
        if crc32(buffer[:8]) != _U32.unpack_from(buffer, 8)[0]:
            raise BadEventStream("checksum of a prelude is wrong")
        if header_length > _MAX_HEADERS or not _OVERHEAD + header_length <= total <= _MAX_MESSAGE:
            raise BadEventStream(f"impossible lengths: {total} bytes, {header_length} of headers")
        if len(buffer) < total:
            return None
        message = bytes(buffer[:total])
        del buffer[:total]
        if crc32(message[:-4]) != _U32.unpack_from(message, total - 4)[0]:
            raise BadEventStream("checksum of a message is wrong")
        try:
            headers = dict(_headers(message[12 : 12 + header_length]))
        except (struct.error, IndexError, ValueError, OverflowError, OSError) as error:
            raise BadEventStream(f"headers of a message are malformed: {error}") from None
        return Message(headers, message[12 + header_length : -4])


def _headers(data: bytes) -> Iterator[tuple[str, HeaderValue]]:
    at = 0
    while at < len(data):
        length = data[at]
        name = data[at + 1 : at + 1 + length].decode()
        at += 1 + length
        value, at = _value(data[at], data, at + 1)
        yield name, value


_FIXED: Final = {2: struct.Struct("!b"), 3: struct.Struct("!h"), 4: struct.Struct("!i"), 5: struct.Struct("!q")}
_U16: Final = struct.Struct("!H")


def _value(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind in (0, 1):
        return kind == 0, at
    if kind in _FIXED:
        return _FIXED[kind].unpack_from(data, at)[0], at + _FIXED[kind].size
    if kind in (6, _STRING):
        (length,) = _U16.unpack_from(data, at)
        value = data[at + 2 : at + 2 + length]
        if len(value) != length:
            raise IndexError("a header is cut short")
        return (value if kind == 6 else value.decode()), at + 2 + length
    if kind == 8:
        (ms,) = _FIXED[5].unpack_from(data, at)
        return datetime.fromtimestamp(ms / 1000, UTC), at + 8
    if kind == 9:
        return UUID(bytes=data[at : at + 16]), at + 16
    raise IndexError(f"header type {kind} is unknown")
