"""Roles: what people and applications may do here, and by which tokens they prove that a role is theirs; from a file.

    {"roles": [{"name": "operators",
                "trust": [{"issuer": "https://login.example.com",
                           "audiences": ["agentkeep"],
                           "claims": {"groups": {"contains": "platform"}},
                           "sessionName": "email"}],             the claim that RoleSessionName must be equal to
                "policies": ["deployer", "auditor"],             the platform's own (shipped_policies.py)
                "policy": {"Version": "2012-10-17", "Statement": [...]},
                "maxSessionDuration": 3600}]}

A role is trusted with a token when one entry of its `trust` is met as a whole. It may do what its policies allow
together, and nothing else.
"""

from __future__ import annotations

import re
from base64 import b32encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pydantic import Field, StrictInt, StrictStr, field_validator, model_validator

from agentkeep.core.call import Caller, CallerKind
from agentkeep.core.errors import AgentkeepError, ValidationException
from agentkeep.core.grants import Grant
from agentkeep.core.identifiers import Deployment
from agentkeep.core.json_documents import parse_json
from agentkeep.core.policies import Policy
from agentkeep.core.rules_file import RulesFile, Strict, twice
from agentkeep.identity.access_keys.records import RoleSession
from agentkeep.identity.inbound.claim_conditions import ClaimConditions
from agentkeep.identity.inbound.provider_documents import refuse_unsafe_url
from agentkeep.identity.roles.policies import parse_permissions
from agentkeep.identity.roles.shipped_policies import SHIPPED, shipped

__all__ = ["LONGEST", "SHORTEST", "Role", "Roles", "RolesInvalid", "Trust", "unique_id"]

#: Seconds that keys of a role live; STS's own limits.
SHORTEST: Final = 900
LONGEST: Final = 43_200
_NAME: Final = r"^[A-Za-z0-9_+=,.@-]{1,64}$"
#: An agent runtime's id. Sessions' principals are assumed-role/<runtime id>/<session id>.
_RUNTIME_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,47}-[A-Za-z0-9]{10}")
_WELL_KNOWN: Final = "/.well-known/openid-configuration"


class RolesInvalid(AgentkeepError):
    """The roles cannot be used; the message names every place. The platform does not start."""


class Trust(Strict):
    """Whose tokens, made for whom, saying what. `discovery_url`: where the issuer's keys are found; without it, at the
    issuer's own address."""

    issuer: StrictStr = Field(min_length=1, max_length=2048)
    discovery_url: StrictStr | None = Field(None, alias="discoveryUrl")
    audiences: tuple[StrictStr, ...] = Field(min_length=1)
    claims: ClaimConditions = Field(default_factory=dict)
    session_name: StrictStr | None = Field(None, alias="sessionName", min_length=1)

    @model_validator(mode="after")
    def _safe(self) -> Trust:
        refuse_unsafe_url(self.url)
        return self

    @property
    def described(self) -> str:
        """Who is trusted, in words."""
        whose = f"tokens of {self.issuer} for {' or '.join(self.audiences)}"
        whose += (
            f", by their claims {', '.join(self.claims)}" if self.claims else ", whoever's they are: no claim is asked"
        )
        return f"{whose}; the session is called as in {self.session_name}" if self.session_name else whose

    @property
    def url(self) -> str:
        return self.discovery_url or self.issuer.rstrip("/") + _WELL_KNOWN


class _Written(Strict):
    """A role as the file has it."""

    name: StrictStr = Field(pattern=_NAME)
    trust: tuple[Trust, ...] = Field(min_length=1)
    policies: tuple[StrictStr, ...] = ()
    policy: dict[str, Any] | None = None
    max_session_duration: StrictInt = Field(3600, alias="maxSessionDuration", ge=SHORTEST, le=LONGEST)

    @field_validator("name")
    @classmethod
    def _no_runtime(cls, name: str) -> str:
        if _RUNTIME_ID.fullmatch(name):
            raise ValueError("has the form of an agent runtime's id, whose sessions it would be taken for: change it")
        return name

    @field_validator("policies")
    @classmethod
    def _known(cls, policies: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(policies) - set(SHIPPED)):
            raise ValueError(f"there is no policy {', '.join(unknown)!r}; there are {', '.join(SHIPPED)}")
        return policies

    @model_validator(mode="after")
    def _may_something(self) -> _Written:
        if not self.policies and self.policy is None:
            raise ValueError('must have "policies", "policy" or both: without, the role may do nothing')
        return self


class _File(Strict):
    roles: tuple[_Written, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> _File:
        if named := twice(role.name for role in self.roles):
            raise ValueError(f"several roles are called {named}")
        urls: dict[str, str] = {}
        for trust in (trust for role in self.roles for trust in role.trust):
            if urls.setdefault(trust.issuer, trust.url) != trust.url:
                raise ValueError(f"issuer {trust.issuer} has one discoveryUrl here and another there")
        return self


@dataclass(frozen=True, slots=True)
class Role:
    """`longest`: seconds that its keys may live."""

    name: str
    arn: str
    trust: tuple[Trust, ...]
    policies: tuple[Policy, ...] = field(repr=False)
    shipped: tuple[str, ...]
    longest: int


class Roles:
    """Those of a deployment; none without a file."""

    def __init__(self, roles: Iterable[Role] = (), deployment: Deployment | None = None) -> None:
        self._deployment = deployment or Deployment()
        self._roles = {role.name: role for role in roles}

    def listed(self) -> dict[str, Any]:
        """As listings show them."""
        return {
            "roles": [
                {
                    "name": role.name,
                    "arn": role.arn,
                    "policies": [*role.shipped, *(["its own"] if len(role.policies) > len(role.shipped) else [])],
                    "maxSessionDuration": role.longest,
                    "issuers": sorted({trust.issuer for trust in role.trust}),
                }
                for role in self._roles.values()
            ]
        }

    def named(self, name: str) -> Role | None:
        return self._roles.get(name)

    def by_arn(self, arn: str) -> Role | None:
        role = self._roles.get(arn.rpartition("/")[2])
        return role if role is not None and role.arn == arn else None

    def discovery_url(self, issuer: str) -> str | None:
        """Where the keys of an issuer are found that some role trusts; None: none does."""
        return next((one.url for role in self._roles.values() for one in role.trust if one.issuer == issuer), None)

    def caller(self, session: RoleSession, key_id: str) -> Caller | None:
        """Who calls with a key of this role. None: there is no such role any more, or what its keys were asked for with
        cannot be honoured now."""
        role = self._roles.get(session.role)
        if role is None:
            return None
        try:
            narrowed = None if session.policy is None else self.session_policy(session.policy)
        except ValidationException:
            return None
        principal = f"arn:aws:sts::{self._deployment.account}:assumed-role/{role.name}/{session.name}"
        return Caller(
            CallerKind.ROLE, principal, key_id, grant=Grant(principal, self._deployment, role.policies, narrowed)
        )

    def session_policy(self, text: str) -> Policy:
        """Raises ValidationException."""
        try:
            document = parse_json(text)
        except ValueError as error:
            raise ValidationException(f"The policy is not JSON as it must be: {error}") from None
        return parse_permissions(document, self._deployment)

    @classmethod
    def load(cls, path: Path, deployment: Deployment) -> Roles:
        """Does file I/O: call it while the platform starts. Raises RolesInvalid."""
        return cls._of(_FILE.load(path), str(path), deployment)

    @classmethod
    def parse(cls, text: bytes, called: str, deployment: Deployment) -> Roles:
        return cls._of(_FILE.parse(text, called), called, deployment)

    @classmethod
    def _of(cls, written: _File, called: str, deployment: Deployment) -> Roles:
        return cls([_role(role, called, deployment) for role in written.roles], deployment)


_FILE: Final = RulesFile(
    _File,
    "The roles",
    "leave AGENTKEEP_IDENTITY_ROLES out: then there are none",
    "docs/development/roles.md",
    RolesInvalid,
)


def _role(written: _Written, called: str, deployment: Deployment) -> Role:
    policies = [parse_permissions(shipped(name, deployment), deployment) for name in written.policies]
    if written.policy is not None:
        try:
            policies.append(parse_permissions(written.policy, deployment))
        except ValidationException as error:
            raise RolesInvalid(f"The roles, {called}, are wrong: role {written.name}: {error.message}") from None
    arn = f"arn:aws:iam::{deployment.account}:role/{written.name}"
    return Role(written.name, arn, written.trust, tuple(policies), written.policies, written.max_session_duration)


def unique_id(prefix: str, name: str) -> str:
    """An id in IAM's form (`AROA` for roles, `AIDA` for users) of what has none: always the same of one name."""
    return prefix + b32encode(sha256(name.encode()).digest()).decode()[:17]
