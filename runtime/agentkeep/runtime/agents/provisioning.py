"""Brings every transition to its end: CREATING to READY or CREATE_FAILED, and so on; after a restart too.

The record in the store is the only to-do list. Each step may be done twice; the last one, which ends the transition, is
conditional.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    ConditionFailed,
    DriverThrottled,
    EnvironmentStartFailed,
    KeyRefused,
    KeyServiceUnavailable,
    SandboxUnavailable,
    StoreUnavailable,
)
from agentkeep.core.ports import WorkloadTokens
from agentkeep.runtime.agents.artifacts import ArtifactError
from agentkeep.runtime.agents.catalogue import POLICIES, TAGS, Catalogue
from agentkeep.runtime.agents.prepared import PreparedVersions
from agentkeep.runtime.agents.sealed_variables import SealedVariables
from agentkeep.runtime.environments.making import Environments
from agentkeep.runtime.records import DEFAULT_ENDPOINT, AgentRuntime, Artifact, Endpoint, Status, Version
from agentkeep.runtime.replicas.table import Replicas
from agentkeep.storage.interface import ABSENT, Delete, Put, Write, partition
from agentkeep.storage.records import Stored

__all__ = ["Provisioning"]

log = logging.getLogger(__name__)

#: Which replica works at a runtime.
AT_WORK = partition("runtime", "provisioning")
RETRY_SECONDS = 2.0
REASON_LIMIT = 4000


class Provisioning:
    """`end_sessions` ends all sessions of a runtime that is deleted; `changed` is told when a runtime came to rest."""

    def __init__(
        self,
        catalogue: Catalogue,
        variables: SealedVariables,
        clock: Clock,
        replicas: Replicas,
        prepared: PreparedVersions,
        environments: Environments,
        workload_tokens: WorkloadTokens,
        end_sessions: Callable[[str], Awaitable[None]],
        changed: Callable[[str], None],
    ) -> None:
        self._catalogue = catalogue
        self._variables = variables
        self._store = catalogue.store
        self._clock = clock
        self._replicas = replicas
        self._prepared = prepared
        self._environments = environments
        self._workload_tokens = workload_tokens
        self._end_sessions = end_sessions
        self._came_to_rest = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()

    async def start(self) -> None:
        """Takes up what was going on when the platform ended."""
        async for stored in self._catalogue.all_runtimes():
            if await self._is_unfinished(stored.record):
                log.info("taking up agent runtime %s, left %s", stored.record.id, stored.record.status)
                self.take_up(stored.record.id)

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def take_up(self, runtime_id: str) -> None:
        """Something of this runtime is in transition. One task per runtime; told during its work, it looks again."""
        if runtime_id in self._tasks:
            self._again.add(runtime_id)
            return
        task = asyncio.create_task(self._finish(runtime_id), name=f"provisioning-{runtime_id}")
        self._tasks[runtime_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(runtime_id, None))

    async def identity(self, runtime: AgentRuntime) -> str:
        """The ARN of the runtime's workload identity, made if need be."""
        return runtime.workload_identity_arn or await self._workload_tokens.create_for_service(runtime.id)

    async def _is_unfinished(self, runtime: AgentRuntime) -> bool:
        if runtime.status.in_transition:
            return True
        return any([found.record.status.in_transition async for found in self._catalogue.all_endpoints(runtime.id)])

    async def _finish(self, runtime_id: str) -> None:
        while True:
            self._again.discard(runtime_id)
            try:
                if not await self._take(runtime_id):
                    await self._clock.sleep(RETRY_SECONDS)  # then whatever that one left
                    continue
                await self._step(runtime_id)
                await self._store.transact([Delete(AT_WORK, runtime_id)])
            except (StoreUnavailable, ConditionFailed, KeyServiceUnavailable) as error:
                log.warning("agent runtime %s: %s; trying again", runtime_id, error)
                await self._clock.sleep(RETRY_SECONDS)
                continue
            except Exception:
                # A defect. The record stays as it is; a restart, or a change, tries again.
                log.exception("agent runtime %s cannot be brought to rest", runtime_id)
                return
            self._came_to_rest(runtime_id)
            if runtime_id not in self._again:
                return

    async def _take(self, runtime_id: str) -> bool:
        """Whether this replica works at the runtime now: one at a time does. Raises ConditionFailed,
        StoreUnavailable."""
        raw = await self._store.get(AT_WORK, runtime_id)
        own = self._replicas.name.encode()
        if raw == own:
            return True
        if raw is not None:
            other = await self._replicas.responsible(raw.decode())
            if other is not None and other.name != self._replicas.name:
                return False
        expect = ABSENT if raw is None else raw
        await self._store.transact([*self._replicas.mine(), Put(AT_WORK, runtime_id, own, expect)])
        return True

    async def _step(self, runtime_id: str) -> None:
        stored = await self._catalogue.find_runtime(runtime_id)
        if stored is None:
            return
        if stored.record.status is Status.DELETING:
            await self._delete(stored)
            return
        if stored.record.status.in_transition:
            await self._provision(stored)
        async for endpoint in self._catalogue.all_endpoints(runtime_id):
            if endpoint.record.status.in_transition and endpoint.record.name != DEFAULT_ENDPOINT:
                await self._move_endpoint(endpoint)

    async def _provision(self, stored: Stored[AgentRuntime]) -> None:
        runtime = stored.record
        version = await self._catalogue.version(runtime.id, runtime.version)
        endpoint = await self._catalogue.endpoint(runtime.id, DEFAULT_ENDPOINT)
        artifact, reason, identity = version.record.artifact, None, runtime.workload_identity_arn
        try:
            identity = await self.identity(runtime)
            artifact = await self._prepare(version)
            await self._try_warm_up(version)
        except (StoreUnavailable, KeyServiceUnavailable):
            raise
        except Exception as error:
            reason = _reason(await self._masked(error, version.record))
            log.warning("agent runtime %s, version %d: %s", runtime.id, runtime.version, reason)
        failed = reason is not None
        outcome = runtime.status.failed if failed else Status.READY
        change: dict[str, Any] = {"status": outcome, "failure_reason": reason, "updated_at": self._clock.now()}
        live = endpoint.record.live if failed else runtime.version
        target = endpoint.record.live if failed and endpoint.record.live is not None else runtime.version
        # An endpoint that goes on serving the version before is not failed: it is where it was.
        endpoint_change = change | ({"status": Status.READY} if failed and live is not None else {})
        await self._store.transact(
            [
                self._catalogue.put_runtime(stored.but(workload_identity_arn=identity, **change), stored.raw),
                self._catalogue.put_version(version.but(artifact=artifact, **change), version.raw),
                self._catalogue.put_endpoint(endpoint.but(live=live, target=target, **endpoint_change), endpoint.raw),
            ]
        )
        before = endpoint.record.live
        if not failed and before is not None and before != live:
            await self._retire_unless_used(runtime.id, before)

    async def _prepare(self, version: Stored[Version]) -> Artifact | None:
        """What its code is pinned to. Images are the driver's to pin."""
        bundle = (await self._prepared.get(version.record)).bundle
        return None if bundle is None else bundle.artifact

    async def _try_warm_up(self, version: Stored[Version]) -> None:
        prepared = await self._prepared.get(version.record)
        if prepared.settings.warm_up is not None:
            await self._environments.try_warm_up(prepared)

    async def _masked(self, error: Exception, version: Version) -> Exception:
        """It may hold what the agent wrote; that is stored and logged without the variables it was given."""
        if not isinstance(error, EnvironmentStartFailed) or not error.logs:
            return error
        try:
            return EnvironmentStartFailed(str(error), await self._variables.mask(version, error.logs))
        except KeyRefused:
            return EnvironmentStartFailed(str(error))

    async def _move_endpoint(self, stored: Stored[Endpoint]) -> None:
        endpoint = stored.record
        if endpoint.status is Status.DELETING:
            arn = self._catalogue.endpoint_arn(endpoint.runtime_id, endpoint.name)
            gone: list[Write] = [self._catalogue.delete_endpoint(stored), Delete(TAGS, arn), Delete(POLICIES, arn)]
            await self._store.transact(gone)
        else:
            reason = None
            try:
                await self._prepare(await self._catalogue.version(endpoint.runtime_id, endpoint.target))
            except StoreUnavailable:
                raise
            except Exception as error:
                reason = _reason(error)
            moved: Endpoint = stored.but(
                status=Status.READY if reason is None else endpoint.status.failed,
                live=endpoint.target if reason is None else endpoint.live,
                failure_reason=reason,
                updated_at=self._clock.now(),
            )
            await self._store.transact([self._catalogue.put_endpoint(moved, stored.raw)])
        if endpoint.live is not None:
            await self._retire_unless_used(endpoint.runtime_id, endpoint.live)

    async def _retire_unless_used(self, runtime_id: str, number: int) -> None:
        async for endpoint in self._catalogue.all_endpoints(runtime_id):
            if number in (endpoint.record.live, endpoint.record.target):
                return
        await self._prepared.retire(runtime_id, number)

    async def _delete(self, stored: Stored[AgentRuntime]) -> None:
        runtime = stored.record
        try:
            await self._end_sessions(runtime.id)
            async for version in self._catalogue.all_versions(runtime.id):
                await self._prepared.retire(runtime.id, version.record.number)
            await self._workload_tokens.delete_for_service(runtime.id)
        except StoreUnavailable:
            raise
        except Exception as error:
            log.exception("agent runtime %s cannot be deleted", runtime.id)
            failed: AgentRuntime = stored.but(
                status=Status.DELETE_FAILED, failure_reason=_reason(error), updated_at=self._clock.now()
            )
            await self._store.transact([self._catalogue.put_runtime(failed, stored.raw)])
            return
        arns = [self._catalogue.runtime_arn(runtime.id)]
        async for endpoint in self._catalogue.all_endpoints(runtime.id):
            arns.append(self._catalogue.endpoint_arn(runtime.id, endpoint.record.name))
        async for version in self._catalogue.all_versions(runtime.id):
            await self._variables.erase(version.record)
        await self._catalogue.forget(runtime.id)
        gone: list[Write] = [self._catalogue.delete_runtime(stored), self._catalogue.free_name(runtime.name)]
        gone += [Delete(partition, arn) for arn in arns for partition in (TAGS, POLICIES)]
        await self._store.transact(gone)
        # One may have begun that had read the records before.
        await self._end_sessions(runtime.id)


def _reason(error: Exception) -> str:
    """What the deployer may see: our own errors in full, of others only that they happened."""
    if isinstance(error, EnvironmentStartFailed) and error.logs:
        return f"{error}\n{error.logs}"[:REASON_LIMIT]
    if isinstance(error, ArtifactError | DriverThrottled | EnvironmentStartFailed | KeyRefused | SandboxUnavailable):
        return str(error)[:REASON_LIMIT]
    log.error("provisioning failed", exc_info=error)
    return "An internal error; the platform's log has the details."
