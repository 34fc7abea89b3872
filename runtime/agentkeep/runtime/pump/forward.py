"""Heads of what is handed on to another replica, and of its answers: as they came, but for what is of one connection
only (RFC 9110, 7.6.1)."""

from __future__ import annotations

from typing import Final

from agentkeep.runtime.pump.agent import Fields
from agentkeep.runtime.replicas.forwarding import ForwardedTurn

__all__ = ["forwarded_answer", "forwarded_head", "forwarded_upgrade"]

_HOP: Final = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
#: This connection's own answer says its own.
_NOT_ANSWERED: Final = _HOP | {b"date", b"x-amzn-requestid"}


def forwarded_head(turn: ForwardedTurn) -> list[bytes]:
    """But for its framing and the empty line."""
    head = turn.head
    target = head.path + b"?" + head.query if head.query else head.path
    out = [head.method, b" ", target, b" HTTP/1.1\r\n"]
    own = {name for name, _ in turn.headers}
    dropped = _HOP | own | {token.strip().lower() for token in head.headers.get(b"connection", b"").split(b",")}
    for name, value in head.headers.items():
        if name not in dropped:
            out += (name, b": ", value, b"\r\n")
    for name, value in turn.headers:
        out += (name, b": ", value, b"\r\n")
    return out


def forwarded_upgrade(turn: ForwardedTurn) -> bytes:
    return b"".join([*forwarded_head(turn), b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n"])


def forwarded_answer(fields: Fields) -> tuple[str | None, list[bytes], int | None]:
    """The request id by which the other replica knows the request, the client's header lines, and the answer's length
    if it was stated."""
    request_id, length = None, None
    out: list[bytes] = []
    for name, value in fields:
        if name not in _NOT_ANSWERED:
            out += (name, b": ", value, b"\r\n")
        elif name == b"content-length":
            length = int(value)
        elif name == b"x-amzn-requestid":
            request_id = value.decode("latin-1")
    return request_id, out, length
