"""The runtime plane's domain objects, put together, and their common life."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from agentkeep.core.acting import ActingForUsers, LoggedAudit
from agentkeep.core.alarm import Alarm
from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock
from agentkeep.core.data_keys import DataKeys
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Audit, Authorizers, Budget, Keys, MemorySessions, WorkloadTokens
from agentkeep.runtime.admin import AdminApp, ArtifactsApp
from agentkeep.runtime.agents.artifacts import ArtifactStore
from agentkeep.runtime.agents.budgets import TaggedBudgets
from agentkeep.runtime.agents.bundles import Bundles
from agentkeep.runtime.agents.catalogue import Catalogue
from agentkeep.runtime.agents.dependencies import Dependencies, uv_environment
from agentkeep.runtime.agents.endpoints import Endpoints
from agentkeep.runtime.agents.policies import Policies
from agentkeep.runtime.agents.prepared import PreparedVersions
from agentkeep.runtime.agents.provisioning import Provisioning
from agentkeep.runtime.agents.runtimes import Runtimes
from agentkeep.runtime.agents.sealed_variables import SealedVariables
from agentkeep.runtime.agents.tags import Tags
from agentkeep.runtime.agents.targets import Targets
from agentkeep.runtime.drivers.driver import Driver
from agentkeep.runtime.drivers.patient import PatientDriver
from agentkeep.runtime.egress.route import EgressRoute
from agentkeep.runtime.egress.setup import egress_route
from agentkeep.runtime.environments.making import Environments
from agentkeep.runtime.environments.variables import platform_variables, session_environment
from agentkeep.runtime.environments.warm_pools import WarmPools
from agentkeep.runtime.invocations.authorization import Authorization
from agentkeep.runtime.invocations.bearers import RuntimeBearers
from agentkeep.runtime.invocations.invocations import RuntimeInvocations
from agentkeep.runtime.invocations.mcp_sessions import McpSessions
from agentkeep.runtime.invocations.protected_resources import ProtectedResourceApp
from agentkeep.runtime.records import Version
from agentkeep.runtime.replicas.forwarding import Forwarding
from agentkeep.runtime.replicas.heartbeat import Heartbeat
from agentkeep.runtime.replicas.recovery import Recovery
from agentkeep.runtime.replicas.table import Place, Replicas
from agentkeep.runtime.sessions.endpoint import CredentialsApp, LivingSessionUsers
from agentkeep.runtime.sessions.ends import SessionEnds
from agentkeep.runtime.sessions.keys import SessionKeys
from agentkeep.runtime.sessions.living import LivingSessions
from agentkeep.runtime.sessions.logs import Logs
from agentkeep.runtime.sessions.reaper import Reaper
from agentkeep.runtime.sessions.sessions import Sessions
from agentkeep.runtime.sessions.table import SessionTable
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.storage.interface import KeyValueStore

__all__ = ["EndpointFactory", "Parts"]

OTHERS_POLL_SECONDS = 0.25

#: Of a session: what makes the protocol that serves one connection to its session endpoint.
EndpointFactory = Callable[[SessionRef], Callable[[], asyncio.Protocol]]


class Parts:
    """Everything but the operations. `folder` is the plane's own."""

    def __init__(
        self,
        store: KeyValueStore,
        deployment: Deployment,
        clock: Clock,
        driver: Driver,
        artifacts: ArtifactStore,
        keys: Keys,
        authorizers: Authorizers,
        workload_tokens: WorkloadTokens,
        budget: Budget,
        endpoint_factory: EndpointFactory,
        settings: RuntimeSettings,
        folder: Path,
        alarm: Alarm | None,
        place: Place | None,
        logs_folder: Path,
        listener_token: Callable[[SessionRef], str] | None,
        memory_sessions: MemorySessions | None,
        audit: Audit | None,
        data_keys: DataKeys,
        rewrite_store: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._clock = clock
        self._deployment = deployment
        self._settings = settings
        self._driver = driver = PatientDriver(driver, clock, settings.start_timeout)
        self.catalogue = Catalogue(store, deployment)
        self.variables = SealedVariables(self.catalogue, data_keys, clock, rewrite_store)
        self.policies = Policies(store)
        self.targets = Targets(self.catalogue, self.policies, clock)
        self.logs = Logs(logs_folder, settings.log_limit, settings.log_retention, clock)
        self.bundles = Bundles(
            folder / "bundles",
            artifacts,
            Dependencies(folder / "dependencies", _uv(settings), settings.install_timeout, no_index=settings.no_index),
            size_limit=settings.bundle_limit,
            unpacked_limit=settings.unpacked_limit,
            python_substitution=settings.python_substitution,
        )
        prepared = PreparedVersions(self.bundles, driver)
        at = place or Place(_replica(folder))
        self.replicas = Replicas(store, clock, at.name, settings.lease, at.public, at.internal, at.slot)
        self.session_ends = SessionEnds(store, clock, memory_sessions)
        self.table = SessionTable(
            store,
            clock,
            self.replicas,
            settings.session_record_retention,
            settings.sessions_per_user,
            self.session_ends,
        )
        environments = Environments(driver, self._variables, settings)
        self.warm_pools = WarmPools(
            self.catalogue, prepared, environments, clock, settings, lambda: self.sessions.count
        )
        session_keys = SessionKeys(keys, clock)
        self.sessions = Sessions(
            self.table,
            clock,
            settings,
            prepared=prepared,
            session_keys=session_keys,
            keys=keys,
            logs=self.logs,
            endpoint_of=endpoint_factory,
            environments=environments,
            pools=self.warm_pools,
            budgets=TaggedBudgets(self.catalogue, budget),
        )
        self.replicas.when_lost(self.sessions.forfeit)
        self.recovery = Recovery(self.sessions, self.table, driver, keys, self._version, self._inherited)
        self.heartbeat = Heartbeat(self.replicas, self.sessions, self.recovery, clock, self.catalogue.deleted)
        self.forwarding = Forwarding(
            self.replicas, self.table, self.sessions, clock, self.recovery.looked_after, listener_token
        )
        self.reaper = Reaper(self.sessions, self.logs, clock, settings)
        self.provisioning = Provisioning(
            self.catalogue,
            self.variables,
            clock,
            self.replicas,
            prepared,
            environments,
            workload_tokens,
            self._end_runtime,
            self._came_to_rest,
        )
        self.runtimes = Runtimes(self.catalogue, self.variables, clock, self._changed)
        self.endpoints = Endpoints(self.catalogue, clock, self._changed)
        self.tags = Tags(self.catalogue, self.warm_pools.changed)
        authorization = Authorization(self.catalogue, authorizers, settings.public_url)
        mcp_sessions = McpSessions(store, clock, self.sessions, self.table)
        self.acting = ActingForUsers(audit or LoggedAudit(), clock)
        self.invocations = RuntimeInvocations(
            self.targets,
            authorization,
            self.sessions,
            self.forwarding,
            mcp_sessions,
            workload_tokens,
            clock,
            settings,
            self.acting,
            alarm,
        )
        self.bearers = RuntimeBearers(self.targets, authorization, deployment.account)
        living = LivingSessions(self.sessions, session_keys)
        self.egress: EgressRoute = egress_route(settings, living, audit or LoggedAudit(), clock, deployment)
        self.credentials_app = CredentialsApp(living)
        self.session_users = LivingSessionUsers(self.sessions, self.table)
        self.admin_app = AdminApp(self.table, self.logs, self.warm_pools)
        self.protected_resources = ProtectedResourceApp(self.targets, settings.public_url)
        self.artifacts_app = ArtifactsApp(artifacts, settings.bundle_limit)

    def _changed(self, runtime_id: str) -> None:
        self.targets.changed(runtime_id)
        self.provisioning.take_up(runtime_id)

    def _came_to_rest(self, runtime_id: str) -> None:
        self.targets.changed(runtime_id)
        self.warm_pools.changed(runtime_id)

    async def _end_runtime(self, runtime_id: str) -> None:
        await self.warm_pools.drain(runtime_id)
        if ending := self.sessions.end_runtime(runtime_id):
            await asyncio.wait(ending)
        # Other replicas end theirs when they see that the runtime goes (`Heartbeat`).
        while await self.table.lives_any(runtime_id):
            await self._clock.sleep(OTHERS_POLL_SECONDS)

    async def _inherited(self, replica: str) -> None:
        """What a dead replica had to do is ours."""
        await self.provisioning.start()

    async def _variables(self, version: Version, endpoint: str) -> Mapping[str, str]:
        settings = self._settings
        platform = platform_variables(
            self._deployment,
            settings.public_url,
            version.runtime_id,
            endpoint,
            settings.observability,
            self.egress.egress.serves(version.runtime_id),
        )
        return session_environment(platform, await self.variables.open(version), settings.public_url)

    async def start(self) -> None:
        await self.recovery.recover()
        await self.bundles.collect(await self._digests_in_use())
        self.heartbeat.start()
        self.reaper.start()
        await self.variables.start()
        await self.provisioning.start()
        self.warm_pools.start()
        self.session_ends.start()

    async def stop(self) -> None:
        await self.provisioning.stop()
        await self.variables.stop()
        await self.reaper.stop()
        await self.sessions.close()
        await self.egress.close()
        await self.session_ends.stop()
        await self.acting.close()
        await self.warm_pools.stop()
        await self.heartbeat.stop()
        await self.replicas.retire()
        self.logs.close()

    async def _version(self, runtime_id: str, number: int) -> Version | None:
        found = await self.catalogue.find_version(runtime_id, number)
        return None if found is None else found.record

    async def _digests_in_use(self) -> set[str]:
        used = set()
        async for runtime in self.catalogue.all_runtimes():
            async for version in self.catalogue.all_versions(runtime.record.id):
                if version.record.artifact is not None:
                    used.add(version.record.artifact.digest)
        return used


def _uv(settings: RuntimeSettings) -> dict[str, str]:
    return uv_environment(
        default_index=settings.default_index,
        extra_index=settings.extra_index,
        find_links=settings.find_links,
        certificates=settings.certificates,
        https_proxy=settings.https_proxy,
        no_proxy=settings.no_proxy,
    )


def _replica(folder: Path) -> str:
    """This replica's name, the same as long as its data is."""
    path = folder / "replica"
    if path.exists():
        return path.read_text().strip()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"replica-{secrets.token_hex(8)}"
    path.write_text(name)
    return name
