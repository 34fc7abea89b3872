"""Policy engines: sets of policies that gateways are attached to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from agentkeep.core.call import Idempotency
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    FieldError,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
)
from agentkeep.core.identifiers import LOWER_ALPHANUMERIC, Deployment, resource_id
from agentkeep.core.tags import refuse_reserved
from agentkeep.gateway.control import layout
from agentkeep.gateway.control.layout import engine_revision, revise
from agentkeep.gateway.control.rules import invalid
from agentkeep.gateway.records import PolicyEngineRecord
from agentkeep.storage.interface import ABSENT, Delete, KeyValueStore, Once, Put, Write
from agentkeep.storage.records import Stored, encode, find, page_of

__all__ = ["PolicyEngines"]

_MOST: Final = 1000  # the service's quota
_ATTEMPTS: Final = 5


class PolicyEngines:
    def __init__(self, store: KeyValueStore, deployment: Deployment, clock: Clock) -> None:
        self._store = store
        self._deployment = deployment
        self._clock = clock

    async def create(self, request: Mapping[str, Any], token: Idempotency | None) -> PolicyEngineRecord:
        """From a CreatePolicyEngineRequest. Raises ValidationException, ConflictException (the name is used),
        ServiceQuotaExceededException."""
        if request.get("encryptionKeyArn") is not None:
            raise invalid(FieldError("encryptionKeyArn", "is not supported by agentkeep yet; leave it out"))
        refuse_reserved(request.get("tags", {}))
        if len(await self._store.query(layout.ENGINES, limit=_MOST)) == _MOST:
            raise ServiceQuotaExceededException(f"There are {_MOST} policy engines, the most allowed; delete one.")
        name, now = request["name"], self._clock.now()
        engine_id = resource_id(name, LOWER_ALPHANUMERIC)
        arn = self._deployment.arn(f"policy-engine/{engine_id}")
        engine = PolicyEngineRecord(engine_id, arn, name, "ACTIVE", now, now, _described(request.get("description")))
        writes: list[Write] = [
            Put(layout.ENGINE_NAMES, name, engine_id.encode(), ABSENT),
            Put(layout.ENGINES, engine_id, encode(engine), ABSENT),
            revise(engine_revision(engine_id)),
        ]
        if tags := request.get("tags"):
            writes.append(Put(layout.TAGS, arn, orjson.dumps(tags), ABSENT))
        try:
            done = await self._store.transact(writes, Once.of(token, engine_id.encode(), epoch_ms(now)))
        except ConditionFailed as failed:
            raise ConflictException(
                f"A policy engine named {name} exists ({(failed.current or b'another').decode()}). Use that one, or "
                "choose another name."
            ) from None
        return engine if done is None else (await self.stored(done.reference.decode())).record

    async def update(self, engine_id: str, request: Mapping[str, Any]) -> PolicyEngineRecord:
        """From an UpdatePolicyEngineRequest; without `description` nothing changes."""
        for _ in range(_ATTEMPTS):
            stored = await self.stored(engine_id)
            if "description" not in request:
                return stored.record
            document = _described(request["description"].get("optionalValue"))
            engine: PolicyEngineRecord = stored.but(updated_at=self._clock.now(), document=document)
            try:
                await self._store.transact([Put(layout.ENGINES, engine_id, encode(engine), stored.raw)])
            except ConditionFailed:
                continue
            return engine
        raise _busy(engine_id)

    async def delete(self, engine_id: str) -> PolicyEngineRecord:
        """Raises ResourceNotFoundException; ConflictException while it has policies or decides for a gateway."""
        for _ in range(_ATTEMPTS):
            revision = engine_revision(engine_id)
            found = await revision.read(self._store)
            stored = await self.stored(engine_id)
            if left := await self._store.query(layout.policies(engine_id), limit=1):
                raise ConflictException(
                    f"Policy engine {engine_id} has policies ({left[0].sort}, for one). Delete them first."
                )
            if using := await self._store.query(layout.attached(engine_id), limit=1):
                raise ConflictException(
                    f"Policy engine {engine_id} is attached to gateway {using[0].sort}. Detach it there first "
                    "(UpdateGateway)."
                )
            writes: list[Write] = [
                Delete(layout.ENGINES, engine_id, stored.raw),
                # A policy made or a gateway attached since has changed the revision.
                Delete(revision.partition, revision.sort, found if found is not None else ABSENT),
                Delete(layout.ENGINE_NAMES, stored.record.name),
                Delete(layout.TAGS, stored.record.arn),
            ]
            try:
                await self._store.transact(writes)
            except ConditionFailed:
                continue
            return stored.record
        raise _busy(engine_id)

    async def stored(self, engine_id: str) -> Stored[PolicyEngineRecord]:
        """Raises ResourceNotFoundException."""
        found = await find(self._store, PolicyEngineRecord, layout.ENGINES, engine_id)
        if found is None:
            raise ResourceNotFoundException(f"There is no policy engine {engine_id}")
        return found

    async def page(self, after: str | None, limit: int) -> list[PolicyEngineRecord]:
        return [found.record for found in await page_of(self._store, PolicyEngineRecord, layout.ENGINES, after, limit)]


def _described(description: str | None) -> dict[str, Any]:
    return {} if description is None else {"description": description}


def _busy(engine_id: str) -> ConflictException:
    return ConflictException(f"Policy engine {engine_id} is being changed by others; try again")
