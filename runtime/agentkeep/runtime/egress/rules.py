"""Which hosts an agent's sessions may reach: rules in a file.

    {"rules": [{"name": "AWS",
                "agents": ["reports"],                          by name or id; ["*"]: every agent
                "hosts": ["sts.eu-west-1.amazonaws.com", "*.s3.eu-west-1.amazonaws.com", "api.example.com:8443"],
                "networks": ["10.1.0.0/16"]}],                  not public, and yet where these hosts may be
     "default": "refuse"}

In order; the first that names the agent and the host decides.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, PlainValidator

from agentkeep.core.addresses import Network, is_never
from agentkeep.core.errors import AgentkeepError
from agentkeep.core.rules_file import Rule, Rules, RulesFile
from agentkeep.runtime.egress.destinations import Destination, HostPattern, parse_pattern

__all__ = ["SETTING", "EgressRule", "EgressRules", "EgressRulesInvalid"]

SETTING: Final = "AGENTKEEP_RUNTIME_EGRESS_RULES"


class EgressRulesInvalid(AgentkeepError):
    """The rules cannot be used; the message names every place. The platform does not start."""


def _network(text: object) -> Network:
    if not isinstance(text, str):
        raise ValueError("a network is text: 10.1.0.0/16")
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no network (10.1.0.0/16): {error}") from None
    if is_never(network):
        raise ValueError(f"{text}: link-local and metadata addresses are never opened")
    return network


class EgressRule(Rule):
    hosts: tuple[Annotated[HostPattern, PlainValidator(parse_pattern)], ...] = Field(min_length=1)
    networks: tuple[Annotated[Network, PlainValidator(_network)], ...] = ()

    def covers(self, runtime_id: str, wanted: Destination) -> bool:
        return self.is_for(runtime_id) and any(host.covers(wanted) for host in self.hosts)


class EgressRules(Rules[EgressRule]):
    def choose(self, runtime_id: str, wanted: Destination) -> EgressRule | None:
        """The first that matches; None: refuse."""
        return next((rule for rule in self.rules if rule.covers(runtime_id, wanted)), None)

    def name(self, runtime_id: str) -> bool:
        """Whether some rule is for this agent."""
        return any(rule.is_for(runtime_id) for rule in self.rules)

    @classmethod
    def load(cls, path: Path) -> EgressRules:
        """Does file I/O: call it while the platform starts. Raises EgressRulesInvalid."""
        return _FILE.load(path)

    @classmethod
    def parse(cls, text: bytes, called: str) -> EgressRules:
        return _FILE.parse(text, called)


_FILE: Final = RulesFile(
    EgressRules,
    "The rules for egress",
    f"leave {SETTING} out: sessions then reach nothing but their endpoint",
    "docs/development/egress.md",
    EgressRulesInvalid,
)
