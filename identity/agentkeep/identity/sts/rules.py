"""Which of AWS's roles a user's session gets: rules over the user's verified claims and the agent, in a file.

    {"rules": [{"name": "finance",
                "agents": ["reports"],                          by name or id; ["*"]: every agent
                "issuer": "https://login.example.com",
                "claims": {"groups": {"contains": "finance"}, "email_verified": true},
                "role": "arn:aws:iam::111122223333:role/finance-agent",
                "policy": {"Version": "2012-10-17", "Statement": [...]},
                "policyArns": ["arn:aws:iam::aws:policy/ReadOnlyAccess"]},
               {"name": "no AWS", "agents": ["chat"], "keys": "platform"}],
     "default": "refuse"}

In order; the first that matches decides. A rule sees the session's agent, as its listener proves it, and the token the
user brought: nothing that an agent, or whoever calls it, says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import orjson
from pydantic import Field, StrictStr, model_validator

from agentkeep.core.call import User
from agentkeep.core.errors import AgentkeepError
from agentkeep.core.rules_file import Rule, Rules, RulesFile, agent_name
from agentkeep.identity.inbound.claim_conditions import ClaimConditions, first_unmet

__all__ = ["RoleRule", "StsRules", "StsRulesInvalid"]

_LONGEST_POLICY: Final = 2048  # characters; the service model's
_ROLE: Final = r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[!-~]{1,512}$"
_POLICY_ARN: Final = r"^arn:aws[a-z-]*:iam::([0-9]{12}|aws):policy/[!-~]{1,512}$"
_PLACEHOLDER: Final = re.compile(r"\$\{agentkeep:([^}]*)\}")
_PLACEHOLDERS: Final = ("user", "agent")


class StsRulesInvalid(AgentkeepError):
    """The rules cannot be used; the message names every place. The platform does not start."""


class RoleRule(Rule):
    """`role`, or `keys: platform`: the platform's own keys, with which the session is nobody to AWS."""

    issuer: StrictStr | None = Field(None, min_length=1, max_length=2048)
    claims: ClaimConditions = Field(default_factory=dict)
    role: StrictStr | None = Field(None, pattern=_ROLE)
    policy: dict[str, Any] | None = None
    policy_arns: tuple[Annotated[StrictStr, Field(pattern=_POLICY_ARN)], ...] = Field(
        (), max_length=10, alias="policyArns"
    )
    keys: Literal["platform"] | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> RoleRule:
        if (self.role is None) == (self.keys is None):
            raise ValueError('must have either "role", the ARN of an IAM role, or "keys": "platform"')
        if self.role is not None and self.issuer is None:
            raise ValueError(
                'must have "issuer", the iss of the tokens it is for: others\' users may have the same claims'
            )
        if self.keys is not None and (self.policy is not None or self.policy_arns):
            raise ValueError("policy and policyArns narrow a role; the platform's own keys have none")
        if self.policy is not None:
            text = orjson.dumps(self.policy).decode()
            unknown = sorted(set(_PLACEHOLDER.findall(text)) - set(_PLACEHOLDERS))
            if unknown:
                known = ", ".join(f"${{agentkeep:{name}}}" for name in _PLACEHOLDERS)
                raise ValueError(f"policy names {', '.join(unknown)!r} after agentkeep:; there are {known}")
            if len(text) > _LONGEST_POLICY:
                raise ValueError(f"policy is longer than {_LONGEST_POLICY} characters, which is STS's limit")
        return self

    def matches(self, runtime_id: str, claims: Mapping[str, Any]) -> bool:
        """`claims`: those of the user's token; none where the user brought none."""
        if not self.is_for(runtime_id):
            return False
        if self.issuer is not None and claims.get("iss") != self.issuer:
            return False
        return first_unmet(self.claims, claims) is None

    def session_policy(self, runtime_id: str, user: User) -> str | None:
        """The policy as STS takes it, for this user and agent."""
        if self.policy is None:
            return None
        # Percent-encoded, so that no user's name is a wildcard, a variable, or the beginning of another's path.
        values = {"user": quote(user.id, safe="@"), "agent": agent_name(runtime_id)}
        return _PLACEHOLDER.sub(lambda found: values[found[1]], orjson.dumps(self.policy).decode())


class StsRules(Rules[RoleRule]):
    def choose(self, runtime_id: str, claims: Mapping[str, Any]) -> RoleRule | None:
        """The first that matches; None: refuse."""
        return next((rule for rule in self.rules if rule.matches(runtime_id, claims)), None)

    @classmethod
    def load(cls, path: Path) -> StsRules:
        """Does file I/O: call it while the platform starts. Raises StsRulesInvalid."""
        return _FILE.load(path)

    @classmethod
    def parse(cls, text: bytes, called: str) -> StsRules:
        return _FILE.parse(text, called)


_FILE: Final = RulesFile(
    StsRules,
    "The rules for STS",
    "leave AGENTKEEP_IDENTITY_STS_RULES out: sessions then get the platform's own keys",
    "docs/development/sts.md",
    StsRulesInvalid,
)
