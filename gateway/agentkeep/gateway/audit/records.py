"""What the audit trail says of one tool call: first what is about to be done, then what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import orjson

from agentkeep.core.call import Caller
from agentkeep.gateway.catalogue.entries import AuditLevel, CatalogueEntry

__all__ = ["Intent", "Outcome", "Status", "digest"]


_MOST_NAMES: Final = 100
_LONGEST_NAME: Final = 128


class Status(StrEnum):
    REFUSED = "REFUSED"  # nothing was done
    SUCCEEDED = "SUCCEEDED"
    TOOL_ERROR = "TOOL_ERROR"  # the tool ran and said that it failed
    FAILED = "FAILED"  # the target could not be called, or did not answer as it must
    TIMED_OUT = "TIMED_OUT"
    CANCELLED = "CANCELLED"  # the caller left
    UNKNOWN = "UNKNOWN"  # no outcome was written: still under way, or the gateway ended in the middle


def digest(document: bytes) -> str:
    return "sha256:" + hashlib.sha256(document).hexdigest()


@dataclass(frozen=True, slots=True)
class Intent:
    """Who means to do what. `entry` None: there is no such tool. `decision`: the policies', None where it was refused
    before they were asked."""

    call_id: str
    request_id: str
    trace_id: str | None
    at: datetime
    gateway_id: str
    tool: str
    caller: Caller
    arguments: Mapping[str, Any]
    entry: CatalogueEntry | None
    allowed: bool | None
    reason: str
    policies: Sequence[str]

    def document(self, most_bytes: int) -> dict[str, Any]:
        """As it is kept. `most_bytes`: of the arguments; what is more is told by its digest."""
        caller, entry = self.caller, self.entry
        said: dict[str, Any] = {
            "callId": self.call_id,
            "requestId": self.request_id,
            "traceId": self.trace_id,
            "at": self.at.isoformat(),
            "gatewayId": self.gateway_id,
            "tool": self.tool,
            "principal": caller.principal,
            "callerKind": caller.kind,
            "user": caller.user.id if caller.user else None,
            "issuer": caller.user.issuer if caller.user else None,
            "agentRuntimeId": caller.session.runtime_id if caller.session else None,
            "sessionId": caller.session.session_id if caller.session else None,
            "riskClass": entry.risk_class if entry else None,
            "auditLevel": entry.audit_level if entry else None,
            "decision": None if self.allowed is None else "ALLOW" if self.allowed else "DENY",
            "reason": self.reason,
            "policies": list(self.policies),
        }
        raw = orjson.dumps(self.arguments)
        full = entry is not None and entry.audit_level is AuditLevel.FULL
        return (
            said | kept("arguments", self.arguments, raw, full, most_bytes) | {"argumentNames": _names(self.arguments)}
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """`result`: the tool's, as the caller gets it; None where there is none. `full`: whether it is kept."""

    status: Status
    milliseconds: float
    error: str | None = None
    result: Mapping[str, Any] | None = None
    full: bool = False

    def document(self, most_bytes: int) -> dict[str, Any]:
        said: dict[str, Any] = {
            "status": self.status,
            "durationMs": round(self.milliseconds, 1),
            "error": self.error,
        }
        if self.result is not None:
            said |= kept("result", self.result, orjson.dumps(self.result), self.full, most_bytes)
        return said


def _names(arguments: Mapping[str, Any]) -> list[str]:
    return [name[:_LONGEST_NAME] for name in sorted(arguments)[:_MOST_NAMES]]


def kept(name: str, document: Any, raw: bytes, full: bool, most_bytes: int) -> dict[str, Any]:
    """What is kept of arguments or a result: their digest and size, and they themselves at audit level full; where they
    are too large their beginning, and that it is no more than that."""
    said: dict[str, Any] = {f"{name}Digest": digest(raw), f"{name}Bytes": len(raw)}
    if full and len(raw) <= most_bytes:
        said[name] = document
    elif full:
        said[f"{name}Beginning"] = raw[:most_bytes].decode("utf-8", "replace")
    return said
