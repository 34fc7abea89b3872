"""An error as the runtime's protocol says it (developer guide, "runtime-mcp-protocol-contract", "runtime-a2a-...",
"runtime-agui-..."). HTTP runtimes, and whoever is not known yet, get it as the service model says it.

Whatever the envelope, the header `x-amzn-errortype` names the error. No agent's answer passes with one of its own, so
this tells the platform's answers from an agent's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from agentkeep.core.errors import ServiceError
from agentkeep.runtime.invocations.refusals import McpSessionNotFound
from agentkeep.service.answers import error_answer
from agentkeep.wire.model import OperationModel

__all__ = ["RpcId", "error_envelope", "rpc_id"]

RpcId = str | int | float | None

_MCP: Final[Mapping[str, tuple[int, int]]] = {
    "UnauthorizedException": (-32001, 401),
    "AccessDeniedException": (-32002, 403),
    "ThrottlingException": (-32003, 200),
    "ServiceQuotaExceededException": (-32003, 200),
    "ResourceNotFoundException": (-32004, 200),
    "ConflictException": (-32005, 200),
    "RetryableConflictException": (-32005, 200),
    "ValidationException": (-32006, 200),
    "RuntimeClientError": (-32010, 200),
    "NotAcceptableException": (-32011, 406),
}
_MCP_OTHER: Final = (-32603, 200)
_A2A: Final[Mapping[str, tuple[int, int]]] = {
    "ResourceNotFoundException": (-32051, 404),
    "ValidationException": (-32052, 400),
    "ThrottlingException": (-32053, 429),
    "ServiceQuotaExceededException": (-32053, 429),
    "ConflictException": (-32054, 409),
    "RetryableConflictException": (-32054, 409),
    "RuntimeClientError": (-32055, 424),
    # The contract has no row for it; this status is one that clients try again.
    "ServiceUnavailableException": (-32603, 503),
}
_A2A_OTHER: Final = (-32603, 500)
_AGUI: Final[Mapping[str, tuple[str, int]]] = {
    "UnauthorizedException": ("UNAUTHORIZED", 401),
    "AccessDeniedException": ("ACCESS_DENIED", 403),
    "ThrottlingException": ("RATE_LIMIT_EXCEEDED", 429),
    "ServiceQuotaExceededException": ("SERVICE_QUOTA_EXCEEDED", 429),
    # The contract has no row for it; the status is the model's.
    "ResourceNotFoundException": ("INTERNAL_ERROR", 404),
    "ConflictException": ("SESSION_BUSY", 409),
    "RetryableConflictException": ("SESSION_BUSY", 409),
    "ValidationException": ("VALIDATION_ERROR", 400),
    "RuntimeClientError": ("AGENT_ERROR", 200),
    "ServiceUnavailableException": ("INTERNAL_ERROR", 503),
}
_AGUI_OTHER: Final = ("INTERNAL_ERROR", 500)
#: What A2A clients get without an envelope.
_PLAIN: Final = frozenset({"UnauthorizedException", "AccessDeniedException"})
_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream"

Answer = tuple[int, list[bytes], bytes]


def error_envelope(error: ServiceError, operation: OperationModel, protocol: str, call: RpcId = None) -> Answer:
    """Status, header lines (CRLF included, without framing) and body. `call`: the id of the JSON-RPC request."""
    status, lines, body = error_answer(error, operation)
    code = _code(lines)
    if protocol == "HTTP" or code == "MethodNotAllowedException":
        return status, lines, body
    if protocol == "AGUI":
        name, status = _AGUI.get(code, _AGUI_OTHER)
        event = orjson.dumps({"type": "RUN_ERROR", "message": error.message, "code": name})
        return status, _typed(lines, _EVENTS), b"data: " + event + b"\n\n"
    if protocol == "MCP":
        number, enveloped = _MCP.get(code, _MCP_OTHER)
        # 200 says that the body answers a call. Where that is not known (a notification, a GET, a body too large to
        # be held), only the status can tell the client.
        if enveloped != 200 or (call is not None and not isinstance(error, McpSessionNotFound)):
            status = enveloped
        return status, _typed(lines, _JSON), _rpc_error(call, number, error)
    if code in _PLAIN:
        return status, lines, body
    number, status = _A2A.get(code, _A2A_OTHER)
    return status, _typed(lines, _JSON), _rpc_error(call, number, error)


def rpc_id(body: bytes) -> RpcId:
    """The id of the one JSON-RPC request that `body` is; None if it is something else."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    found = document.get("id") if isinstance(document, dict) else None
    return found if isinstance(found, str | int | float) and not isinstance(found, bool) else None


def _rpc_error(call: RpcId, number: int, error: ServiceError) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": call, "error": {"code": number, "message": error.message}})


def _code(lines: list[bytes]) -> str:
    return next((line[18:-2].decode() for line in lines if line.startswith(b"x-amzn-errortype: ")), "")


def _typed(lines: list[bytes], content_type: bytes) -> list[bytes]:
    kept = [line for line in lines if not line.startswith(b"content-type:")]
    return [b"content-type: %b\r\n" % content_type, *kept]
