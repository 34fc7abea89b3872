"""Endpoints: names under which versions are invoked (the qualifier). DEFAULT follows the newest version by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import orjson

from agentkeep.core.call import Idempotency
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
    ValidationException,
)
from agentkeep.core.identifiers import resource_id
from agentkeep.runtime.agents.catalogue import TAGS, Catalogue
from agentkeep.runtime.agents.runtimes import once
from agentkeep.runtime.records import DEFAULT_ENDPOINT, AgentRuntime, Endpoint, Status
from agentkeep.storage.interface import ABSENT, Put, Write
from agentkeep.storage.records import Stored, replayed

__all__ = ["Endpoints"]

MOST = 10  # of one runtime, as AgentCore


class Endpoints:
    """`changed` is told a runtime's id when a transition begins that something must finish."""

    def __init__(self, catalogue: Catalogue, clock: Clock, changed: Callable[[str], None]) -> None:
        self._catalogue = catalogue
        self._store = catalogue.store
        self._clock = clock
        self._changed = changed

    async def create(
        self,
        runtime_id: str,
        name: str,
        number: int | None,
        description: str | None,
        tags: Mapping[str, str],
        token: Idempotency | None,
    ) -> Endpoint:
        """An endpoint in CREATING, on the newest version unless one is named. Raises ConflictException (the name is
        used, the runtime is being changed), ResourceNotFoundException, ServiceQuotaExceededException."""
        runtime = await self._catalogue.runtime(runtime_id)
        target = number or runtime.record.version
        spent = once(self._clock, token, name)
        existing = [found.record.name async for found in self._catalogue.all_endpoints(runtime_id)]
        refused = name in existing or runtime.record.status.in_transition or len(existing) >= MOST
        if refused and (reference := await replayed(self._store, spent)):
            return (await self._catalogue.endpoint(runtime_id, reference.decode())).record
        if name in existing:
            raise ConflictException(f"Agent runtime {runtime_id} has an endpoint {name}. Update that one.")
        if len(existing) >= MOST:
            raise ServiceQuotaExceededException(f"Agent runtime {runtime_id} has {MOST} endpoints, the most allowed.")
        touched = await self._ready_for(runtime, target)
        now = self._clock.now()
        endpoint = Endpoint(
            runtime_id, name, resource_id(name), Status.CREATING, None, target, now, now, description=description
        )
        writes: list[Write] = [
            self._catalogue.put_runtime(touched, runtime.raw),
            self._catalogue.put_endpoint(endpoint, ABSENT),
        ]
        if tags:
            arn = self._catalogue.endpoint_arn(runtime_id, name)
            writes.append(Put(TAGS, arn, orjson.dumps(dict(tags)), ABSENT))
        try:
            done = await self._store.transact(writes, once=spent)
        except ConditionFailed:
            raise _raced(runtime_id) from None
        if done is not None:
            return (await self._catalogue.endpoint(runtime_id, done.reference.decode())).record
        self._changed(runtime_id)
        return endpoint

    async def update(
        self, runtime_id: str, name: str, number: int | None, description: str | None, token: Idempotency | None
    ) -> Endpoint:
        """Moves an endpoint to another version, the newest unless one is named. Raises ConflictException for DEFAULT
        and while a change is going on."""
        stored = await self._catalogue.endpoint(runtime_id, name)
        runtime = await self._catalogue.runtime(runtime_id)
        spent = once(self._clock, token, name)
        moving = stored.record.status.in_transition or runtime.record.status.in_transition
        if moving and await replayed(self._store, spent):
            return stored.record
        if name == DEFAULT_ENDPOINT:
            raise ConflictException(
                "The endpoint DEFAULT follows the newest version; update the agent runtime instead."
            )
        _at_rest(stored.record)
        target = number or runtime.record.version
        touched = await self._ready_for(runtime, target)
        updating: Endpoint = stored.but(
            status=Status.UPDATING,
            target=target,
            description=description if description is not None else stored.record.description,
            updated_at=self._clock.now(),
            failure_reason=None,
        )
        try:
            done = await self._store.transact(
                [
                    self._catalogue.put_runtime(touched, runtime.raw),
                    self._catalogue.put_endpoint(updating, stored.raw),
                ],
                once=spent,
            )
        except ConditionFailed:
            raise _raced(runtime_id) from None
        if done is not None:
            return (await self._catalogue.endpoint(runtime_id, name)).record
        self._changed(runtime_id)
        return updating

    async def delete(self, runtime_id: str, name: str, token: Idempotency | None) -> None:
        """Begins to delete an endpoint; sessions opened through it run on. Raises ConflictException for DEFAULT."""
        stored = await self._catalogue.find_endpoint(runtime_id, name)
        spent = once(self._clock, token, name)
        if (stored is None or stored.record.status.in_transition) and await replayed(self._store, spent):
            return
        if stored is None:
            raise ResourceNotFoundException(f"Agent runtime {runtime_id} has no endpoint {name}.")
        if name == DEFAULT_ENDPOINT:
            raise ConflictException("The endpoint DEFAULT lives as long as its agent runtime; delete that.")
        _at_rest(stored.record)
        deleting: Endpoint = stored.but(status=Status.DELETING, updated_at=self._clock.now())
        try:
            done = await self._store.transact([self._catalogue.put_endpoint(deleting, stored.raw)], once=spent)
        except ConditionFailed:
            raise _raced(runtime_id) from None
        if done is None:
            self._changed(runtime_id)

    async def get(self, runtime_id: str, name: str) -> Endpoint:
        return (await self._catalogue.endpoint(runtime_id, name)).record

    async def page(self, runtime_id: str, after: str | None, limit: int) -> list[Stored[Endpoint]]:
        if await self._catalogue.find_runtime(runtime_id) is None:
            # The operation models no ResourceNotFoundException.
            raise ValidationException(f"Agent runtime {runtime_id} does not exist.")
        return await self._catalogue.endpoints(runtime_id, after, limit)

    async def _ready_for(self, runtime: Stored[AgentRuntime], target: int) -> AgentRuntime:
        """The runtime's record, to be written with the endpoint: so that deleting the version cannot come between.

        Raises ConflictException where the runtime or the version is not at rest.
        """
        record = runtime.record
        if record.status.in_transition:
            raise ConflictException(
                f"Agent runtime {record.id} is being changed ({record.status}). Wait until GetAgentRuntime says READY."
            )
        version = (await self._catalogue.version(record.id, target)).record
        if version.status is not Status.READY:
            raise ConflictException(f"Version {target} of agent runtime {record.id} is {version.status}, not READY.")
        touched: AgentRuntime = runtime.but(updated_at=self._clock.now())
        return touched


def _at_rest(endpoint: Endpoint) -> None:
    if endpoint.status.in_transition:
        raise ConflictException(
            f"The endpoint {endpoint.name} is being changed ({endpoint.status}). Wait until it is READY."
        )


def _raced(runtime_id: str) -> ConflictException:
    return ConflictException(f"Agent runtime {runtime_id} was changed at the same time. Read it and try again.")
