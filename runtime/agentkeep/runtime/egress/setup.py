"""From settings to a way out of sessions, or to none; and which of the two it is, in words."""

from __future__ import annotations

import logging

from agentkeep.core.clock import Clock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Audit
from agentkeep.runtime.egress.egress import Egress
from agentkeep.runtime.egress.limits import EgressLimits
from agentkeep.runtime.egress.names import SystemNames
from agentkeep.runtime.egress.records import EgressRecords
from agentkeep.runtime.egress.route import EgressRoute
from agentkeep.runtime.egress.rules import SETTING, EgressRules
from agentkeep.runtime.sessions.living import LivingSessions
from agentkeep.runtime.settings import RuntimeSettings

__all__ = ["described", "egress_route"]

logger = logging.getLogger(__name__)


def egress_route(
    settings: RuntimeSettings, living: LivingSessions, audit: Audit, clock: Clock, deployment: Deployment
) -> EgressRoute:
    """Reads the rules' file; raises EgressRulesInvalid."""
    rules = EgressRules.load(settings.egress_rules) if settings.egress_rules is not None else None
    logger.info(_said(settings, rules))
    limits = EgressLimits(
        settings.egress_connections_of_session,
        settings.egress_connections,
        settings.egress_connect_timeout,
        settings.egress_idle,
        settings.egress_life,
    )
    return EgressRoute(Egress(rules, living, EgressRecords(audit, clock, deployment), SystemNames(), limits))


def described(settings: RuntimeSettings) -> str:
    """Raises EgressRulesInvalid."""
    return _said(settings, EgressRules.load(settings.egress_rules) if settings.egress_rules is not None else None)


def _said(settings: RuntimeSettings, rules: EgressRules | None) -> str:
    if rules is None:
        return f"sessions reach nothing but their endpoint: no rules for egress are configured ({SETTING})"
    count = len(rules.rules)
    return f"sessions reach hosts outside by {count} rule{'s' if count != 1 else ''} ({settings.egress_rules})"
