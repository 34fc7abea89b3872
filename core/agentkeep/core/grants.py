"""What a role's keys are allowed: its policies, narrowed by those the keys were asked for with.

Nothing is allowed that no statement of the role's policies allows, nor anything that a session policy, where there is
one, does not; an explicit deny in either outweighs all. The wording of refusals is AWS's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from agentkeep.core.errors import RoleRefused
from agentkeep.core.identifiers import Deployment
from agentkeep.core.policies import Asked, Decision, Policy, decide, pattern

__all__ = ["ACT_FOR_USER", "Grant", "user_arn"]

ACT_FOR_USER: Final = "agentkeep:ActForUser"
_NOBODY: Final[Mapping[str, str]] = {}


def user_arn(account: str, user_id: str) -> str:
    """A user as policies name one, for `agentkeep:ActForUser`."""
    return f"arn:aws:agentkeep::{account}:user/{user_id}"


@dataclass(frozen=True, slots=True)
class Grant:
    """`principal`: whose it is (ARN). `policies`: the role's. `session_policy`: what the keys were asked for with;
    None: they may all that the role may."""

    principal: str
    deployment: Deployment
    policies: tuple[Policy, ...] = field(repr=False)
    session_policy: Policy | None = field(default=None, repr=False)

    def allows(self, action: str, resource: str, context: Mapping[str, str] = _NOBODY) -> bool:
        return self._refusal(Asked(action, resource, context=context)) is None

    def require(self, action: str, resources: Iterable[str], context: Mapping[str, str] = _NOBODY) -> None:
        """Raises RoleRefused unless `action` is allowed on each of the resources; on none, on whatever."""
        for resource in tuple(resources) or ("*",):
            refusal = self._refusal(Asked(action, resource, context=context))
            if refusal is not None:
                raise RoleRefused(
                    f"User: {self.principal} is not authorized to perform: {action} on resource: {resource} {refusal}",
                    action,
                    resource,
                )

    def _refusal(self, asked: Asked) -> str | None:
        own = decide(self.policies, asked)
        session = Decision.ALLOW if self.session_policy is None else decide((self.session_policy,), asked)
        if Decision.DENY in (own, session):
            kind = "an identity-based policy" if own is Decision.DENY else "a session policy"
            return f"with an explicit deny in {kind}"
        if own is not Decision.ALLOW:
            return f"because no identity-based policy allows the {asked.action} action"
        if session is not Decision.ALLOW:
            return f"because no session policy allows the {asked.action} action"
        return None

    # Users.

    def acts_for(self, user_id: str | None) -> bool:
        """None: for every user, whoever it turns out to be."""
        if user_id is not None:
            return self.allows(ACT_FOR_USER, user_arn(self.deployment.account, user_id))
        return all(_of_all(policies, self._anyone) for policies in self._groups)

    def require_acting(self, operation: str) -> None:
        """Raises RoleRefused where there is no user at all it may act for."""
        if not all(any(s.allows and _acts(s.actions) for p in g for s in p.statements) for g in self._groups):
            raise self._refused(operation, "*")

    def require_acting_for(self, operation: str, user_id: str | None) -> None:
        """Raises RoleRefused."""
        if not self.acts_for(user_id):
            raise self._refused(operation, "*" if user_id is None else user_id)

    @property
    def _groups(self) -> tuple[tuple[Policy, ...], ...]:
        return (self.policies,) if self.session_policy is None else (self.policies, (self.session_policy,))

    @property
    def _anyone(self) -> str:
        return user_arn(self.deployment.account, "*")

    def _refused(self, operation: str, user_id: str) -> RoleRefused:
        whom = user_arn(self.deployment.account, user_id)
        return RoleRefused(
            f"User: {self.principal} is not authorized to perform: {ACT_FOR_USER} on resource: {whom}, which "
            f"{operation} needs, since it concerns users' data. Call it as the user (with the user's token, or from "
            "the user's session), or have the role allowed it",
            ACT_FOR_USER,
            whom,
        )


def _acts(actions: Iterable[str]) -> bool:
    return any(pattern(one).fullmatch(ACT_FOR_USER.lower()) for one in actions)


def _of_all(policies: Iterable[Policy], anyone: str) -> bool:
    """Whether every user is allowed: by a statement that names all, and no deny that might be about one."""
    about = [s for policy in policies for s in policy.statements if _acts(s.actions)]
    whole = any(
        s.allows and not s.conditions and s.resources is not None and any(_covers(one, anyone) for one in s.resources)
        for s in about
    )
    return whole and all(s.allows for s in about)


def _covers(named: str, anyone: str) -> bool:
    """Whether the pattern `named` covers every user's ARN. `anyone` ends in the wildcard; a pattern that does not is
    about some users only."""
    return named.endswith("*") and pattern(named).fullmatch(anyone[:-1]) is not None
