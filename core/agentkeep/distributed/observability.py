"""The observability service: telemetry, use and budgets of sessions."""

from __future__ import annotations

from typing import Final

from agentkeep.core.alarm import Alarm
from agentkeep.distributed.opensearch import opensearch
from agentkeep.distributed.service import Composed, Service
from agentkeep.distributed.settings import load
from agentkeep.observability.alerts import KeyValueAlerts
from agentkeep.observability.alerts_app import AlertsApp
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.observability.audit_app import AuditRecordsApp
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.otlp import OtlpApp
from agentkeep.observability.prices import Prices
from agentkeep.observability.settings import ObservabilitySettings
from agentkeep.observability.spans import SpanStore
from agentkeep.observability.spans_opensearch import OpenSearchSpanStore
from agentkeep.observability.spans_sqlite import SqliteSpanStore
from agentkeep.observability.traces_app import TracesApp
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.observability.usage_app import UsageApp
from agentkeep.service.mounts import Access, Mount
from agentkeep.service.ports.catalogue import ALERTS, AUDIT, BUDGET, USAGE

__all__ = ["SETTINGS", "compose"]

#: Checked before the service waits for anything.
SETTINGS: Final = (ObservabilitySettings,)


async def compose(service: Service) -> Composed:
    settings = load(ObservabilitySettings)
    usage = KeyValueUsage(service.store, days=settings.usage_days)
    budgets = SessionBudgets(service.store, service.clock, default=settings.session_token_budget or None)
    spans = await _spans(service, settings)
    service.on_exit(spans.close)
    prices = Prices(settings.prices)
    alerts = KeyValueAlerts(service.store, days=settings.alert_days)
    service.on_exit(alerts.close)
    audit = KeyValueAudit(service.store, days=settings.audit_days)
    alarm = Alarm(alerts, service.clock, audit)
    service.on_exit(alarm.close)
    of_sessions, of_services = OtlpApp(spans, settings), OtlpApp(spans, settings, trusted=True)
    service.on_exit_call(of_sessions.close)
    service.on_exit_call(of_services.close)
    token = service.secrets.otlp_token
    return Composed(
        (),
        service.keys(),
        mounts=[
            Mount("/usage", UsageApp(usage, budgets, prices), Access.OPERATOR),
            Mount("/traces", TracesApp(spans, usage, prices, alerts), Access.OPERATOR),
            Mount("/alerts", AlertsApp(alerts), Access.OPERATOR),
            Mount("/audit-records", AuditRecordsApp(audit), Access.OPERATOR),
            Mount("/v1", of_sessions, Access.SESSION),
        ],
        ports={USAGE: usage, BUDGET: budgets, ALERTS: alerts, AUDIT: audit},
        alarm=alarm,
        trusted_mounts={b"/v1/": of_services},
        trusted_bearers={b"/v1/": token} if token is not None else {},
    )


async def _spans(service: Service, settings: ObservabilitySettings) -> SpanStore:
    if service.settings.search_url is not None:
        client = await opensearch(service, service.settings.search_url)
        return OpenSearchSpanStore(client, settings.span_limits, service.clock, shards=service.settings.search_shards)
    service.data.mkdir(parents=True, exist_ok=True)
    return SqliteSpanStore(service.data / "spans.db", settings.span_limits, service.clock)
