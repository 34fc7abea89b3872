"""The domain's values in the service model's shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, cast

from agentkeep.core.clock import from_epoch_ms
from agentkeep.memory.long_term.record import METHOD_KEY, SPEAKER_KEY, WITHOUT_STRATEGY, Record
from agentkeep.memory.long_term.records import Outcome
from agentkeep.memory.memories import Memory
from agentkeep.memory.partition import ActorPartition
from agentkeep.memory.short_term.event import Event
from agentkeep.memory.strategies import Strategy
from agentkeep.storage.search import Value
from agentkeep.wire.types import bedrock_agentcore as data
from agentkeep.wire.types import bedrock_agentcore_control as control

__all__ = [
    "event_shape",
    "memory_shape",
    "memory_summary_shape",
    "outcome_shapes",
    "record_shape",
    "record_summary_shape",
]

#: The service's limit of a record's metadata.
_MOST_METADATA: Final = 20


def event_shape(event: Event, actor: ActorPartition) -> data.Event:
    shape: data.Event = {
        "memoryId": actor.memory_id,
        "actorId": actor.actor_id,
        "sessionId": event.session_id,
        "eventId": event.id,
        "eventTimestamp": event.timestamp,
        "payload": cast(list[data.PayloadType], event.payload),
    }
    if event.branch is not None:
        shape["branch"] = cast(data.Branch, event.branch)
    if event.metadata:
        shape["metadata"] = {key: {"stringValue": value} for key, value in event.metadata.items()}
    return shape


def record_shape(record: Record) -> data.MemoryRecord:
    shape = cast(data.MemoryRecord, record_summary_shape(record))
    if record.expires_ms is not None:
        shape["expiresAt"] = from_epoch_ms(record.expires_ms)
    return shape


def record_summary_shape(record: Record, score: float | None = None) -> data.MemoryRecordSummary:
    shape: data.MemoryRecordSummary = {
        "memoryRecordId": record.id,
        "content": {"text": record.text},
        "memoryStrategyId": record.strategy_id or WITHOUT_STRATEGY,
        "namespaces": [record.namespace] if record.namespace is not None else [],
        "createdAt": from_epoch_ms(record.created_ms),
        "timestamp": record.timestamp,
    }
    if score is not None:
        shape["score"] = score
    metadata = {**record.metadata, **_making(record)}
    if metadata:
        shape["metadata"] = _metadata_shape(dict(list(metadata.items())[:_MOST_METADATA]))
    return shape


def _making(record: Record) -> dict[str, Value]:
    """How the platform made a record, and who said what it is, as metadata that nobody else writes. The events it was
    made of are no metadata: their ids have characters that metadata must not have (operators read `Record.sources`)."""
    found: dict[str, Value] = {}
    if record.method is not None:
        found[METHOD_KEY] = record.method
    if record.turn is not None:
        found[SPEAKER_KEY] = record.turn.speaker
    return found


def outcome_shapes(
    outcomes: Sequence[Outcome],
) -> tuple[list[data.MemoryRecordOutput], list[data.MemoryRecordOutput]]:
    """A batch's records that went well, and those that failed."""
    succeeded: list[data.MemoryRecordOutput] = []
    failed: list[data.MemoryRecordOutput] = []
    for outcome in outcomes:
        shape: data.MemoryRecordOutput = {"memoryRecordId": outcome.record_id, "status": "SUCCEEDED"}
        if outcome.request_identifier is not None:
            shape["requestIdentifier"] = outcome.request_identifier
        if outcome.code is None:
            succeeded.append(shape)
        else:
            failed.append(
                {**shape, "status": "FAILED", "errorCode": outcome.code, "errorMessage": outcome.message or ""}
            )
    return succeeded, failed


def _metadata_shape(metadata: Mapping[str, Value]) -> dict[str, data.MemoryRecordMetadataValue]:
    def typed(value: Value) -> data.MemoryRecordMetadataValue:
        match value:
            case str():
                return {"stringValue": value}
            case datetime():
                return {"dateTimeValue": value}
            case int() | float():
                return {"numberValue": value}
        return {"stringListValue": list(value)}

    return {key: typed(value) for key, value in metadata.items()}


def memory_shape(memory: Memory, arn: str) -> control.Memory:
    shape: control.Memory = {
        "arn": arn,
        "id": memory.id,
        "name": memory.name,
        "eventExpiryDuration": memory.event_expiry_days,
        "status": memory.status.value,
        "createdAt": from_epoch_ms(memory.created_ms),
        "updatedAt": from_epoch_ms(memory.updated_ms),
        "strategies": [_strategy_shape(strategy) for strategy in memory.strategies],
    }
    if memory.description is not None:
        shape["description"] = memory.description
    if memory.encryption_key_arn is not None:
        shape["encryptionKeyArn"] = memory.encryption_key_arn
    if memory.execution_role_arn is not None:
        shape["memoryExecutionRoleArn"] = memory.execution_role_arn
    if memory.indexed_keys:
        shape["indexedKeys"] = cast(list[control.IndexedKey], memory.indexed_keys)
    if memory.namespace_keys is not None:
        shape["namespaceKeys"] = cast(list[control.NamespaceKeyEntry], memory.namespace_keys)
    if memory.stream_delivery is not None:
        shape["streamDeliveryResources"] = cast(control.StreamDeliveryResources, memory.stream_delivery)
    return shape


def memory_summary_shape(memory: Memory, arn: str) -> control.MemorySummary:
    return {
        "arn": arn,
        "id": memory.id,
        "status": memory.status.value,
        "createdAt": from_epoch_ms(memory.created_ms),
        "updatedAt": from_epoch_ms(memory.updated_ms),
    }


def _strategy_shape(strategy: Strategy) -> control.MemoryStrategy:
    namespaces = list(strategy.namespaces)
    shape: control.MemoryStrategy = {
        "strategyId": strategy.id,
        "name": strategy.name,
        "type": strategy.type.value,
        "namespaces": namespaces,
        "namespaceTemplates": namespaces,
        "status": "ACTIVE",
        "createdAt": from_epoch_ms(strategy.created_ms),
        "updatedAt": from_epoch_ms(strategy.updated_ms),
    }
    if strategy.description is not None:
        shape["description"] = strategy.description
    if strategy.configuration is not None:
        shape["configuration"] = cast(control.StrategyConfiguration, strategy.configuration)
    if strategy.record_schema is not None:
        shape["memoryRecordSchema"] = cast(control.MemoryRecordSchema, strategy.record_schema)
    if strategy.record_expiry_days is not None:
        shape["recordExpiryDurationDays"] = strategy.record_expiry_days
    return shape
