"""Targets of a gateway: made, replaced, listed, deleted, and asked again for their tools.

Tools are listed before anything is written, so that a target is never seen half made. A target that did not answer is
kept as FAILED with the reason; one that had tools keeps serving those.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from agentkeep.core.call import Idempotency
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    DependencyError,
    FieldError,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
    ServiceUnavailableException,
)
from agentkeep.core.identifiers import suffix
from agentkeep.gateway.control import layout
from agentkeep.gateway.control.layout import gateway_revision, revise
from agentkeep.gateway.control.rules import check_target, invalid
from agentkeep.gateway.records import TargetRecord, Tool, ToolLister
from agentkeep.storage.interface import ABSENT, PRESENT, Check, Delete, KeyValueStore, Once, Put, Write
from agentkeep.storage.records import Stored, encode, find, page_of, replayed

__all__ = ["GatewayTargets"]

logger = logging.getLogger(__name__)

_MOST: Final = 100  # of a gateway, the service's quota
_MOST_TOOLS: Final = 1000  # of a target
_LONGEST_REASON: Final = 2048
_OWN: Final = frozenset(
    {
        "gatewayIdentifier",
        "targetId",
        "clientToken",
        "name",
        "targetConfiguration",
        "credentialProviderConfigurations",
    }
)


class GatewayTargets:
    def __init__(self, store: KeyValueStore, clock: Clock, lister: ToolLister) -> None:
        self._store = store
        self._clock = clock
        self._lister = lister

    async def create(self, gateway_id: str, request: Mapping[str, Any], token: Idempotency | None) -> TargetRecord:
        """From a CreateGatewayTargetRequest. Raises ValidationException, ResourceNotFoundException (the gateway),
        ConflictException (the name is used), ServiceQuotaExceededException."""
        check_target(request)
        target_id = suffix()
        once = Once.of(token, target_id.encode(), epoch_ms(self._clock.now()))
        if (made := await replayed(self._store, once)) is not None:
            return (await self.stored(gateway_id, made.decode())).record
        await self._require(gateway_id)
        if len(await self._store.query(layout.targets(gateway_id), limit=_MOST)) == _MOST:
            raise ServiceQuotaExceededException(f"Gateway {gateway_id} has {_MOST} targets, the most allowed.")
        now = self._clock.now()
        target = TargetRecord(
            gateway_id,
            target_id,
            request["name"],
            "READY",
            request["targetConfiguration"],
            request.get("credentialProviderConfigurations") or [],
            (),
            now,
            now,
            _document(request),
        )
        if await self._store.get(layout.target_names(gateway_id), target.name) is not None:
            raise _taken(target)
        tools, fault = await self._tools(target)
        if fault is None:
            target = replace(target, tools=tools, synchronized_at=now)
        else:
            target = replace(target, status="FAILED", document={**target.document, "statusReasons": [fault]})
        writes: list[Write] = [
            Check(layout.GATEWAYS, gateway_id, PRESENT),
            Put(layout.target_names(gateway_id), target.name, target_id.encode(), ABSENT),
            Put(layout.targets(gateway_id), target_id, encode(target), ABSENT),
            revise(gateway_revision(gateway_id)),
        ]
        try:
            done = await self._store.transact(writes, once)
        except ConditionFailed as failed:
            raise _taken(target) if failed.index else _no_gateway(gateway_id) from None
        return target if done is None else (await self.stored(gateway_id, done.reference.decode())).record

    async def update(self, gateway_id: str, target_id: str, request: Mapping[str, Any]) -> TargetRecord:
        """From an UpdateGatewayTargetRequest; everything is replaced. Where the target does not answer under its new
        configuration, the old one stays and the target is UPDATE_UNSUCCESSFUL."""
        stored = await self.stored(gateway_id, target_id)
        old = stored.record
        check_target({"name": old.name, **request})
        now = self._clock.now()
        target = replace(
            old,
            name=request.get("name", old.name),
            status="READY",
            configuration=request["targetConfiguration"],
            credentials=request.get("credentialProviderConfigurations") or [],
            updated_at=now,
            document=_document(request),
        )
        tools, fault = await self._tools(target)
        if fault is None:
            target = replace(target, tools=tools, synchronized_at=now)
        else:
            status = "UPDATE_UNSUCCESSFUL" if old.tools else "FAILED"
            target = replace(old, status=status, updated_at=now, document={**old.document, "statusReasons": [fault]})
        return await self._replace(stored, target)

    async def synchronize(self, gateway_id: str, target_id: str) -> TargetRecord:
        """Lists the tools again. Where the target does not answer, it keeps those it had."""
        stored = await self.stored(gateway_id, target_id)
        old = stored.record
        now = self._clock.now()
        tools, fault = await self._tools(old)
        document = {name: value for name, value in old.document.items() if name != "statusReasons"}
        if fault is None:
            target = replace(old, status="READY", tools=tools, updated_at=now, synchronized_at=now, document=document)
        else:
            status = "SYNCHRONIZE_UNSUCCESSFUL" if old.tools else "FAILED"
            target = replace(old, status=status, updated_at=now, document={**document, "statusReasons": [fault]})
        return await self._replace(stored, target)

    async def delete(self, gateway_id: str, target_id: str) -> TargetRecord:
        """Raises ResourceNotFoundException."""
        stored = await self.stored(gateway_id, target_id)
        try:
            await self._store.transact(
                [
                    Delete(layout.targets(gateway_id), target_id, stored.raw),
                    Delete(layout.target_names(gateway_id), stored.record.name),
                    revise(gateway_revision(gateway_id)),
                ]
            )
        except ConditionFailed:
            raise _busy(target_id) from None
        return stored.record

    async def stored(self, gateway_id: str, target_id: str) -> Stored[TargetRecord]:
        """Raises ResourceNotFoundException."""
        found = await find(self._store, TargetRecord, layout.targets(gateway_id), target_id)
        if found is None:
            await self._require(gateway_id)
            raise ResourceNotFoundException(f"Gateway {gateway_id} has no target {target_id}")
        return found

    async def page(self, gateway_id: str, after: str | None, limit: int) -> list[TargetRecord]:
        await self._require(gateway_id)
        return [
            found.record for found in await page_of(self._store, TargetRecord, layout.targets(gateway_id), after, limit)
        ]

    # Inside.

    async def _replace(self, stored: Stored[TargetRecord], target: TargetRecord) -> TargetRecord:
        names = layout.target_names(target.gateway_id)
        writes: list[Write] = [
            Put(layout.targets(target.gateway_id), target.id, encode(target), stored.raw),
            revise(gateway_revision(target.gateway_id)),
        ]
        if target.name != stored.record.name:
            writes.append(Put(names, target.name, target.id.encode(), ABSENT))
            writes.append(Delete(names, stored.record.name))
        try:
            await self._store.transact(writes)
        except ConditionFailed as failed:
            raise _busy(target.id) if failed.index == 0 else _taken(target) from None
        return target

    async def _tools(self, target: TargetRecord) -> tuple[Sequence[Tool], str | None]:
        """The target's tools, or why it did not say. Raises ValidationException for what can never work."""
        try:
            tools = tuple(await self._lister.list_tools(target))
        except ServiceUnavailableException as error:
            return (), _reason(error.message)
        except DependencyError as error:
            logger.warning("target %s of gateway %s did not list its tools", target.id, target.gateway_id)
            return (), _reason(str(error) or type(error).__name__)
        if len(tools) > _MOST_TOOLS:
            raise invalid(
                FieldError("targetConfiguration", f"leads to {len(tools)} tools; a target has at most {_MOST_TOOLS}")
            )
        names = [tool.name for tool in tools]
        if twice := sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []:
            raise invalid(FieldError("targetConfiguration", f"leads to several tools of the name {twice[0]}"))
        return tools, None

    async def _require(self, gateway_id: str) -> None:
        if await self._store.get(layout.GATEWAYS, gateway_id) is None:
            raise _no_gateway(gateway_id)


def _document(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name not in _OWN and value is not None}


def _reason(message: str) -> str:
    return message[:_LONGEST_REASON]


def _no_gateway(gateway_id: str) -> ResourceNotFoundException:
    return ResourceNotFoundException(f"There is no gateway {gateway_id}")


def _taken(target: TargetRecord) -> ConflictException:
    return ConflictException(
        f"Gateway {target.gateway_id} has a target named {target.name}. Update that one, or choose another name."
    )


def _busy(target_id: str) -> ConflictException:
    return ConflictException(f"Target {target_id} was changed at the same time. Read it and try again.")
