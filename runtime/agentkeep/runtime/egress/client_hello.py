"""The name for which a TLS client asks, read from the first thing it sends (ClientHello; RFC 8446, RFC 6066).

A server may have many names, and which one is meant is said here: not by the address. So what was allowed to one name
must be asked in that name.
"""

from __future__ import annotations

from typing import Final

__all__ = ["UNRECOGNIZED_NAME", "BadHello", "read_client_hello"]

#: What a client is told whose name is refused: the fatal alert of RFC 6066.
UNRECOGNIZED_NAME: Final = bytes((21, 3, 3, 0, 2, 2, 112))

_LARGEST: Final = 1 << 16
_HANDSHAKE: Final = 22
_LARGEST_RECORD: Final = 1 << 14
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
#: Encrypted Client Hello and its forerunner: the name in clear is then not the one that is meant.
_ENCRYPTED: Final = (0xFE0D, 0xFFCE)


class BadHello(ValueError):
    """It is not the ClientHello of a client that says in clear whom it wants."""


def read_client_hello(sent: bytes | bytearray) -> tuple[bool, str | None]:
    """Whether all of it is there, and then the name in it, in lower case; None: it has none. Raises BadHello."""
    message, at = bytearray(), 0
    while at < len(sent):
        if sent[at] != _HANDSHAKE:
            raise BadHello("what comes first is no TLS handshake; only TLS passes")
        if len(sent) < at + 5:
            break
        length = int.from_bytes(sent[at + 3 : at + 5], "big")
        if sent[at + 1] != 3 or not 0 < length <= _LARGEST_RECORD:
            raise BadHello("the first TLS record is malformed")
        message += sent[at + 5 : at + 5 + length]
        at += 5 + length
        if message and message[0] != _CLIENT_HELLO:
            raise BadHello("the first TLS message is no ClientHello")
        if len(message) < 4:
            continue
        size = int.from_bytes(message[1:4], "big") + 4
        if size > _LARGEST or len(message) > size:
            raise BadHello("the ClientHello is too large, or not alone in its record")
        if len(message) == size:
            return True, _name(_Reader(bytes(message[4:])))
    if len(sent) > _LARGEST + (_LARGEST >> 4):
        raise BadHello("the ClientHello is too large")
    return False, None


def _name(hello: _Reader) -> str | None:
    hello.take(2 + 32)
    hello.block(1)  # session id
    hello.block(2)  # cipher suites
    hello.block(1)  # compression methods
    if hello.done:
        return None
    extensions = _Reader(hello.block(2))
    hello.end()
    seen: dict[int, bytes] = {}
    while not extensions.done:
        kind = extensions.number(2)
        if kind in seen:
            raise BadHello("the ClientHello says something twice")
        seen[kind] = extensions.block(2)
    if any(kind in seen for kind in _ENCRYPTED):
        raise BadHello("the ClientHello may hide another name (Encrypted Client Hello); only names in clear pass")
    if _SERVER_NAME not in seen:
        return None
    outer = _Reader(seen[_SERVER_NAME])
    names = _Reader(outer.block(2))
    outer.end()
    if names.number(1) != 0:
        raise BadHello("the server name is of an unknown kind")
    name = names.block(2)
    names.end()
    try:
        return name.decode("ascii").lower()
    except UnicodeDecodeError:
        raise BadHello("the server name is not ASCII") from None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise BadHello("the ClientHello ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size_bytes: int) -> bytes:
        return self.take(self.number(size_bytes))

    def end(self) -> None:
        if not self.done:
            raise BadHello("the ClientHello has more in it than it says")
