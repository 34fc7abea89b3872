"""Heads, made anew in both directions: what an agent is told of a request, and a client of the agent's answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agentkeep.core.errors import RuntimeClientError
from agentkeep.runtime.invocations.headers import SESSION_HEADER
from agentkeep.runtime.pump.agent import Fields
from agentkeep.runtime.pump.forward import forwarded_head, forwarded_upgrade
from agentkeep.runtime.replicas.forwarding import ForwardedTurn
from agentkeep.runtime.sessions.turn import Turn

__all__ = ["agent_refused", "answer_fields", "invocation_head", "upgrade_answer", "upgrade_head"]

#: What of an agent's answer passes to the client. Framing is our own. Nothing by which a client knows the platform's
#: word (`x-amzn-errortype`), asks for credentials (`www-authenticate`) or keeps any (`set-cookie`).
_PASSED: Final = frozenset(
    (
        b"a2a-extensions",
        b"baggage",
        b"cache-control",
        b"content-encoding",
        b"content-type",
        b"mcp-protocol-version",
        b"mcp-session-id",
        b"traceparent",
        b"tracestate",
        b"x-amzn-trace-id",
    )
)
_WEBSOCKET_PATH: Final = b"/ws"
_WEBSOCKET_TO_AGENT: Final = (
    b"sec-websocket-key",
    b"sec-websocket-version",
    b"sec-websocket-protocol",
    b"sec-websocket-extensions",
    b"origin",
)
_WEBSOCKET_TO_CLIENT: Final = frozenset(
    (b"sec-websocket-accept", b"sec-websocket-protocol", b"sec-websocket-extensions")
)
_SESSION: Final = SESSION_HEADER.encode() + b": "
#: That an error which passed is the agent's, whatever its body says.
_AGENTS_ERROR: Final = b"x-amzn-errortype: RuntimeClientError\r\n"


def invocation_head(turn: Turn, method: str) -> list[bytes]:
    """The agent's request, but for its framing and the empty line."""
    if isinstance(turn, ForwardedTurn):
        return forwarded_head(turn)
    host = b"localhost" if turn.mcp is None else turn.mcp.host.encode()
    out = [method.encode(), b" ", turn.path.encode(), b" HTTP/1.1\r\nhost: ", host, b"\r\n"]
    for name, value in turn.headers:
        out += (name, b": ", value, b"\r\n")
    return out


def answer_fields(turn: Turn, status: int, fields: Fields) -> tuple[list[bytes], int | None]:
    """The client's header lines, and the answer's length if the agent stated it."""
    length = None
    seen = set()
    out = [_SESSION, turn.session_id.encode(), b"\r\n"]
    for name, value in fields:
        if (name in _PASSED or (name == b"allow" and status == 405)) and name not in seen:
            seen.add(name)
            out += (name, b": ", value, b"\r\n")
        elif name == b"content-length":
            length = int(value)
    if b"traceparent" not in seen:  # on which trace the turn is, unless the agent says it
        for name, value in turn.span.headers:
            if name not in seen:
                out += (name, b": ", value, b"\r\n")
    mcp = turn.mcp
    if mcp is None:
        if b"content-type" not in seen:
            out.append(b"content-type: application/json\r\n")
    elif status >= 400:
        out.append(_AGENTS_ERROR)
    elif b"mcp-session-id" not in seen:
        out += (b"mcp-session-id: ", mcp.session_id.encode(), b"\r\n")
    return out, length


def upgrade_head(turn: Turn, sent: Mapping[bytes, bytes]) -> bytes:
    """The agent's WebSocket upgrade, for a client that sent these headers."""
    if isinstance(turn, ForwardedTurn):
        return forwarded_upgrade(turn)
    out = [b"GET ", _WEBSOCKET_PATH, b" HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"]
    for name, value in turn.headers:
        out += (name, b": ", value, b"\r\n")
    for name in _WEBSOCKET_TO_AGENT:
        value_sent = sent.get(name)
        if value_sent is not None:
            out += (name, b": ", value_sent, b"\r\n")
    out.append(b"\r\n")
    return b"".join(out)


def upgrade_answer(request_id: str, session_id: str, fields: Fields) -> bytes:
    """The client's 101, for an agent that answered with these."""
    out = [b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nx-amzn-requestid: "]
    out += (request_id.encode(), b"\r\n", _SESSION, session_id.encode(), b"\r\n")
    for name, value in fields:
        if name in _WEBSOCKET_TO_CLIENT:
            out += (name, b": ", value, b"\r\n")
    out.append(b"\r\n")
    return b"".join(out)


def agent_refused(status: int) -> RuntimeClientError:
    """AgentCore's words for an agent that answers with an error."""
    return RuntimeClientError(
        f"Received error ({status}) from runtime. Please check your CloudWatch logs for more information"
    )
