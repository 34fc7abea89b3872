"""What the gateway shows to a target: what the target's configuration says, and nothing else (GOV-4, IDN-2).

A caller's Authorization, its AWS headers and the platform's own keys are never passed on. Only where JWT_PASSTHROUGH is
configured does the user's token go to the target; a call without one is then refused rather than made in some other
name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentkeep.core.call import Caller
from agentkeep.core.errors import ResourceNotFoundException, ServiceError
from agentkeep.core.ports import OutboundCredentials, OutboundUse
from agentkeep.gateway.records import TargetRecord
from agentkeep.gateway.targets.errors import TargetFailed, TargetRefused

__all__ = ["Outgoing", "TargetCredentials"]

#: RFC 9110, 5.5. An HTTP client that is given anything else quotes it in its error.
_HEADER_VALUE: Final = re.compile(r"[!-~]([\t -~]*[!-~])?")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What goes with a call to a target besides its arguments."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)


class TargetCredentials:
    def __init__(self, credentials: OutboundCredentials) -> None:
        self._credentials = credentials

    async def outgoing(self, target: TargetRecord, caller: Caller | None, user_token: str | None) -> Outgoing:
        """For one call. `caller`: who called the tool; None: the gateway itself asks which there are. `user_token`: the
        one the caller itself was authenticated with. Raises TargetRefused."""
        configured: Sequence[Mapping[str, Any]] = target.credentials
        if not configured:
            return Outgoing()
        kind = configured[0].get("credentialProviderType")
        if kind == "API_KEY":
            return await self._api_key(
                configured[0]["credentialProvider"]["apiKeyCredentialProvider"], _use(target, caller)
            )
        if kind == "JWT_PASSTHROUGH":
            if user_token is None:
                raise TargetRefused(
                    "This target is called with the user's own token, and the call came without one. Call a gateway "
                    "with a CUSTOM_JWT authorizer, with the user's bearer token"
                )
            return Outgoing({"authorization": f"Bearer {user_token}"})
        raise TargetRefused(f"Credentials of type {kind} are not supported here")

    async def for_listing(self, target: TargetRecord) -> Outgoing:
        """To ask for the tools, when there is no user."""
        configured = target.credentials
        if configured and configured[0].get("credentialProviderType") == "JWT_PASSTHROUGH":
            return Outgoing()
        return await self.outgoing(target, None, None)

    async def _api_key(self, provider: Mapping[str, Any], use: OutboundUse) -> Outgoing:
        try:
            key = await self._credentials.api_key(provider["providerArn"], use)
        except ResourceNotFoundException as error:
            raise TargetRefused(f"The target's API key cannot be had: {error.message}") from None
        except ServiceError as error:
            raise TargetFailed(f"its API key cannot be had now: {error.message}") from None
        prefix = provider.get("credentialPrefix")
        value = f"{prefix} {key}" if prefix else key
        if provider.get("credentialLocation", "HEADER") == "QUERY_PARAMETER":
            return Outgoing(query={provider.get("credentialParameterName", "api_key"): value})
        if not _HEADER_VALUE.fullmatch(value):
            name = provider["providerArn"].rpartition("/")[2]
            raise TargetRefused(
                f"The API key of credential provider {name} cannot be sent in a header: it has a line's end, a blank "
                "at its beginning or end, or characters that are not ASCII. Update the provider with the key alone"
            )
        return Outgoing({provider.get("credentialParameterName", "Authorization"): value})


def _use(target: TargetRecord, caller: Caller | None) -> OutboundUse:
    resource = f"target {target.name} of gateway {target.gateway_id}"
    if caller is None:
        return OutboundUse(f"gateway {target.gateway_id}", None, None, None, resource)
    user = caller.user
    return OutboundUse(
        caller.principal, caller.session, user.id if user else None, user.issuer if user else None, resource
    )
