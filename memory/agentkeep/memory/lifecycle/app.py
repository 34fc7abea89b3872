"""Plain HTTP routes for operators, where AgentCore has no operation: erasure, compaction, and what a record is made of.

    POST /memory/erasures             {"actorId", "memoryId"?}; the report, of an erasure under way or ended
    POST /memory/compactions          {"memoryId", "olderThanDays"?, "namespace"?, "strategyId"?, "actorId"?, "model"?,
                                      "dryRun"?, "mostMerges"?, "mostQuestions"?}; the report
    GET  /memory/reports?limit=       the latest of both
    GET  /memory/reports/{id}
    GET  /memory/records/{memory}/{record}    a record and its sources; for keys that act for users

They are mounted behind the service's authentication, which puts the caller into `scope["agentkeep.caller"]`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from agentkeep.core.acting import ActingForUsers
from agentkeep.core.call import Caller, CallerKind
from agentkeep.core.clock import from_epoch_ms
from agentkeep.core.errors import (
    AccessDeniedException,
    FieldError,
    ResourceNotFoundException,
    ValidationException,
)
from agentkeep.memory.lifecycle.actor_erasures import ActorErasures, ErasureReport
from agentkeep.memory.lifecycle.compaction_report import CompactionReport, Wanted
from agentkeep.memory.lifecycle.compactions import Compactions
from agentkeep.memory.lifecycle.provenance import Provenance
from agentkeep.memory.long_term.namespaces import normalised
from agentkeep.memory.memories import Memories
from agentkeep.memory.settings import MemorySettings
from agentkeep.service.asgi import Receive, Scope, Send, path_parts, pieces, respond

__all__ = ["NOT_REMOVED", "LifecycleApp"]

#: What other planes keep of a user, and an erasure of memory leaves: each has its own time.
NOT_REMOVED: Final = (
    "traces of the user's sessions (observability; AGENTKEEP_OBSERVABILITY_SPAN_DAYS)",
    "usage of models, as counts (observability; AGENTKEEP_OBSERVABILITY_USAGE_DAYS)",
    "alerts and audit records that name the user (observability; AGENTKEEP_OBSERVABILITY_ALERT_DAYS, "
    "AGENTKEEP_OBSERVABILITY_AUDIT_DAYS)",
    "the audit trail of tool calls (gateway; AGENTKEEP_GATEWAY_AUDIT_DAYS)",
    "what agents printed in the user's sessions (runtime; AGENTKEEP_RUNTIME_LOG_RETENTION)",
    "sessions that live, with what their agents hold in memory and on disk (runtime; agentkeep stop SESSION)",
    "tokens of the user's in the vault (identity)",
    "client tokens of the last day, which hold ids of events and records (memory; one day)",
    "this report (memory; AGENTKEEP_MEMORY_REPORT_DAYS)",
)
_MOST: Final = 1000
_LARGEST_BODY: Final = 64 * 1024


class _Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)


class _Erase(_Body):
    actor_id: Annotated[str, Field(min_length=1, max_length=255)]
    memory_id: str | None = None


class _Compact(_Body):
    """`model`: empty for none; absent for the deployment's."""

    memory_id: str
    older_than_days: Annotated[int, Field(ge=0, le=36500)] | None = None
    namespace: str | None = None
    strategy_id: str | None = None
    actor_id: str | None = None
    model: str | None = None
    dry_run: bool = False
    most_merges: Annotated[int, Field(ge=1, le=100_000)] = 1000
    most_questions: Annotated[int, Field(ge=0, le=10_000)] = 200


B = TypeVar("B", bound=_Body)


class LifecycleApp:
    """An ASGI application."""

    def __init__(
        self,
        memories: Memories,
        erasures: ActorErasures,
        compactions: Compactions,
        provenance: Provenance,
        acting: ActingForUsers,
        settings: MemorySettings,
    ) -> None:
        self._memories = memories
        self._erasures = erasures
        self._compactions = compactions
        self._provenance = provenance
        self._acting = acting
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller | None = scope.get("agentkeep.caller")
        if caller is None or caller.kind is not CallerKind.OPERATOR:
            raise AccessDeniedException("This is open to operators only")
        match scope["method"], path_parts(scope, 4):
            case "POST", ["memory", "erasures"]:
                answer = await self._erase(caller, await _body(receive, _Erase))
            case "POST", ["memory", "compactions"]:
                answer = await self._compact(caller, await _body(receive, _Compact))
            case "GET", ["memory", "reports"]:
                answer = await self._latest(scope)
            case "GET", ["memory", "reports", report]:
                answer = await self._report(report)
            case "GET", ["memory", "records", memory, record]:
                answer = await self._record(caller, memory, record)
            case _:
                raise ResourceNotFoundException("There is nothing at this path with this method")
        await respond(send, 200, answer)

    async def _erase(self, caller: Caller, body: _Erase) -> dict[str, Any]:
        memory_id = self._memories.id_of(body.memory_id) if body.memory_id is not None else None
        return _erasure(await self._erasures.request(body.actor_id, memory_id, caller.principal))

    async def _compact(self, caller: Caller, body: _Compact) -> dict[str, Any]:
        model = self._settings.compaction_model if body.model is None else body.model
        age = self._settings.compaction_age_days if body.older_than_days is None else body.older_than_days
        try:
            namespace = None if body.namespace is None else normalised(body.namespace)
        except ValueError as error:
            raise ValidationException(f"namespace: {error}", fields=[FieldError("namespace", str(error))]) from None
        wanted = Wanted(
            self._memories.id_of(body.memory_id),
            age,
            namespace,
            body.strategy_id,
            body.actor_id,
            model or None,
            body.dry_run,
            most_merges=body.most_merges,
            most_questions=body.most_questions,
        )
        return _compaction(await self._compactions.request(wanted, caller.principal))

    async def _latest(self, scope: Scope) -> dict[str, Any]:
        text = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("limit", ["50"])[0]
        if not text.isascii() or not text.isdigit() or not 1 <= int(text[:5]) <= _MOST:
            raise ValidationException(f"limit is a number between 1 and {_MOST}")
        limit = int(text)
        reports = [_erasure(one) for one in await self._erasures.latest(limit)]
        reports += [_compaction(one) for one in await self._compactions.latest(limit)]
        return {"reports": sorted(reports, key=lambda one: str(one["requestedAt"]), reverse=True)[:limit]}

    async def _report(self, report: str) -> dict[str, Any]:
        if report.startswith("compaction-"):
            return _compaction(await self._compactions.report(report))
        return _erasure(await self._erasures.report(report))

    async def _record(self, caller: Caller, memory: str, record_id: str) -> dict[str, Any]:
        memory_id = self._memories.id_of(memory)
        record = await self._provenance.find(memory_id, record_id)
        # Also where there is none: who may not look learns nothing, not even whose it is.
        owner = record.owner if record is not None else None
        owner = owner if caller.acts_for(owner) else None
        await self._acting.admit(caller, "GetMemoryRecord", f"memory {memory_id}", owner)
        if record is None:
            raise ResourceNotFoundException(f"Memory record not found: {record_id}")
        return {
            "memoryRecordId": record.id,
            "memoryId": memory_id,
            "actorId": record.owner,
            "namespace": record.namespace,
            "memoryStrategyId": record.strategy_id,
            "text": record.text,
            "timestamp": record.timestamp,
            "createdAt": from_epoch_ms(record.created_ms),
            "expiresAt": _moment(record.expires_ms),
            "method": record.method,
            "sources": [
                {"sessionId": one.session_id, "eventId": one.event_id, "memoryRecordId": one.record_id}
                for one in record.sources
            ],
        }


def _erasure(report: ErasureReport) -> dict[str, Any]:
    return {
        **_camel(asdict(report)),
        "kind": "erasure",
        "status": "UNDER_WAY" if report.finished_ms is None else "ENDED",
        "requestedAt": from_epoch_ms(report.requested_ms),
        "finishedAt": _moment(report.finished_ms),
        "notRemoved": NOT_REMOVED,
    }


def _compaction(report: CompactionReport) -> dict[str, Any]:
    document = _camel(asdict(report))
    del document["after"]
    return {
        **document,
        "wanted": _camel(asdict(report.wanted)),
        "merges": [_camel(asdict(one)) for one in report.merges],
        "failed": [_camel(asdict(one)) for one in report.failed],
        "kind": "compaction",
        "status": "UNDER_WAY" if report.finished_ms is None else "ENDED",
        "requestedAt": from_epoch_ms(report.requested_ms),
        "finishedAt": _moment(report.finished_ms),
    }


def _camel(members: dict[str, Any]) -> dict[str, Any]:
    return {to_camel(name): value for name, value in members.items() if not name.endswith("_ms")}


def _moment(milliseconds: int | None) -> Any:
    return None if milliseconds is None else from_epoch_ms(milliseconds)


async def _body(receive: Receive, kind: type[B]) -> B:
    """Raises ValidationException."""
    raw = b""
    async for piece in pieces(receive):
        raw += piece
        if len(raw) > _LARGEST_BODY:
            raise ValidationException("The request's body is too large", "CannotParse")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        faults = [FieldError(".".join(map(str, one["loc"])) or "body", one["msg"]) for one in error.errors()]
        raise ValidationException("; ".join(f"{one.name}: {one.message}" for one in faults), fields=faults) from None
