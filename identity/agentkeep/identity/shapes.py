"""What operators are shown of the plane's resources, in the shapes of the service model."""

from __future__ import annotations

from agentkeep.identity.vault.credential_providers import CredentialProvider
from agentkeep.identity.vault.token_vault import VaultKey
from agentkeep.identity.workloads.identities import WorkloadIdentity
from agentkeep.wire.types import bedrock_agentcore_control as control

__all__ = ["api_key_provider_shape", "oauth2_provider_shape", "vault_shape", "workload_identity_shape"]


def workload_identity_shape(identity: WorkloadIdentity) -> control.GetWorkloadIdentityResponse:
    return {
        "name": identity.name,
        "workloadIdentityArn": identity.arn,
        "allowedResourceOauth2ReturnUrls": list(identity.return_urls),
        "createdTime": identity.created,
        "lastUpdatedTime": identity.updated,
    }


def api_key_provider_shape(provider: CredentialProvider) -> control.GetApiKeyCredentialProviderResponse:
    return {
        "name": provider.name,
        "credentialProviderArn": provider.arn,
        "apiKeySecretArn": {"secretArn": provider.secret_arn},
        "apiKeySecretSource": "MANAGED",
        "createdTime": provider.created,
        "lastUpdatedTime": provider.updated,
    }


def oauth2_provider_shape(
    provider: CredentialProvider, callback_url: str
) -> control.GetOauth2CredentialProviderResponse:
    return {
        "name": provider.name,
        "credentialProviderArn": provider.arn,
        "credentialProviderVendor": provider.details["vendor"],
        "clientSecretArn": {"secretArn": provider.secret_arn},
        "clientSecretSource": "MANAGED",
        "callbackUrl": callback_url,
        "oauth2ProviderConfigOutput": provider.details["output"],
        "createdTime": provider.created,
        "lastUpdatedTime": provider.updated,
        "status": "READY",
    }


def vault_shape(vault: str, key: VaultKey) -> control.GetTokenVaultResponse:
    configuration: control.KmsConfiguration = {"keyType": "ServiceManagedKey"}
    if key.arn is not None:
        configuration = {"keyType": "CustomerManagedKey", "kmsKeyArn": key.arn}
    return {"tokenVaultId": vault, "kmsConfiguration": configuration, "lastModifiedDate": key.modified}
