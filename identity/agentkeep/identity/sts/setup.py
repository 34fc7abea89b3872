"""From settings to an exchange of users' tokens for AWS's keys, or to none; and which of the two it is, in words."""

from __future__ import annotations

from agentkeep.core.clock import Clock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Audit
from agentkeep.identity.inbound.provider_documents import DocumentFetcher
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.sts.client import SecurityTokenService
from agentkeep.identity.sts.exchange import RoleExchange
from agentkeep.identity.sts.rules import StsRules

__all__ = ["described", "role_exchange"]

_LARGEST_ANSWER = 65_536


def role_exchange(
    settings: IdentitySettings, deployment: Deployment, audit: Audit | None, clock: Clock
) -> RoleExchange | None:
    """None where no rules are configured. Reads their file; raises StsRulesInvalid."""
    if settings.sts_rules is None:
        return None
    assert audit is not None, "an exchange nobody can look up later is not made"
    rules = StsRules.load(settings.sts_rules)
    fetcher = DocumentFetcher(settings.sts_timeout, _LARGEST_ANSWER)
    return RoleExchange(rules, SecurityTokenService(_endpoint(settings, deployment), fetcher), audit, deployment, clock)


def described(settings: IdentitySettings, deployment: Deployment) -> str:
    """Raises StsRulesInvalid."""
    if settings.sts_rules is None:
        return (
            "sessions get keys that this platform issues, and AWS does not know: no rules for STS are configured "
            "(AGENTKEEP_IDENTITY_STS_RULES)"
        )
    count = len(StsRules.load(settings.sts_rules).rules)
    return (
        f"sessions get their users' credentials from {_endpoint(settings, deployment)} by {count} "
        f"rule{'s' if count != 1 else ''} ({settings.sts_rules}), or none"
    )


def _endpoint(settings: IdentitySettings, deployment: Deployment) -> str:
    if settings.sts_endpoint is not None:
        return settings.sts_endpoint
    region = settings.sts_region or deployment.region
    return f"https://sts.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
