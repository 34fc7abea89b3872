"""A head's fields by name, where one may be given more than once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["RepeatedField", "joined"]

#: Mean nothing, or something else, when repeated.
_SINGLE: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"authorization", b"expect"))
#: Of a WebSocket's handshake.
_HANDSHAKE: Final = frozenset((b"upgrade", b"sec-websocket-key", b"sec-websocket-version"))


class RepeatedField(ValueError):
    """A field that may be given once only; its argument is the field's name."""


def joined(headers: Iterable[tuple[bytes, bytes]], handshake: bool) -> dict[bytes, bytes]:
    """Values of one name, joined by commas. `headers`: names in lower case. Raises RepeatedField.

    `handshake`: of a WebSocket. Clients that hand the AgentCore SDK's headers to their library, as its documentation
    does, send the handshake's fields twice, Host as well: the library's own count, which come first.
    """
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in fields:
            fields[name] = value
        elif handshake and (name in _HANDSHAKE or (name == b"host" and value == fields[name])):
            continue
        elif name in _SINGLE:
            raise RepeatedField(name.decode("latin-1"))
        else:
            fields[name] += b"," + value
    return fields
