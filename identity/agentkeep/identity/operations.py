"""The identity plane: workload identities and their tokens; and, for the other planes, keys and authorizers."""

from __future__ import annotations

from collections.abc import Sequence

from agentkeep.core.call import Call, CallerKind, allow
from agentkeep.core.clock import Clock
from agentkeep.core.identifiers import Deployment
from agentkeep.identity.authorizers import JwtAuthorizers
from agentkeep.identity.jwt import JwtVerifier
from agentkeep.identity.keys import AccessKeys
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.providers import OpenIdProviders
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.trusted_issuers import TrustedIssuers
from agentkeep.identity.workload_identities import WorkloadIdentities, WorkloadIdentity
from agentkeep.identity.workload_tokens import WorkloadAccessTokens
from agentkeep.storage.interface import KeyValueStore
from agentkeep.wire.types import bedrock_agentcore as data
from agentkeep.wire.types import bedrock_agentcore_control as control

__all__ = ["IdentityPlane"]


class IdentityPlane:
    """Its parts are the ports the other planes are given: `keys` (Keys), `authorizers` (Authorizers) and
    `workload_tokens` (WorkloadTokens). `trusted_issuers` adds discovery URLs to the settings' own."""

    name = "identity"
    arn_kinds = frozenset({"workload-identity"})

    def __init__(
        self,
        store: KeyValueStore,
        master_key: MasterKey,
        deployment: Deployment,
        clock: Clock,
        settings: IdentitySettings,
        trusted_issuers: Sequence[str] = (),
    ) -> None:
        self._providers = OpenIdProviders(clock, settings)
        self._identities = WorkloadIdentities(store, deployment, clock)
        verifier = JwtVerifier(clock, settings)
        issuers = TrustedIssuers((*settings.trusted_issuers, *trusted_issuers), self._providers, verifier, settings)
        self.keys = AccessKeys(store, master_key, deployment, clock, settings)
        self.authorizers = JwtAuthorizers(self._providers, verifier, clock, settings)
        self.workload_tokens = WorkloadAccessTokens(self._identities, issuers, master_key, clock, settings)

    async def close(self) -> None:
        await self._providers.close()

    # Workload identities.

    async def create_workload_identity(
        self, call: Call, request: control.CreateWorkloadIdentityRequest
    ) -> control.CreateWorkloadIdentityResponse:
        identity = await self._identities.create(
            request["name"], request.get("allowedResourceOauth2ReturnUrls", ()), request.get("tags")
        )
        return {
            "name": identity.name,
            "workloadIdentityArn": identity.arn,
            "allowedResourceOauth2ReturnUrls": list(identity.return_urls),
        }

    async def get_workload_identity(
        self, call: Call, request: control.GetWorkloadIdentityRequest
    ) -> control.GetWorkloadIdentityResponse:
        return _described(await self._identities.get(request["name"]))

    async def update_workload_identity(
        self, call: Call, request: control.UpdateWorkloadIdentityRequest
    ) -> control.UpdateWorkloadIdentityResponse:
        urls = request.get("allowedResourceOauth2ReturnUrls")
        return _described(await self._identities.set_return_urls(request["name"], urls))

    async def delete_workload_identity(
        self, call: Call, request: control.DeleteWorkloadIdentityRequest
    ) -> control.DeleteWorkloadIdentityResponse:
        await self._identities.delete(request["name"])
        return {}

    async def list_workload_identities(
        self, call: Call, request: control.ListWorkloadIdentitiesRequest
    ) -> control.ListWorkloadIdentitiesResponse:
        page, token = await self._identities.list(request.get("maxResults"), request.get("nextToken"))
        answer: control.ListWorkloadIdentitiesResponse = {
            "workloadIdentities": [{"name": one.name, "workloadIdentityArn": one.arn} for one in page]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    # Tags of workload identities; other planes have those of their own resources.

    async def tag_resource(self, call: Call, request: control.TagResourceRequest) -> control.TagResourceResponse:
        await self._identities.tag(request["resourceArn"], request["tags"])
        return {}

    async def untag_resource(self, call: Call, request: control.UntagResourceRequest) -> control.UntagResourceResponse:
        await self._identities.untag(request["resourceArn"], request["tagKeys"])
        return {}

    async def list_tags_for_resource(
        self, call: Call, request: control.ListTagsForResourceRequest
    ) -> control.ListTagsForResourceResponse:
        return {"tags": dict(await self._identities.tags(request["resourceArn"]))}

    # Workload access tokens. Sessions may ask for their own agent's only, and are told what AgentCore would tell them:
    # that one is not asked for, it comes with each invocation.

    @allow(CallerKind.SESSION)
    async def get_workload_access_token(
        self, call: Call, request: data.GetWorkloadAccessTokenRequest
    ) -> data.GetWorkloadAccessTokenResponse:
        return {"workloadAccessToken": await self.workload_tokens.for_workload(call.caller, request["workloadName"])}

    @allow(CallerKind.SESSION)
    async def get_workload_access_token_for_jwt(
        self, call: Call, request: data.GetWorkloadAccessTokenForJWTRequest
    ) -> data.GetWorkloadAccessTokenForJWTResponse:
        token = await self.workload_tokens.for_user_token(call.caller, request["workloadName"], request["userToken"])
        return {"workloadAccessToken": token}

    async def get_workload_access_token_for_user_id(
        self, call: Call, request: data.GetWorkloadAccessTokenForUserIdRequest
    ) -> data.GetWorkloadAccessTokenForUserIdResponse:
        token = await self.workload_tokens.for_user_id(call.caller, request["workloadName"], request["userId"])
        return {"workloadAccessToken": token}


def _described(identity: WorkloadIdentity) -> control.GetWorkloadIdentityResponse:
    return {
        "name": identity.name,
        "workloadIdentityArn": identity.arn,
        "allowedResourceOauth2ReturnUrls": list(identity.return_urls),
        "createdTime": identity.created,
        "lastUpdatedTime": identity.updated,
    }
