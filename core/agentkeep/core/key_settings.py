"""Settings of the key services, and the services they describe."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentkeep.core.key_service import KeyServices
from agentkeep.core.key_service_kms import KmsKeyService
from agentkeep.core.key_service_local import LocalKeyService

__all__ = ["KeySettings"]


class KeySettings(BaseSettings):
    """`AGENTKEEP_KEYS_*`, the same for every plane that seals what it stores."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_KEYS_", env_ignore_empty=True, frozen=True, extra="ignore")

    kms_key_arn: str | None = Field(
        None,
        pattern=r"^arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:(key|alias)/[A-Za-z0-9/_-]+$",
        description="The key of AWS KMS under which all is sealed for which no other key is named; none: a secret of "
        "this deployment. What is sealed already stays under the key it was sealed under.",
    )
    kms_endpoint_url: str | None = Field(None, description="Where AWS KMS is; none: AWS's own endpoint of the region.")
    kms_timeout: float = Field(5.0, gt=0, le=60, description="Seconds after which AWS KMS is taken to be away.")
    cache: float = Field(
        300.0,
        ge=0,
        description="Seconds for which an unwrapped data key is used before its key service is asked again.",
    )
    outage: float = Field(
        3600.0,
        ge=0,
        description="Seconds for which data keys in use stay in use while their key service does not answer.",
    )

    def services(self, secret: bytes, halves: Path | None = None) -> KeyServices:
        """`secret`, `halves`: of the local key service."""
        kms = KmsKeyService(self.kms_endpoint_url, self.kms_timeout)
        return KeyServices(LocalKeyService(secret, halves), kms, self.kms_key_arn)
