"""Agent runtimes and their versions: made, replaced, listed, deleted.

Each change is one transaction that leaves a record in a transitional state; `Provisioning` brings it to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from agentkeep.core.call import Idempotency
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
)
from agentkeep.core.identifiers import resource_id
from agentkeep.runtime.agents.catalogue import TAGS, Catalogue
from agentkeep.runtime.agents.sealed_variables import SealedVariables
from agentkeep.runtime.records import DEFAULT_ENDPOINT, AgentRuntime, Endpoint, Status, Version
from agentkeep.storage.interface import ABSENT, Once, Put, Write
from agentkeep.storage.records import Stored, replayed

__all__ = ["Runtimes", "once"]

LAST_VERSION = 99_999


def once(clock: Clock, idempotency: Idempotency | None, reference: str) -> Once | None:
    """The client token of a call, to be spent by the transaction that makes `reference`."""
    return Once.of(idempotency, reference.encode(), epoch_ms(clock.now()))


class Runtimes:
    """`changed` is told a runtime's id when a transition begins that something must finish."""

    def __init__(
        self, catalogue: Catalogue, variables: SealedVariables, clock: Clock, changed: Callable[[str], None]
    ) -> None:
        self._catalogue = catalogue
        self._variables = variables
        self._store = catalogue.store
        self._clock = clock
        self._changed = changed

    async def create(
        self, name: str, settings: dict[str, Any], tags: Mapping[str, str], token: Idempotency | None
    ) -> AgentRuntime:
        """A runtime in CREATING, with version 1 and the endpoint DEFAULT. Raises ConflictException: the name is
        used; KeyServiceUnavailable and KeyRefused, where there are variables to seal."""
        now = self._clock.now()
        runtime = AgentRuntime(resource_id(name), name, Status.CREATING, 1, 2, now, now)
        version = await self._variables.seal(Version(runtime.id, 1, Status.CREATING, settings, now, now))
        endpoint = Endpoint(
            runtime.id, DEFAULT_ENDPOINT, resource_id(DEFAULT_ENDPOINT), Status.CREATING, None, 1, now, now
        )
        writes: list[Write] = [
            self._catalogue.reserve_name(name, runtime.id, ABSENT),
            self._catalogue.put_runtime(runtime, ABSENT),
            self._catalogue.put_version(version, ABSENT),
            self._catalogue.put_endpoint(endpoint, ABSENT),
        ]
        if tags:
            arn = self._catalogue.runtime_arn(runtime.id)
            writes.append(Put(TAGS, arn, orjson.dumps(dict(tags)), ABSENT))
        try:
            done = await self._store.transact(writes, once=once(self._clock, token, runtime.id))
        except ConditionFailed as taken:
            await self._variables.discard(version)
            owner = taken.current.decode() if taken.index == 0 and taken.current else "another"
            raise ConflictException(
                f"An agent runtime named {name} exists ({owner}). Update that one, or choose another name."
            ) from None
        if done is not None:
            await self._variables.discard(version)
            return (await self._catalogue.runtime(done.reference.decode())).record
        self._changed(runtime.id)
        return runtime

    async def update(
        self, runtime_id: str, settings: dict[str, Any], token: Idempotency | None
    ) -> tuple[AgentRuntime, int]:
        """A new version in UPDATING; returns the runtime and the version's number. Everything is replaced.

        Raises ResourceNotFoundException; ConflictException while another change is going on; KeyServiceUnavailable and
        KeyRefused, where there are variables to seal.
        """
        stored = await self._catalogue.runtime(runtime_id)
        runtime = stored.record
        spent = once(self._clock, token, f"{runtime_id}/{runtime.next_version}")
        if runtime.status.in_transition:
            if reference := await replayed(self._store, spent):
                return await self._answer_again(reference)
            raise _busy(runtime)
        if runtime.next_version > LAST_VERSION:
            raise ServiceQuotaExceededException(f"Agent runtime {runtime_id} has had all {LAST_VERSION} versions.")
        endpoint = await self._catalogue.endpoint(runtime_id, DEFAULT_ENDPOINT)
        now, number = self._clock.now(), runtime.next_version
        updating: AgentRuntime = stored.but(
            status=Status.UPDATING, version=number, next_version=number + 1, updated_at=now, failure_reason=None
        )
        version = await self._variables.seal(Version(runtime_id, number, Status.UPDATING, settings, now, now))
        moving: Endpoint = endpoint.but(status=Status.UPDATING, target=number, updated_at=now, failure_reason=None)
        try:
            done = await self._store.transact(
                [
                    self._catalogue.put_runtime(updating, stored.raw),
                    self._catalogue.put_version(version, ABSENT),
                    self._catalogue.put_endpoint(moving, endpoint.raw),
                ],
                once=spent,
            )
        except ConditionFailed:
            await self._variables.discard(version)
            raise _busy(runtime) from None
        if done is not None:
            await self._variables.discard(version)
            return await self._answer_again(done.reference)
        self._changed(runtime_id)
        return updating, number

    async def _answer_again(self, reference: bytes) -> tuple[AgentRuntime, int]:
        runtime_id, number = reference.decode().split("/")
        return (await self._catalogue.runtime(runtime_id)).record, int(number)

    async def get(self, runtime_id: str, number: int | None) -> tuple[AgentRuntime, Version]:
        runtime = (await self._catalogue.runtime(runtime_id)).record
        version = await self._catalogue.version(runtime_id, number or runtime.version)
        return runtime, version.record

    async def delete(self, runtime_id: str, token: Idempotency | None) -> None:
        """Begins to delete a runtime with its versions, endpoints and sessions. Raises ConflictException while it is
        being changed."""
        stored = await self._catalogue.find_runtime(runtime_id)
        spent = once(self._clock, token, runtime_id)
        if stored is None or stored.record.status.in_transition:
            if await replayed(self._store, spent):
                return
            if stored is None:
                raise ResourceNotFoundException(f"Agent runtime {runtime_id} does not exist.")
            raise _busy(stored.record)
        deleting: AgentRuntime = stored.but(status=Status.DELETING, updated_at=self._clock.now())
        try:
            done = await self._store.transact([self._catalogue.put_runtime(deleting, stored.raw)], once=spent)
        except ConditionFailed:
            raise _busy(stored.record) from None
        if done is None:
            self._changed(runtime_id)

    async def delete_version(self, runtime_id: str, number: int, token: Idempotency | None) -> None:
        """Deletes one version. Raises ConflictException while an endpoint names it or the runtime is being changed."""
        spent = once(self._clock, token, f"{runtime_id}/{number}")
        runtime = await self._catalogue.find_runtime(runtime_id)
        version = None if runtime is None else await self._catalogue.find_version(runtime_id, number)
        if runtime is None or version is None:
            if await replayed(self._store, spent):
                return
            raise ResourceNotFoundException(f"Agent runtime {runtime_id} has no version {number}.")
        if runtime.record.status.in_transition:
            raise _busy(runtime.record)
        async for endpoint in self._catalogue.all_endpoints(runtime_id):
            if number in (endpoint.record.live, endpoint.record.target):
                raise ConflictException(
                    f"Version {number} of agent runtime {runtime_id} is in use by the endpoint {endpoint.record.name}."
                )
        if number == runtime.record.version:
            raise ConflictException(f"Version {number} is the newest of agent runtime {runtime_id}.")
        # The runtime's record is written again, so that an endpoint put on this version meanwhile fails (it does the
        # same), and the other way round.
        touched: AgentRuntime = runtime.but(updated_at=self._clock.now())
        try:
            await self._store.transact(
                [self._catalogue.put_runtime(touched, runtime.raw), self._catalogue.delete_version(version)],
                once=spent,
            )
        except ConditionFailed:
            raise _busy(runtime.record) from None
        await self._variables.discard(version.record)

    async def page(self, after: str | None, limit: int) -> list[Stored[AgentRuntime]]:
        return await self._catalogue.runtimes(after, limit)


def _busy(runtime: AgentRuntime) -> ConflictException:
    return ConflictException(
        f"Agent runtime {runtime.id} is being changed ({runtime.status}). Wait until GetAgentRuntime says READY."
    )
