"""A session's user in AWS: the user's own token for the keys of the role that a rule says. Or a refusal, and no third
thing: what comes instead where AWS does not answer is nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    AccessDeniedException,
    ProviderError,
    ServiceError,
    ServiceUnavailableException,
    StoreUnavailable,
    UnauthorizedException,
)
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Audit, AuditRecord
from agentkeep.core.telemetry import step
from agentkeep.core.token_claims import claims_of
from agentkeep.identity.sts.client import AssumedRole, RoleRequest, SecurityTokenService, StsRefused
from agentkeep.identity.sts.rules import RoleRule, StsRules
from agentkeep.identity.sts.sessions import role_session_name

__all__ = ["RoleExchange"]

logger = logging.getLogger(__name__)

EXCHANGED: Final = "sts-exchange"
REFUSED: Final = "sts-refusal"
#: Seconds in which a session's refusal, said again, is not recorded again: an agent may ask all the time.
_SAID_AGAIN: Final = 60.0
_MOST_SAID: Final = 10_000

_AGAIN: Final = "Nothing is given in its place. Try again in a moment"
#: STS's refusals that trying again does not mend, and what does. {rule}, {issuer}.
_REASONS: Final = {
    "InvalidIdentityToken": "AWS does not accept the user's token. Its issuer, {issuer}, must be an OIDC identity "
    "provider of the role's account, and its audience one of that provider's",
    "IDPRejectedClaim": "the user's identity provider rejected the token, or has revoked it. Log in again",
    "AccessDenied": "AWS does not let this user assume the role of rule {rule!r}. The role's trust policy must name "
    "the token's issuer, and its conditions hold for this user",
    "MalformedPolicyDocument": "AWS refuses the session policy of rule {rule!r} as malformed. Mend it in the rules",
    "PackedPolicyTooLarge": "the session policy of rule {rule!r}, with the tags in the user's token, is larger than "
    "AWS takes. Shorten the policy, or have fewer tags issued",
    "RegionDisabledException": "STS is not active in the region it is asked in. Activate it for the account, or set "
    "AGENTKEEP_IDENTITY_STS_REGION",
}
_EXPIRED: Final = ("ExpiredTokenException", "ExpiredToken")


class RoleExchange:
    """By `rules`, at `sts`. Each exchange and each refusal is an audit record."""

    def __init__(
        self, rules: StsRules, sts: SecurityTokenService, audit: Audit, deployment: Deployment, clock: Clock
    ) -> None:
        self._rules = rules
        self._sts = sts
        self._audit = audit
        self._deployment = deployment
        self._clock = clock
        self._said: dict[tuple[SessionRef, str], float] = {}  # oldest first

    async def assume(
        self, session: SessionRef, user: User | None, user_token: str | None
    ) -> tuple[AssumedRole, str] | None:
        """The role's keys, and the role's ARN. None: a rule says that this session gets the platform's own.

        `user_token` was verified when `user` was proved with it; AWS verifies it again. Raises UnauthorizedException
        (it has expired), AccessDeniedException (no rule, not the user's, AWS refuses), ServiceUnavailableException (STS
        does not answer, or not now) and StoreUnavailable (the exchange cannot be put on record: its keys are dropped).
        """
        claims = claims_of(user_token) if user_token is not None else {}
        if user_token is not None and (
            user is None or claims.get("sub") != user.id or claims.get("iss") != user.issuer
        ):
            raise await self._refused(
                session, user, None, AccessDeniedException("The token is not the session's user's")
            )
        rule = self._rules.choose(session.runtime_id, claims)
        if rule is None:
            raise await self._refused(session, user, None, _without_rule(user_token))
        if rule.role is None:
            return None
        assert user is not None and user_token is not None, "a rule with a role has an issuer, and so matches a token"
        try:
            assumed = await self._assume(session, user, user_token, rule, claims)
        except ServiceError as refused:
            raise await self._refused(session, user, rule, refused) from refused.__cause__
        await self._audit.record(self._record(EXCHANGED, "Got AWS credentials for a user by STS", session, user, {
            "rule": rule.name,
            "roleArn": rule.role,
            "assumedRole": assumed.arn,
            "accessKeyId": assumed.access_key_id,
            "issuer": user.issuer or "",
            "audience": assumed.audience,
            "expires": assumed.expiration.isoformat(),
        }))  # fmt: skip
        return assumed, rule.role

    async def close(self) -> None:
        await self._sts.close()

    async def _assume(
        self, session: SessionRef, user: User, token: str, rule: RoleRule, claims: Mapping[str, Any]
    ) -> AssumedRole:
        expires = claims.get("exp")
        if not isinstance(expires, int | float) or expires <= self._clock.now().timestamp():
            raise _expired()
        assert rule.role is not None
        request = RoleRequest(
            rule.role,
            role_session_name(user, session.runtime_id),
            token,
            rule.session_policy(session.runtime_id, user),
            rule.policy_arns,
        )
        try:
            with step("identity", "AssumeRoleWithWebIdentity", session, user.id, {"aws.role.arn": rule.role}):
                assumed = await self._sts.assume(request)
            if assumed.subject != user.id or assumed.expiration <= self._clock.now():
                raise ProviderError("STS answered for another user, or keys that are no longer good")
        except StsRefused as refused:
            raise _answer(refused, rule, user) from refused
        except ProviderError as error:
            logger.warning("STS gave nothing for rule %s: %s", rule.name, error)
            raise ServiceUnavailableException(
                f"AWS STS, from which this session's credentials come, does not answer as it should. {_AGAIN}"
            ) from error
        return assumed

    async def _refused(
        self, session: SessionRef, user: User | None, rule: RoleRule | None, error: ServiceError
    ) -> ServiceError:
        """The error, put on record. That it cannot be does not make it less of a refusal."""
        cause = error.__cause__
        code = cause.code if isinstance(cause, StsRefused) else error.code
        named = rule.name if rule is not None else "none"
        logger.warning(
            "session %s of %s gets no AWS credentials: rule %s, %s", session.session_id, session.runtime_id, named,
            cause or code,
        )  # fmt: skip
        if self._is_said(session, code):
            return error
        details = {"rule": named, "code": code, "issuer": (user.issuer if user is not None else None) or ""}
        try:
            await self._audit.record(
                self._record(REFUSED, "Refused AWS credentials for a session", session, user, details)
            )
        except StoreUnavailable as unavailable:
            logger.warning("the refusal is not on record: %s", unavailable)
        return error

    def _is_said(self, session: SessionRef, code: str) -> bool:
        now = self._clock.monotonic()
        if now < self._said.get((session, code), 0):
            return True
        self._said.pop((session, code), None)
        self._said[session, code] = now + _SAID_AGAIN
        if len(self._said) > _MOST_SAID:
            del self._said[next(iter(self._said))]
        return False

    def _record(
        self, kind: str, summary: str, session: SessionRef, user: User | None, details: Mapping[str, str]
    ) -> AuditRecord:
        principal = f"arn:aws:sts::{self._deployment.account}:assumed-role/{session.runtime_id}/{session.session_id}"
        return AuditRecord(
            kind, summary, principal, session, user.id if user is not None else None, self._clock.now(), details
        )


def _without_rule(user_token: str | None) -> AccessDeniedException:
    if user_token is None:
        return AccessDeniedException(
            "This platform gives sessions AWS credentials by their user's own token, and this session has none. Invoke "
            "the agent with the user's token (a runtime with customJWTAuthorizer), or have the operator add a rule "
            'with "keys": "platform" for this agent'
        )
    return AccessDeniedException(
        "No rule gives this user AWS credentials with this agent, and whom no rule names is refused. The operator's "
        "rules for STS (AGENTKEEP_IDENTITY_STS_RULES) say who gets which role"
    )


def _expired() -> UnauthorizedException:
    return UnauthorizedException(
        "The user's token, by which AWS gives this session its credentials, has expired. Invoke the session with a new "
        "token of the same user"
    )


def _answer(refused: StsRefused, rule: RoleRule, user: User) -> ServiceError:
    if refused.code in _EXPIRED:
        return _expired()
    if refused.passing:
        return ServiceUnavailableException(
            f"AWS STS cannot give this session its credentials now ({refused.code}). {_AGAIN}"
        )
    reason = _REASONS.get(refused.code)
    if reason is None:
        return AccessDeniedException(
            f"AWS STS refuses this session's credentials ({refused.code}). See rule {rule.name!r} of the rules for STS"
        )
    said = reason.format(rule=rule.name, issuer=user.issuer)
    return AccessDeniedException(f"This session gets no AWS credentials ({refused.code}): {said}")
