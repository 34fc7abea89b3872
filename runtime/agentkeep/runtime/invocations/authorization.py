"""Who may invoke a runtime, and for which user.

runtime with customJWTAuthorizer   a token that passes it; the user is the token's
runtime without                    SigV4: operators, for the user they name (or none); agents, for their own user
                                   only, and only where a resource policy of the runtime allows them
"""

from __future__ import annotations

from urllib.parse import quote

from agentkeep.core.acting import require_acting
from agentkeep.core.call import Caller, CallerKind, User
from agentkeep.core.errors import AccessDeniedException, InsufficientScope, UnauthorizedException
from agentkeep.core.identifiers import Arn
from agentkeep.core.permissions import authorized
from agentkeep.core.policies import Asked, Decision, Policy, decide
from agentkeep.core.ports import Authorizers
from agentkeep.runtime.agents.catalogue import Catalogue
from agentkeep.runtime.agents.targets import Target
from agentkeep.runtime.invocations.protected_resources import resource_url
from agentkeep.service.protected_resources import advertised_scopes, challenge

__all__ = ["Authorization"]

#: The action of an invocation that names a user, needed beside the plain one (IAM's split of the two).
FOR_USER = "ForUser"
STOP = "StopRuntimeSession"


class Authorization:
    def __init__(self, catalogue: Catalogue, authorizers: Authorizers, public_url: str) -> None:
        self._catalogue = catalogue
        self._authorizers = authorizers
        self._public_url = public_url.rstrip("/")

    def operator(self, target: Target, caller: Caller, user_id: str | None, action: str) -> User | None:
        """The user an operator acts for. Raises AccessDeniedException."""
        if target.settings.authorizer is not None:
            raise AccessDeniedException(
                f"Agent runtime {target.runtime_id} has a JWT authorizer: invoke it with a user's bearer token, not "
                "with a SigV4 signature."
            )
        if target.policies:
            principals = self._principals(caller)
            _refuse_denied(target.runtime_arn, target.policies, principals, action)
            if user_id is not None:
                _refuse_denied(target.runtime_arn, target.policies, principals, action + FOR_USER)
        if user_id is None:
            return None
        require_acting(caller, f"{action} for a user it names")
        return User(user_id)

    def role(self, target: Target, caller: Caller, user_id: str | None, action: str) -> Caller:
        """A role's caller as the operator that it is for this invocation. Raises AccessDeniedException."""
        resources = (target.runtime_arn, f"{target.runtime_arn}/runtime-endpoint/{target.endpoint}")
        if user_id is not None:
            authorized(caller, f"bedrock-agentcore:{action}{FOR_USER}", resources)
        return authorized(caller, f"bedrock-agentcore:{action}", resources)

    async def agent(self, target: Target, caller: Caller, user_id: str | None, action: str) -> User:
        """The user an agent acts for: its session's own. Raises AccessDeniedException."""
        assert caller.session is not None
        if caller.user is None:
            raise AccessDeniedException(
                "This session has no user, so it may not invoke agents; invoke it with a user JWT or runtimeUserId."
            )
        if user_id is not None and user_id != caller.user.id:
            raise AccessDeniedException("An agent acts for its session's own user only; it cannot name another.")
        if target.settings.authorizer is not None:
            raise AccessDeniedException(
                f"Agent runtime {target.runtime_id} takes users' tokens only; agents sign with their session's keys."
            )
        principals = await self._agents_principals(caller)
        if decide(target.policies, _asked(action, principals)) is not Decision.ALLOW:
            raise AccessDeniedException(
                f"{caller.principal} is not authorized to perform bedrock-agentcore:{action} on {target.runtime_arn}: "
                "an agent may invoke another only where that one's resource policy allows it."
            )
        return caller.user

    async def stopping(self, runtime_arn: str, policies: tuple[Policy, ...], caller: Caller) -> None:
        """Raises AccessDeniedException where a policy denies StopRuntimeSession to one who may stop the session by
        what it is (`RuntimeInvocations.stop`)."""
        if not policies or caller.kind is CallerKind.USER:
            principals: frozenset[str] = frozenset()
        elif caller.kind is CallerKind.SESSION:
            principals = await self._agents_principals(caller)
        else:
            principals = self._principals(caller)
        _refuse_denied(runtime_arn, policies, principals, STOP)

    def cached_token(self, target: Target, bearer: str, action: str) -> User | None:
        """The token's user if that is known without waiting."""
        if target.settings.authorizer is None:
            return None
        user = self._authorizers.cached(target.settings.authorizer, bearer)
        if user is not None:
            _refuse_denied(target.runtime_arn, target.policies, frozenset(), action)
        return user

    async def token(self, target: Target, bearer: str, action: str) -> User:
        """The user of a bearer token. Raises UnauthorizedException, with the challenge by which clients find out where
        to get one (or, InsufficientScope, one with more in it), or AccessDeniedException."""
        if target.settings.authorizer is None:
            raise not_accepted()
        try:
            if not bearer:
                raise UnauthorizedException("Missing authentication token")
            user = await self._authorizers.verify(target.settings.authorizer, bearer)
        except UnauthorizedException as error:
            raise UnauthorizedException(error.message, error.challenge or self.challenge(target)) from None
        except InsufficientScope as error:
            raise InsufficientScope(error.message, self.challenge(target, "insufficient_scope")) from None
        _refuse_denied(target.runtime_arn, target.policies, frozenset(), action)
        return user

    def challenge(self, target: Target, error: str | None = None) -> str:
        """How to get a token for a runtime with an authorizer (`WWW-Authenticate`)."""
        assert target.settings.authorizer is not None
        place = f"{resource_url(self._public_url, target.runtime_arn)}/.well-known/oauth-protected-resource"
        place = f"{place}?qualifier={quote(target.endpoint, safe='')}"
        return challenge(place, advertised_scopes(target.settings.authorizer), error)

    async def _agents_principals(self, caller: Caller) -> frozenset[str]:
        """With the role under which operators know an agent, and that policies written for AWS name."""
        assert caller.session is not None
        own = await self._catalogue.find_runtime(caller.session.runtime_id)
        version = None if own is None else await self._catalogue.find_version(own.record.id, own.record.version)
        role = frozenset() if version is None else frozenset({version.record.settings["roleArn"]})
        return self._principals(caller) | role

    def _principals(self, caller: Caller) -> frozenset[str]:
        """Every name policies may know a caller by: its ARN, the role it has assumed, its account."""
        names = {caller.principal}
        arn = Arn.parse(caller.principal)
        if arn is not None:
            names |= {arn.account, f"arn:{arn.partition}:iam::{arn.account}:root"}
            kind, _, rest = arn.resource.partition("/")
            if kind == "assumed-role":
                names.add(f"arn:{arn.partition}:iam::{arn.account}:role/{rest.split('/')[0]}")
        return frozenset(names)


def _asked(action: str, principals: frozenset[str]) -> Asked:
    return Asked(f"bedrock-agentcore:{action}", principals=principals)


def _refuse_denied(runtime_arn: str, policies: tuple[Policy, ...], principals: frozenset[str], action: str) -> None:
    if decide(policies, _asked(action, principals)) is Decision.DENY:
        raise AccessDeniedException(f"bedrock-agentcore:{action} on {runtime_arn} is denied by its resource policy.")


def not_accepted() -> AccessDeniedException:
    """The same for a runtime that takes no tokens and one that does not exist: who is not known learns of neither."""
    return AccessDeniedException(
        "The bearer token is not accepted: there is no such agent runtime, or it is invoked with SigV4 signatures."
    )
