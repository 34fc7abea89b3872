"""Embedded mode: all planes in one process. This is its composition root; every object is made here, once.

<data dir>/master.key   what all secrets are derived from or sealed with      (0600)
           valkey/      resources, events, sessions, keys, usage
           spans.db     traces
           records.db   long-term memory
           keys/        a half of each memory's key: without it the memory cannot be read, wherever copies of it are
           artifacts/   uploaded code
           runtime/     unpacked bundles, installed dependencies, logs
           driver/      the process driver's own
           docker/      the docker driver's own, where there is one
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core import telemetry_export
from agentkeep.core.alarm import Alarm
from agentkeep.core.call import SessionRef
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import StoreUnavailable
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_settings import KeySettings
from agentkeep.embedded.data_folder import secure
from agentkeep.embedded.settings import EmbeddedSettings
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.gateway.control.plane import gateway_control
from agentkeep.gateway.plane import gateway_plane
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.gateway.tools import Callers, ToolGateway
from agentkeep.identity.access_keys.operators_app import OperatorKeysApp
from agentkeep.identity.development.issuer import DevelopmentIssuer, discovery_url
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.oauth2.providers import CALLBACK_PATH
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.roles import sts_app
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.vault.token_vault import VAULT_KEYS
from agentkeep.memory.plane import MemoryPlane
from agentkeep.memory.settings import MemorySettings
from agentkeep.observability.alerts import KeyValueAlerts
from agentkeep.observability.alerts_app import AlertsApp
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.observability.audit_app import AuditRecordsApp
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.otlp import OtlpApp
from agentkeep.observability.prices import Prices
from agentkeep.observability.settings import ObservabilitySettings
from agentkeep.observability.span_queue import SpanQueue
from agentkeep.observability.spans_sqlite import SqliteSpanStore
from agentkeep.observability.traces_app import TracesApp
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.observability.usage_app import UsageApp
from agentkeep.runtime.agents.artifacts import FolderArtifactStore
from agentkeep.runtime.drivers.by_artifact import DriverByArtifact
from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.driver import Driver
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.environments.variables import CREDENTIALS_PATH
from agentkeep.runtime.invocations.protected_resources import PLACE as PROTECTED_RESOURCES
from agentkeep.runtime.operations import RuntimePlane
from agentkeep.runtime.pump import InvocationRoute
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.log import start_log
from agentkeep.service.mounts import Access, Mount
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

__all__ = ["EmbeddedPlatform", "OperatorCredentials", "run"]

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
ISSUER_PATH = "/oidc"
LOOPBACK = ("127.0.0.0/8", "::1/128", "localhost")
OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class OperatorCredentials:
    access_key_id: str
    secret_access_key: str = field(repr=False)


class EmbeddedPlatform:
    """The platform on `data_dir`, listening on loopback at `port` (0: any free one). `start`, then `stop`."""

    def __init__(self, data_dir: Path, port: int, settings: EmbeddedSettings) -> None:
        self.data_dir = data_dir
        self.settings = settings
        self.deployment = Deployment(settings.region, settings.account)
        self.port = port or _free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.operator: OperatorCredentials
        self._exit = AsyncExitStack()

    async def start(self) -> None:
        """Returns when it serves. Raises AgentkeepError or OSError with the reason; then nothing is left running."""
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise

    async def stop(self) -> None:
        """Lets answers under way end for a while, ends every session, then closes what is below them."""
        await self._exit.aclose()

    async def _start(self) -> None:
        # What is made first is closed last.
        clock = SystemClock()
        on_exit = self._exit.push_async_callback
        secure(self.data_dir)
        master_key = FileMasterKey.load_or_create(self.data_dir / "master.key")
        valkey = await self._exit.enter_async_context(EmbeddedValkey(self.data_dir / "valkey"))
        store = ValkeyKeyValueStore(valkey.url)
        on_exit(store.close)

        # Planes. They know each other only as ports.
        issuer_url = self.url + ISSUER_PATH
        identity_settings = IdentitySettings()
        runtime_settings = RuntimeSettings()
        if "public_url" not in runtime_settings.model_fields_set:
            runtime_settings = runtime_settings.model_copy(update={"public_url": self.url})
        observed = ObservabilitySettings()
        audit = KeyValueAudit(store, days=observed.audit_days)
        alerts = KeyValueAlerts(store, days=observed.alert_days)
        on_exit(alerts.close)
        alarm = Alarm(alerts, clock, audit)
        on_exit(alarm.close)
        key_settings = KeySettings()
        vault_keys = key_settings.services(master_key.derive(VAULT_KEYS))
        on_exit(vault_keys.close)
        identity = IdentityPlane(
            store,
            master_key,
            self.deployment,
            clock,
            identity_settings,
            trusted_issuers=(discovery_url(issuer_url),),
            public_url=runtime_settings.public_url,
            audit=audit,
            key_service=vault_keys,
            key_settings=key_settings,
            alarm=alarm,
        )
        on_exit(identity.close)
        issuer = DevelopmentIssuer(
            issuer_url, identity.keys, store, master_key, clock, identity_settings, identity.acting
        )
        usage = KeyValueUsage(store, days=observed.usage_days)
        spans = SqliteSpanStore(self.data_dir / "spans.db", observed.span_limits, clock)
        on_exit(spans.close)
        waiting_spans = SpanQueue(spans)
        on_exit(waiting_spans.close)
        on_exit(telemetry_export.start("agentkeep", waiting_spans).stop)
        prices = Prices(observed.prices)
        budgets = SessionBudgets(store, clock, default=observed.session_token_budget or None)
        gateway_settings = GatewaySettings()
        if "allowed_target_hosts" not in gateway_settings.model_fields_set:
            # Whoever makes targets here is at this machine, and so are the tools he tries.
            gateway_settings = gateway_settings.model_copy(update={"allowed_target_hosts": LOOPBACK})
        tools = ToolGateway(store, identity.outbound, gateway_settings, self.deployment, clock)
        on_exit(tools.close)
        control = gateway_control(
            store,
            self.deployment,
            clock,
            tools.lister,
            identity.authorizers,
            identity.workload_tokens,
            runtime_settings.public_url,
        )
        gateway = gateway_plane(gateway_settings, usage, budgets, clock)
        on_exit(gateway.close)
        memory_settings = MemorySettings()
        embedder = memory_settings.embedder()
        if embedder is not None:
            on_exit(embedder.close)
        records = SqliteSearchStore(
            self.data_dir / "records.db",
            dimensions=embedder.dimensions if embedder is not None else None,
            model=embedder.name if embedder is not None else "",
            clock=clock,
            cache_bytes=memory_settings.search_cache_mb * 1_000_000,
        )
        on_exit(records.close)
        key_service = key_settings.services(master_key.derive("memory-keys"), self.data_dir / "keys")
        on_exit(key_service.close)
        memory = MemoryPlane(
            store,
            self.deployment,
            clock,
            records,
            embedder,
            memory_settings,
            key_service=key_service,
            key_settings=key_settings,
            models=gateway.answers,
            audit=audit,
            vouching_issuers=(issuer_url,),
        )
        on_exit(memory.close)
        driver: Driver = ProcessDriver(self.data_dir / "driver", clock=clock)
        if runtime_settings.docker:
            driver = DriverByArtifact(driver, DockerDriver(self.data_dir / "docker", clock=clock))
        on_exit(driver.close)

        runtime_keys = key_settings.services(master_key.derive("runtime-keys"), self.data_dir / "keys")
        on_exit(runtime_keys.close)

        def session_endpoint(session: SessionRef) -> Callable[[], asyncio.Protocol]:
            return front.protocol(session)

        runtime = RuntimePlane(
            store,
            self.deployment,
            clock,
            driver,
            FolderArtifactStore(self.data_dir / "artifacts"),
            identity.keys,
            identity.authorizers,
            identity.workload_tokens,
            budgets,
            session_endpoint,
            runtime_settings,
            self.data_dir / "runtime",
            alarm,
            memory_sessions=memory.session_ends,
            audit=audit,
            key_service=runtime_keys,
            key_settings=key_settings,
            rewrite_store=store.rewrite_file,
        )

        # What serves them.
        authenticator = Authenticator(identity.keys, clock, alarm)
        otlp = OtlpApp(spans, observed)
        self._exit.callback(otlp.close)
        application = Application(
            Router(),
            Switch(SelfBackend([runtime, gateway, *control, *memory.operations, identity], alarm)),
            authenticator,
            mounts=[
                Mount(ISSUER_PATH, issuer.app, Access.PUBLIC),
                Mount(CALLBACK_PATH, identity.oauth2_callback, Access.PUBLIC),
                Mount(sts_app.PATH, identity.sts_app, Access.PUBLIC, sts_app.LARGEST_REQUEST),
                Mount(sts_app.PATH, identity.sts_app, Access.SESSION, sts_app.LARGEST_REQUEST),
                Mount("/roles", identity.roles_app, Access.OPERATOR),
                Mount("/artifacts", runtime.artifacts_app, Access.OPERATOR, runtime_settings.bundle_limit),
                Mount("/sessions", runtime.admin_app, Access.OPERATOR),
                Mount("/logs", runtime.admin_app, Access.OPERATOR),
                Mount("/memory", memory.operators_app, Access.OPERATOR),
                Mount("/usage", UsageApp(usage, budgets, prices), Access.OPERATOR),
                Mount("/traces", TracesApp(spans, usage, prices, alerts, waiting_spans.flush), Access.OPERATOR),
                Mount("/alerts", AlertsApp(alerts), Access.OPERATOR),
                Mount("/operator-keys", OperatorKeysApp(identity.keys, audit, clock), Access.OPERATOR),
                Mount("/audit-records", AuditRecordsApp(audit), Access.OPERATOR),
                Mount(CREDENTIALS_PATH, runtime.credentials_app, Access.SESSION),
                Mount("/runtimes", runtime.protected_resources, Access.PUBLIC, place=PROTECTED_RESOURCES),
                Mount("/v1", otlp, Access.SESSION),
                *tools.mounts(
                    Callers(authenticator, identity.authorizers, runtime.session_users), runtime_settings.public_url
                ),
            ],
            bearers=runtime.bearers,
            missing=lambda: _missing(store),
            fingerprint_key=master_key.derive("request-fingerprints"),
        )
        invocations = InvocationRoute(runtime.invocations, authenticator)
        front = Front(application, [invocations, runtime.egress])
        self._exit.callback(invocations.close)
        on_exit(front.close)
        await front.start()
        on_exit(runtime.stop)
        await runtime.start()
        await memory.start()
        await tools.start()
        operator = await identity.keys.operator_key(OPERATOR, acts_for_users=self.settings.operator_acts_for_users)
        self.operator = OperatorCredentials(operator.id, operator.secret)
        server = Server(front, HOST, self.port)
        on_exit(server.stop, self.settings.stop_timeout)
        await server.start()


async def _missing(store: KeyValueStore) -> list[str]:
    """For /readyz. Planes of one process fail together; the store is what can be away."""
    try:
        await store.get("readiness", "")
    except StoreUnavailable:
        return ["store"]
    return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def run(data_dir: Path, port: int, ready: Callable[[EmbeddedPlatform], None]) -> None:
    """Serves until SIGINT or SIGTERM. Calls `ready` when it does. Raises what `EmbeddedPlatform.start` raises."""
    settings = EmbeddedSettings()
    start_log(settings.log_level)
    uvloop.run(_run(EmbeddedPlatform(data_dir, port, settings), ready))


async def _run(platform: EmbeddedPlatform, ready: Callable[[EmbeddedPlatform], None]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    await platform.start()
    # What was made so far stays for good: collections need not look at it again.
    gc.collect()
    gc.freeze()
    try:
        ready(platform)
        await stopping.wait()
        logger.info("stopping")
    finally:
        await platform.stop()
