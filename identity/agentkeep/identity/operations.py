"""The identity plane: workload identities, their tokens, and the credential providers these open; and, for the other
planes, keys and authorizers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from agentkeep.core.alarm import Alarm
from agentkeep.core.call import Call, CallerKind, User, allow
from agentkeep.core.clock import Clock
from agentkeep.core.errors import FieldError, ResourceNotFoundException, ValidationException
from agentkeep.core.identifiers import Arn, Deployment
from agentkeep.core.key_service import KeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.core.ports import Audit
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.oauth2.requests import Flow, TokenRequest
from agentkeep.identity.parts import Parts
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.shapes import (
    api_key_provider_shape,
    oauth2_provider_shape,
    vault_shape,
    workload_identity_shape,
)
from agentkeep.identity.trail import Attempt
from agentkeep.identity.vault.credential_providers import CredentialProvider, ProviderKind
from agentkeep.identity.vault.secret_sources import api_key
from agentkeep.identity.vault.token_vault import VAULT
from agentkeep.storage.interface import KeyValueStore
from agentkeep.wire.types import bedrock_agentcore as data
from agentkeep.wire.types import bedrock_agentcore_control as control

__all__ = ["IdentityPlane"]

logger = logging.getLogger(__name__)

_API_KEY_PAGE = 100  # the model's largest
_OAUTH2_PAGE = 20


class _Tagged(Protocol):
    """Resources with tags, by ARN."""

    async def tag(self, arn: str, tags: Mapping[str, str]) -> None: ...

    async def untag(self, arn: str, keys: Sequence[str]) -> None: ...

    async def tags(self, arn: str) -> Mapping[str, str]: ...


class IdentityPlane:
    """Its parts are the ports the other planes are given: `keys` (Keys), `authorizers` (Authorizers),
    `workload_tokens` (WorkloadTokens) and `outbound` (OutboundCredentials). `trusted_issuers` adds discovery URLs to
    the settings' own. `public_url`: where browsers reach the platform; `oauth2_callback` (ASGI, public) must be served
    there under CALLBACK_PATH. `audit` is needed where rules for STS are configured; without it,
    the log alone says for whom operators acted, and who was given what. `key_service` wraps the token vault's keys;
    without it, the master key does. `alarm` is told of keys presented at /sts where they are worth nothing."""

    name = "identity"
    arn_kinds = frozenset({"workload-identity", *ProviderKind})

    def __init__(
        self,
        store: KeyValueStore,
        master_key: MasterKey,
        deployment: Deployment,
        clock: Clock,
        settings: IdentitySettings,
        trusted_issuers: Sequence[str] = (),
        public_url: str = "http://127.0.0.1:4780",
        audit: Audit | None = None,
        key_service: KeyService | None = None,
        key_settings: KeySettings | None = None,
        alarm: Alarm | None = None,
    ) -> None:
        self._parts = parts = Parts(
            store, master_key, deployment, clock, settings,
            trusted_issuers, public_url, audit, key_service, key_settings, alarm,
        )  # fmt: skip
        self.roles, self.roles_app, self.sts_app = parts.roles, parts.roles_app, parts.sts_app
        self.keys = parts.keys
        self.authorizers = parts.authorizers
        self.workload_tokens = parts.workload_tokens
        self.outbound = parts.outbound
        self.acting = parts.acting
        self.oauth2_callback = parts.oauth2.callback
        self._identities = parts.identities
        self._issuers = parts.issuers
        self._api_keys = parts.api_keys
        self._oauth2, self._federation = parts.oauth2.providers, parts.oauth2.federation
        self._resource_credentials = parts.resource_credentials
        self._vault = parts.vault
        self._trail = parts.trail
        self._tagged: Mapping[str, _Tagged] = {
            "workload-identity": parts.identities,
            ProviderKind.API_KEY: parts.api_keys,
            ProviderKind.OAUTH2: parts.oauth2.providers.stored,
        }

    async def close(self) -> None:
        await self._parts.close()

    # Workload identities.

    async def create_workload_identity(
        self, call: Call, request: control.CreateWorkloadIdentityRequest
    ) -> control.CreateWorkloadIdentityResponse:
        async with self._trail.change(call.caller, "workload identity", "create", request["name"]):
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
        return workload_identity_shape(await self._identities.get(request["name"]))

    async def update_workload_identity(
        self, call: Call, request: control.UpdateWorkloadIdentityRequest
    ) -> control.UpdateWorkloadIdentityResponse:
        urls = request.get("allowedResourceOauth2ReturnUrls")
        async with self._trail.change(call.caller, "workload identity", "update", request["name"]):
            return workload_identity_shape(await self._identities.set_return_urls(request["name"], urls))

    async def delete_workload_identity(
        self, call: Call, request: control.DeleteWorkloadIdentityRequest
    ) -> control.DeleteWorkloadIdentityResponse:
        async with self._trail.change(call.caller, "workload identity", "delete", request["name"]):
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

    # API key credential providers.

    async def create_api_key_credential_provider(
        self, call: Call, request: control.CreateApiKeyCredentialProviderRequest
    ) -> control.CreateApiKeyCredentialProviderResponse:
        async with self._trail.change(call.caller, self._api_keys.kind.noun, "create", request["name"]):
            provider = await self._api_keys.create(request["name"], api_key(request), {}, request.get("tags", {}))
        return {
            "name": provider.name,
            "credentialProviderArn": provider.arn,
            "apiKeySecretArn": {"secretArn": provider.secret_arn},
            "apiKeySecretSource": "MANAGED",
        }

    async def get_api_key_credential_provider(
        self, call: Call, request: control.GetApiKeyCredentialProviderRequest
    ) -> control.GetApiKeyCredentialProviderResponse:
        return api_key_provider_shape(await self._api_keys.get(request["name"]))

    async def update_api_key_credential_provider(
        self, call: Call, request: control.UpdateApiKeyCredentialProviderRequest
    ) -> control.UpdateApiKeyCredentialProviderResponse:
        async with self._trail.change(call.caller, self._api_keys.kind.noun, "update", request["name"]):
            return api_key_provider_shape(await self._api_keys.update(request["name"], api_key(request)))

    async def delete_api_key_credential_provider(
        self, call: Call, request: control.DeleteApiKeyCredentialProviderRequest
    ) -> control.DeleteApiKeyCredentialProviderResponse:
        async with self._trail.change(call.caller, self._api_keys.kind.noun, "delete", request["name"]):
            await self._api_keys.delete(request["name"])
        return {}

    async def list_api_key_credential_providers(
        self, call: Call, request: control.ListApiKeyCredentialProvidersRequest
    ) -> control.ListApiKeyCredentialProvidersResponse:
        page, token = await self._api_keys.list(request.get("maxResults", _API_KEY_PAGE), request.get("nextToken"))
        answer: control.ListApiKeyCredentialProvidersResponse = {
            "credentialProviders": [
                {
                    "name": one.name,
                    "credentialProviderArn": one.arn,
                    "createdTime": one.created,
                    "lastUpdatedTime": one.updated,
                }
                for one in page
            ]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    # OAuth2 credential providers.

    async def create_oauth2_credential_provider(
        self, call: Call, request: control.CreateOauth2CredentialProviderRequest
    ) -> control.CreateOauth2CredentialProviderResponse:
        async with self._trail.change(call.caller, ProviderKind.OAUTH2.noun, "create", request["name"]):
            provider = await self._oauth2.create(
                request["name"],
                request["credentialProviderVendor"],
                request["oauth2ProviderConfigInput"],
                request.get("tags", {}),
            )
        return {
            "name": provider.name,
            "credentialProviderArn": provider.arn,
            "clientSecretArn": {"secretArn": provider.secret_arn},
            "clientSecretSource": "MANAGED",
            "callbackUrl": self._oauth2.callback_url(provider),
            "oauth2ProviderConfigOutput": provider.details["output"],
            "status": "READY",
        }

    async def get_oauth2_credential_provider(
        self, call: Call, request: control.GetOauth2CredentialProviderRequest
    ) -> control.GetOauth2CredentialProviderResponse:
        return self._oauth2_provider(await self._oauth2.stored.get(request["name"]))

    async def update_oauth2_credential_provider(
        self, call: Call, request: control.UpdateOauth2CredentialProviderRequest
    ) -> control.UpdateOauth2CredentialProviderResponse:
        async with self._trail.change(call.caller, ProviderKind.OAUTH2.noun, "update", request["name"]):
            provider = await self._oauth2.update(
                request["name"], request["credentialProviderVendor"], request["oauth2ProviderConfigInput"]
            )
        return self._oauth2_provider(provider)

    async def delete_oauth2_credential_provider(
        self, call: Call, request: control.DeleteOauth2CredentialProviderRequest
    ) -> control.DeleteOauth2CredentialProviderResponse:
        async with self._trail.change(call.caller, ProviderKind.OAUTH2.noun, "delete", request["name"]):
            await self._oauth2.delete(request["name"])
        return {}

    async def list_oauth2_credential_providers(
        self, call: Call, request: control.ListOauth2CredentialProvidersRequest
    ) -> control.ListOauth2CredentialProvidersResponse:
        page, token = await self._oauth2.stored.list(request.get("maxResults", _OAUTH2_PAGE), request.get("nextToken"))
        answer: control.ListOauth2CredentialProvidersResponse = {
            "credentialProviders": [
                {
                    "name": one.name,
                    "credentialProviderArn": one.arn,
                    "credentialProviderVendor": one.details["vendor"],
                    "createdTime": one.created,
                    "lastUpdatedTime": one.updated,
                }
                for one in page
            ]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    def _oauth2_provider(self, provider: CredentialProvider) -> control.GetOauth2CredentialProviderResponse:
        return oauth2_provider_shape(provider, self._oauth2.callback_url(provider))

    # The token vault.

    async def get_token_vault(self, call: Call, request: control.GetTokenVaultRequest) -> control.GetTokenVaultResponse:
        vault = request.get("tokenVaultId", VAULT)
        return vault_shape(vault, await self._vault.key(vault))

    async def set_token_vault_cmk(
        self, call: Call, request: control.SetTokenVaultCMKRequest
    ) -> control.SetTokenVaultCMKResponse:
        vault, configuration = request.get("tokenVaultId", VAULT), request["kmsConfiguration"]
        arn = configuration.get("kmsKeyArn")
        if (configuration["keyType"] == "CustomerManagedKey") != (arn is not None):
            message = "kmsConfiguration.kmsKeyArn is needed with CustomerManagedKey, and with that alone"
            raise ValidationException(message, fields=[FieldError("kmsConfiguration.kmsKeyArn", message)])
        async with self._trail.change(call.caller, "token vault", "give another key to", vault):
            key = await self._vault.set_key(vault, arn)
        logger.info("token vault %s: secrets are sealed under %s from now on", vault, arn or "the deployment's own key")
        return vault_shape(vault, key)

    async def reset_token_vault_key_material(
        self, call: Call, request: control.ResetTokenVaultKeyMaterialRequest
    ) -> control.ResetTokenVaultKeyMaterialResponse:
        vault = request["tokenVaultId"]
        async with self._trail.change(call.caller, "token vault", "reset the key of", vault):
            key = await self._vault.reset_key(vault, await self._parts.oauth2.clear())
        logger.warning(
            "token vault %s: its key is gone, and with it all OAuth2 tokens; the deployment's own is used now", vault
        )
        return vault_shape(vault, key)

    @allow(CallerKind.SESSION)
    async def get_resource_api_key(
        self, call: Call, request: data.GetResourceApiKeyRequest
    ) -> data.GetResourceApiKeyResponse:
        key = await self._resource_credentials.api_key(
            call.caller, request["workloadIdentityToken"], request["resourceCredentialProviderName"]
        )
        return {"apiKey": key}

    @allow(CallerKind.SESSION)
    async def get_resource_oauth2_token(
        self, call: Call, request: data.GetResourceOauth2TokenRequest
    ) -> data.GetResourceOauth2TokenResponse:
        answer = await self._resource_credentials.oauth2_token(
            call.caller, request["workloadIdentityToken"], TokenRequest.of(request)
        )
        if answer.access_token is not None:
            return {"accessToken": answer.access_token}
        response: data.GetResourceOauth2TokenResponse = {"sessionStatus": "FAILED" if answer.failed else "IN_PROGRESS"}
        if answer.session_uri is not None:
            response["sessionUri"] = answer.session_uri
        if answer.authorization_url is not None:
            response["authorizationUrl"] = answer.authorization_url
        return response

    # Not for agents: one that could say by itself who consented could take what another was tricked into consenting to.
    async def complete_resource_token_auth(
        self, call: Call, request: data.CompleteResourceTokenAuthRequest
    ) -> data.CompleteResourceTokenAuthResponse:
        named = request["userIdentifier"]
        by = Attempt.of(call.caller, flow=Flow.USER_FEDERATION)
        async with self._trail.refusals("consent-refused", "to complete a consent", by):
            if "userToken" in named:
                verified = await self._issuers.verify(named["userToken"])
                by.user = user = User(verified.subject, verified.issuer)
            else:
                by.user = user = User(named["userId"])
                await self.acting.admit(call.caller, call.operation, "a consent", user.id)
            await self._federation.complete(by, user, request["sessionUri"])
        return {}

    # Tags of this plane's resources; other planes have those of their own.

    async def tag_resource(self, call: Call, request: control.TagResourceRequest) -> control.TagResourceResponse:
        await self._of(request["resourceArn"]).tag(request["resourceArn"], request["tags"])
        return {}

    async def untag_resource(self, call: Call, request: control.UntagResourceRequest) -> control.UntagResourceResponse:
        await self._of(request["resourceArn"]).untag(request["resourceArn"], request["tagKeys"])
        return {}

    async def list_tags_for_resource(
        self, call: Call, request: control.ListTagsForResourceRequest
    ) -> control.ListTagsForResourceResponse:
        return {"tags": dict(await self._of(request["resourceArn"]).tags(request["resourceArn"]))}

    def _of(self, arn: str) -> _Tagged:
        parsed = Arn.parse(arn)
        found = None if parsed is None else self._tagged.get(parsed.kind)
        if found is None:
            raise ResourceNotFoundException(f"No resource with ARN {arn!r}")
        return found

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
