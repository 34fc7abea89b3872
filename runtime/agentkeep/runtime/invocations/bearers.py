"""Who calls an operation on a runtime with a bearer token; invocations themselves are `invocations.py`'s."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs, quote

from agentkeep.core.call import Caller, CallerKind
from agentkeep.core.errors import ResourceNotFoundException, ServiceError, UnauthorizedException
from agentkeep.runtime.agents.targets import Target, Targets
from agentkeep.runtime.invocations.authorization import Authorization, not_accepted
from agentkeep.runtime.records import DEFAULT_ENDPOINT

__all__ = ["RuntimeBearers"]


class RuntimeBearers:
    """`Bearers` for the service: who calls an operation on a runtime with a bearer token."""

    def __init__(self, targets: Targets, authorization: Authorization, account: str) -> None:
        self._targets = targets
        self._authorization = authorization
        self._account = account

    async def caller(self, operation: str, labels: Mapping[str, str], query: bytes, token: str) -> Caller:
        """Raises UnauthorizedException with the runtime's challenge, or AccessDeniedException."""
        try:
            target = await self._target(labels, query)
        except ResourceNotFoundException:
            raise not_accepted() from None
        if target is None:
            raise UnauthorizedException(f"{operation} is called with a SigV4 signature, not with a bearer token.")
        user = await self._authorization.token(target, token, operation)
        name = "/".join(quote(part, safe="") for part in (user.issuer or "", user.id))
        return Caller(CallerKind.USER, f"arn:aws:sts::{self._account}:federated-user/{name}", user=user)

    async def challenge(self, labels: Mapping[str, str], query: bytes) -> str | None:
        try:
            target = await self._target(labels, query)
        except ServiceError:
            return None
        if target is None or target.settings.authorizer is None:
            return None
        return self._authorization.challenge(target)

    async def _target(self, labels: Mapping[str, str], query: bytes) -> Target | None:
        """None where the operation is not one on a runtime that is invoked."""
        runtime = labels.get("agentRuntimeArn")
        if runtime is None:
            return None
        parameters = parse_qs(query.decode("latin-1"))
        qualifier = parameters.get("qualifier", [DEFAULT_ENDPOINT])[0]
        return await self._targets.resolve(runtime, qualifier, parameters.get("accountId", [None])[0])
