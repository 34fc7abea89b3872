"""Workload access tokens: an agent's proof, to the token vault, of which agent it is and for which user it acts."""

from __future__ import annotations

import secrets
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from agentkeep.core.acting import ActingForUsers, require_acting
from agentkeep.core.call import Caller, CallerKind, User
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    AccessDeniedException,
    ConflictException,
    ResourceNotFoundException,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.identity.inbound.claims import as_text, of_verified
from agentkeep.identity.inbound.trusted_issuers import TrustedIssuers
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.sealing import Seal
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.trail import Attempt, Trail
from agentkeep.identity.workloads.identities import WorkloadIdentities, WorkloadIdentity

__all__ = ["WorkloadAccessTokens", "WorkloadClaims"]


@dataclass(frozen=True, slots=True)
class WorkloadClaims:
    """What a workload access token proves.

    `incarnation` tells the workload's identity from an earlier one of its name. `user` is None for a workload alone;
    its `issuer` is None where an operator named the user. `user_token` is the JWT the user was proved with, for
    exchanging it on the user's behalf; `repr` hides it.
    """

    workload: str
    incarnation: str
    user: User | None
    expires: datetime
    user_token: str | None = None

    def __repr__(self) -> str:
        return f"WorkloadClaims({self.workload!r}, {self.user!r}, expires={self.expires})"


class WorkloadAccessTokens:
    """Implements the port `WorkloadTokens`. Tokens are sealed: opaque to who holds them, and nothing is stored."""

    def __init__(
        self,
        identities: WorkloadIdentities,
        issuers: TrustedIssuers,
        master_key: MasterKey,
        clock: Clock,
        settings: IdentitySettings,
        acting: ActingForUsers,
        trail: Trail,
    ) -> None:
        self._trail = trail
        self._acting = acting
        self._identities = identities
        self._issuers = issuers
        self._seal = Seal(master_key, "workload-tokens")
        self._clock = clock
        self._life = timedelta(seconds=settings.workload_token_life)

    # For callers.

    async def for_workload(self, caller: Caller, name: str) -> str:
        async with self._giving(caller, name) as by:
            identity = await self._mintable(caller, name)
            await self._given(by, "of its own")
        return self._make(identity, None)

    async def for_user_token(self, caller: Caller, name: str, user_token: str) -> str:
        """Raises UnauthorizedException where the token cannot be verified."""
        async with self._giving(caller, name) as by:
            identity = await self._mintable(caller, name)
            verified = await self._issuers.verify(user_token)
            user = by.user = User(verified.subject, verified.issuer, as_text(verified.claims))
            await self._given(by, "by a user's token")
        return self._make(identity, user, user_token)

    async def for_user_id(self, caller: Caller, name: str, user_id: str) -> str:
        """Only for callers who may speak for any user: operators whose key was issued for it. On record."""
        async with self._giving(caller, name) as by:
            if caller.kind is not CallerKind.OPERATOR:
                raise AccessDeniedException(
                    f"{caller.principal} may not name the user it acts for; only an operator may. Use the user's token"
                )
            by.user = User(user_id)
            require_acting(caller, "GetWorkloadAccessTokenForUserId")
            identity = await self._mintable(caller, name)
            await self._acting.admit(caller, "GetWorkloadAccessTokenForUserId", f"workload {name}", user_id)
            await self._given(by, "by a user's id")
        return self._make(identity, User(user_id))

    async def verify(self, token: str, caller: Caller) -> WorkloadClaims:
        """What `token` proves, presented by `caller`: a session may present its own agent's and user's only.

        Raises UnauthorizedException (not ours, expired, its identity gone) or AccessDeniedException (another's).
        """
        document = self._seal.open(token)
        if document is None:
            raise UnauthorizedException("The workload access token is not one that this platform issued")
        expires = datetime.fromtimestamp(document["expires"] / 1000, UTC)
        if expires <= self._clock.now():
            raise UnauthorizedException("The workload access token has expired; get another")
        user_token = document["user_token"]
        user = None
        if document["user"]:
            user_id, issuer = document["user"]
            user = User(user_id, issuer, of_verified(user_token or ""))
        claims = WorkloadClaims(document["workload"], document["incarnation"], user, expires, user_token)
        if caller.kind is not CallerKind.OPERATOR and (
            caller.session is None or caller.session.runtime_id != claims.workload or caller.user != claims.user
        ):
            raise AccessDeniedException(
                f"The workload access token belongs to another agent or user than {caller.principal}"
            )
        try:
            identity = await self._identities.get(claims.workload)
        except ResourceNotFoundException:
            identity = None
        if identity is None or identity.incarnation != document["incarnation"]:
            raise UnauthorizedException("The workload access token's workload identity has been deleted")
        return claims

    # The port, for runtimes and gateways.

    async def create_for_service(self, name: str) -> str:
        try:
            return (await self._identities.create(name, service_linked=True)).arn
        except ConflictException:
            identity = await self._identities.get(name)
            if not identity.service_linked:
                raise
            return identity.arn

    async def delete_for_service(self, name: str) -> None:
        try:
            await self._identities.delete(name, service=True)
        except ResourceNotFoundException:
            pass

    async def issue(self, name: str, user: User | None, user_token: str | None = None) -> str | None:
        """`user` was proved by who asks. Raises ResourceNotFoundException where there is no such identity."""
        if user is None:
            return None
        return self._make(await self._identities.get(name), user, user_token)

    # Inside.

    def _giving(self, caller: Caller, name: str) -> AbstractAsyncContextManager[Attempt]:
        by = Attempt.of(caller)
        if caller.session is None or caller.session.runtime_id == name:  # of others an agent can name any number
            by.workload = name
        return self._trail.refusals("workload-token-refused", "a workload access token", by)

    async def _given(self, by: Attempt, how: str) -> None:
        await self._trail.repeats("workload-token", f"got a workload access token of {by.workload} {how}", by)

    async def _mintable(self, caller: Caller, name: str) -> WorkloadIdentity:
        if caller.kind is not CallerKind.OPERATOR and (caller.session is None or caller.session.runtime_id != name):
            raise AccessDeniedException(f"{caller.principal} may not get tokens for workload identity {name}")
        identity = await self._identities.get(name)
        if identity.service_linked:
            # AgentCore's own words: an agent's token is handed to it, or anyone with a key could be that agent.
            raise ValidationException(
                "WorkloadIdentity is linked to a service and cannot retrieve an access token by the caller"
            )
        return identity

    def _make(self, identity: WorkloadIdentity, user: User | None, user_token: str | None = None) -> str:
        return self._seal.seal(
            {
                "workload": identity.name,
                "incarnation": identity.incarnation,
                "user": user and [user.id, user.issuer],
                "user_token": user_token,
                "expires": epoch_ms(self._clock.now() + self._life),
                "nonce": secrets.token_hex(16),
            }
        )
