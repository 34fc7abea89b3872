"""Agent runtimes, versions and endpoints in the key-value store: where each lies, and how it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from agentkeep.core.errors import ResourceNotFoundException
from agentkeep.core.identifiers import Deployment
from agentkeep.runtime.records import AgentRuntime, Endpoint, Status, Version
from agentkeep.storage.interface import ANY, Check, Delete, Expected, KeyValueStore, Put, partition
from agentkeep.storage.records import Stored, all_of, decode, encode, find, page_of

__all__ = ["Catalogue"]

RUNTIMES = partition("runtime", "runtimes")
NAMES = partition("runtime", "names")
TAGS = partition("runtime", "tags")
POLICIES = partition("runtime", "policies")


def _versions(runtime_id: str) -> str:
    return partition("runtime", "versions", runtime_id)


def _endpoints(runtime_id: str) -> str:
    return partition("runtime", "endpoints", runtime_id)


class Catalogue:
    def __init__(self, store: KeyValueStore, deployment: Deployment) -> None:
        self.store = store
        self.deployment = deployment

    # ARNs.

    def runtime_arn(self, runtime_id: str) -> str:
        return self.deployment.arn(f"runtime/{runtime_id}")

    def endpoint_arn(self, runtime_id: str, name: str) -> str:
        return self.deployment.arn(f"runtime/{runtime_id}/runtime-endpoint/{name}")

    # Reading.

    async def find_runtime(self, runtime_id: str) -> Stored[AgentRuntime] | None:
        return await find(self.store, AgentRuntime, RUNTIMES, runtime_id)

    async def runtime(self, runtime_id: str) -> Stored[AgentRuntime]:
        found = await self.find_runtime(runtime_id)
        if found is None:
            raise ResourceNotFoundException(f"Agent runtime {runtime_id} does not exist.")
        return found

    async def find_version(self, runtime_id: str, number: int) -> Stored[Version] | None:
        return await find(self.store, Version, _versions(runtime_id), _version_key(number))

    async def version(self, runtime_id: str, number: int) -> Stored[Version]:
        found = await self.find_version(runtime_id, number)
        if found is None:
            raise ResourceNotFoundException(f"Agent runtime {runtime_id} has no version {number}.")
        return found

    async def find_endpoint(self, runtime_id: str, name: str) -> Stored[Endpoint] | None:
        return await find(self.store, Endpoint, _endpoints(runtime_id), name)

    async def endpoint(self, runtime_id: str, name: str) -> Stored[Endpoint]:
        found = await self.find_endpoint(runtime_id, name)
        if found is None:
            raise ResourceNotFoundException(f"Agent runtime {runtime_id} has no endpoint {name}.")
        return found

    async def runtimes(self, after: str | None, limit: int) -> list[Stored[AgentRuntime]]:
        return await page_of(self.store, AgentRuntime, RUNTIMES, after, limit)

    async def versions(self, runtime_id: str, after: str | None, limit: int) -> list[Stored[Version]]:
        return await page_of(self.store, Version, _versions(runtime_id), after, limit)

    async def endpoints(self, runtime_id: str, after: str | None, limit: int) -> list[Stored[Endpoint]]:
        return await page_of(self.store, Endpoint, _endpoints(runtime_id), after, limit)

    async def deleted(self, runtime_ids: Iterable[str]) -> set[str]:
        """Those of them that are deleted, or being deleted."""
        ids = list(runtime_ids)
        found = zip(ids, await self.store.get_many(RUNTIMES, ids), strict=True)
        return {id for id, raw in found if raw is None or decode(AgentRuntime, raw).status is Status.DELETING}

    def all_runtimes(self) -> AsyncIterator[Stored[AgentRuntime]]:
        return all_of(self.store, AgentRuntime, RUNTIMES)

    def all_versions(self, runtime_id: str) -> AsyncIterator[Stored[Version]]:
        return all_of(self.store, Version, _versions(runtime_id))

    def all_endpoints(self, runtime_id: str) -> AsyncIterator[Stored[Endpoint]]:
        return all_of(self.store, Endpoint, _endpoints(runtime_id))

    # Writes, to be put together into one transaction.

    @staticmethod
    def put_runtime(record: AgentRuntime, expect: Expected = ANY) -> Put:
        return Put(RUNTIMES, record.id, encode(record), expect)

    @staticmethod
    def put_version(record: Version, expect: Expected = ANY) -> Put:
        return Put(_versions(record.runtime_id), _version_key(record.number), encode(record), expect)

    @staticmethod
    def put_endpoint(record: Endpoint, expect: Expected = ANY) -> Put:
        return Put(_endpoints(record.runtime_id), record.name, encode(record), expect)

    @staticmethod
    def reserve_name(name: str, runtime_id: str, expect: Expected) -> Put:
        return Put(NAMES, name, runtime_id.encode(), expect)

    @staticmethod
    def free_name(name: str) -> Delete:
        return Delete(NAMES, name)

    @staticmethod
    def delete_runtime(stored: Stored[AgentRuntime]) -> Delete:
        return Delete(RUNTIMES, stored.record.id, stored.raw)

    @staticmethod
    def delete_version(stored: Stored[Version]) -> Delete:
        return Delete(_versions(stored.record.runtime_id), _version_key(stored.record.number), stored.raw)

    @staticmethod
    def delete_endpoint(stored: Stored[Endpoint]) -> Delete:
        return Delete(_endpoints(stored.record.runtime_id), stored.record.name, stored.raw)

    @staticmethod
    def check_version(stored: Stored[Version]) -> Check:
        return Check(_versions(stored.record.runtime_id), _version_key(stored.record.number), stored.raw)

    async def forget(self, runtime_id: str) -> None:
        """Versions and endpoints of a runtime that is being deleted."""
        await self.store.delete_partition(_endpoints(runtime_id))
        await self.store.delete_partition(_versions(runtime_id))


def _version_key(number: int) -> str:
    return f"{number:05d}"
