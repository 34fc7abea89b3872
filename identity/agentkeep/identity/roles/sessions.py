"""Keys of a role for the token of whoever is trusted with it (AssumeRoleWithWebIdentity); or a refusal, on record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from agentkeep.core.acting import Tally
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    AgentkeepError,
    ConflictException,
    ServiceUnavailableException,
    StoreUnavailable,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.core.ports import AccessKey, Audit, AuditRecord
from agentkeep.core.token_claims import claims_of
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.access_keys.records import RoleSession
from agentkeep.identity.inbound.claim_conditions import claim, first_unmet
from agentkeep.identity.inbound.jwt import JwtVerifier, VerifiedToken, unverified_issuer
from agentkeep.identity.inbound.providers import OpenIdProviders
from agentkeep.identity.roles.roles import Role, Roles, Trust
from agentkeep.identity.settings import IdentitySettings

__all__ = ["ASSUMED", "REFUSED", "AssumeRequest", "Assumed", "RoleSessions", "StsFault"]

logger = logging.getLogger(__name__)

ASSUMED: Final = "role-assumed"
REFUSED: Final = "role-refusal"
_NOT_AUTHORIZED: Final = "Not authorized to perform sts:AssumeRoleWithWebIdentity"


class StsFault(AgentkeepError):
    """A refusal by one of STS's codes. `refused`: whose token it was, once that is verified."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status
        self.refused: VerifiedToken | None = None


@dataclass(frozen=True, slots=True)
class AssumeRequest:
    """AssumeRoleWithWebIdentity's, within the service model's limits. `seconds`: None where it is left to the role."""

    role_arn: str
    session_name: str
    token: str = field(repr=False)
    seconds: int | None = None
    policy: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Assumed:
    key: AccessKey
    role: Role
    session: RoleSession
    audience: str


class RoleSessions:
    def __init__(
        self,
        roles: Roles,
        providers: OpenIdProviders,
        verifier: JwtVerifier,
        keys: AccessKeys,
        audit: Audit,
        clock: Clock,
        settings: IdentitySettings,
    ) -> None:
        self._roles = roles
        self._providers = providers
        self._verifier = verifier
        self._keys = keys
        self._audit = audit
        self._refusals = Tally(audit, clock)
        self._clock = clock
        self._settings = settings

    async def assume(self, request: AssumeRequest) -> Assumed:
        """Raises StsFault, and StoreUnavailable where it cannot be put on record: then nothing is given."""
        try:
            return await self._assume(request)
        except StsFault as fault:
            await self._note(request, fault)
            raise

    async def close(self) -> None:
        await self._refusals.close()

    async def _assume(self, request: AssumeRequest) -> Assumed:
        verified = await self._verified(request.token)
        try:
            return await self._assume_by(verified, request)
        except StsFault as fault:
            fault.refused = verified
            raise

    async def _assume_by(self, verified: VerifiedToken, request: AssumeRequest) -> Assumed:
        role = self._roles.by_arn(request.role_arn)
        if role is None:
            # The same words as where the role is not for this token: whoever tries learns of no role.
            raise StsFault("AccessDenied", _NOT_AUTHORIZED, 403)
        audience = self._trusted(role, verified, request.session_name)
        seconds = min(3600, role.longest) if request.seconds is None else request.seconds
        if seconds > role.longest:
            raise StsFault(
                "ValidationError",
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role, which is "
                f"{role.longest}",
            )
        if request.policy is not None:
            try:
                self._roles.session_policy(request.policy)
            except ValidationException as error:
                raise StsFault("MalformedPolicyDocument", error.message) from None
        session = RoleSession(role.name, request.session_name, verified.subject, verified.issuer, request.policy)
        expires = (self._clock.now() + timedelta(seconds=seconds)).replace(microsecond=0)
        try:
            key = await self._keys.issue_for_role(session, expires)
        except ConflictException as error:
            raise StsFault("AccessDenied", f"{error.message}: try again", 403) from None
        await self._audit.record(self._record(ASSUMED, f"assumed role {role.name!r}", key.caller.principal, {
            "roleArn": role.arn,
            "sessionName": request.session_name,
            "subject": verified.subject[:256],
            "issuer": verified.issuer,
            "audience": audience,
            "accessKeyId": key.id,
            "expires": expires.isoformat(),
            "sessionPolicy": "none" if request.policy is None else "given",
        }))  # fmt: skip
        return Assumed(key, role, session, audience)

    async def _verified(self, token: str) -> VerifiedToken:
        try:
            issuer = unverified_issuer(token, self._settings.token_limit)
        except UnauthorizedException as error:
            raise StsFault("InvalidIdentityToken", error.message) from None
        url = None if issuer is None else self._roles.discovery_url(issuer)
        if url is None:
            raise StsFault(
                "InvalidIdentityToken",
                "No OpenIDConnect provider found in your account for the token's issuer: no role here trusts it",
            )
        try:
            return await self._verifier.verify(token, self._providers.get(url))
        except ServiceUnavailableException as error:
            raise StsFault("IDPCommunicationError", error.message) from None
        except UnauthorizedException as error:
            code = "ExpiredTokenException" if self._has_expired(token) else "InvalidIdentityToken"
            raise StsFault(code, error.message) from None

    def _has_expired(self, token: str) -> bool:
        expires = claims_of(token).get("exp")
        now = self._clock.now().timestamp() - self._settings.clock_skew
        return isinstance(expires, int | float) and now >= expires

    def _trusted(self, role: Role, verified: VerifiedToken, session_name: str) -> str:
        """The audience by which the role is trusted with this token."""
        trusts = [trust for trust in role.trust if trust.issuer == verified.issuer]
        if not trusts:
            raise StsFault("AccessDenied", _NOT_AUTHORIZED, 403)
        said = verified.claims.get("aud")
        audiences = [said] if isinstance(said, str) else said if isinstance(said, list) else []
        fault = StsFault(
            "InvalidIdentityToken",
            "Incorrect token audience: none in the token's aud is one that the role's trust policy names for it",
        )
        for trust in trusts:
            audience = next((one for one in trust.audiences if one in audiences), None)
            if audience is None:
                continue
            unmet = _unmet(trust, verified, session_name)
            if unmet is None:
                return audience
            fault = StsFault("AccessDenied", f"{_NOT_AUTHORIZED}: {unmet}", 403)
        raise fault

    # On record.

    async def _note(self, request: AssumeRequest, fault: StsFault) -> None:
        """Counted by code, role and whose token it was, so that whoever tries all day fills no store. That it cannot be
        recorded does not make it less of a refusal."""
        role = self._roles.by_arn(request.role_arn)
        named = role.name if role is not None else "no role of this deployment"
        logger.warning("nobody gets keys of role %s: %s", named, fault.code)
        subject = "not proved" if fault.refused is None else fault.refused.subject[:256]
        details = {"role": named, "code": fault.code, "issuer": self._known_issuer(request.token), "subject": subject}
        record = self._record(REFUSED, f"was refused keys of role {named!r}", "-", details)
        try:
            await self._refusals.note(tuple(details.values()), lambda: record)
        except StoreUnavailable as unavailable:
            logger.warning("the refusal is not on record: %s", unavailable)

    def _known_issuer(self, token: str) -> str:
        """Nothing that anybody may make up."""
        issuer = claims_of(token).get("iss")
        return issuer if isinstance(issuer, str) and self._roles.discovery_url(issuer) is not None else "unknown"

    def _record(self, kind: str, did: str, principal: str, details: Mapping[str, str]) -> AuditRecord:
        who = principal if principal != "-" else "Somebody"
        return AuditRecord(kind, f"{who} {did}.", principal, None, None, self._clock.now(), details)


def _unmet(trust: Trust, verified: VerifiedToken, session_name: str) -> str | None:
    """What keeps a token of the right issuer and audience from being trusted."""
    name = first_unmet(trust.claims, verified.claims)
    if name is not None:
        return f"the token's claim {name} is not as the role's trust policy demands"
    if trust.session_name is not None:
        wanted: Any = claim(verified.claims, trust.session_name)
        if wanted != session_name:
            return f"RoleSessionName must be the token's claim {trust.session_name}"
    return None
