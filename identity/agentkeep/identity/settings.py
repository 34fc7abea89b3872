"""Settings of the identity plane. Times are seconds, sizes bytes."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentkeep.identity.inbound.provider_documents import parse_addresses, refuse_unsafe_url

__all__ = ["IdentitySettings"]


class IdentitySettings(BaseSettings):
    """`AGENTKEEP_IDENTITY_*`."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_IDENTITY_", extra="ignore")

    # Access keys.
    session_key_life: float = Field(3600, ge=60, le=43_200, description="How long a session's key is accepted.")
    key_cache: float = Field(
        5, ge=0, le=60, description="How long another replica may still accept a key after its end: its cache's age."
    )
    key_cache_size: int = Field(10_000, ge=1, description="Access keys remembered at once.")

    # Users' credentials in AWS.
    sts_rules: Path | None = Field(
        None,
        description="A file of rules that say which IAM role a session's user gets by AWS STS "
        "(docs/development/sts.md); read at start. Without it AWS is not asked, and sessions get keys of this "
        "platform, which AWS does not know.",
    )
    sts_region: str | None = Field(
        None,
        pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$",
        description="The region whose STS is asked. Without it the deployment's own.",
    )
    sts_endpoint: str | None = Field(
        None,
        description="STS's URL where it is another than the region's public one: a VPC endpoint's, say. https, or http "
        "on this machine.",
    )
    sts_timeout: float = Field(4, gt=0, le=8, description="How long STS may take for one answer.")

    # Roles, for people and applications.
    roles: Path | None = Field(
        None,
        description="A file of the deployment's roles (docs/development/roles.md), which people and applications "
        "assume with tokens of issuers that it names; read at start. Without it there are none.",
    )
    role_exchanges: float = Field(
        50,
        ge=1,
        description="How many tokens a second each replica exchanges for keys of roles; twice as many at once.",
    )

    # Workload access tokens.
    workload_token_life: float = Field(
        3600, ge=60, le=43_200, description="How long a workload access token is accepted."
    )
    trusted_issuers: tuple[str, ...] = Field(
        (),
        description="Discovery URLs of the OpenID providers whose user tokens GetWorkloadAccessTokenForJWT accepts.",
    )

    # The token vault.
    credential_providers: int = Field(
        50, ge=1, le=1000, description="How many credential providers there may be of each kind: API keys, OAuth2."
    )

    consent_life: float = Field(
        600, ge=60, le=3600, description="How long a user has for consenting to what an agent asks another service for."
    )
    grant_life: float = Field(
        90 * 86_400,
        ge=3600,
        description="How long tokens by a user's consent are kept since they were given or last renewed; then the user "
        "is asked again.",
    )

    # JSON Web Tokens and where their keys come from.
    clock_skew: float = Field(60, ge=0, le=300, description="Tolerance for exp, nbf and iat.")
    token_limit: int = Field(16_384, ge=1024, le=131_072, description="Longer user tokens are refused unread.")
    verified_tokens: int = Field(10_000, ge=1, description="Tokens remembered as verified, until they expire.")
    provider_refresh: float = Field(600, gt=0, description="Age at which a provider's keys are fetched again.")
    provider_outage: float = Field(
        3600, gt=0, description="Age up to which known keys are used while their provider does not answer."
    )
    provider_retry: float = Field(
        10, ge=0, description="Least time between two fetches from one provider, whatever key ids tokens name."
    )
    provider_timeout: float = Field(5, gt=0, description="For each document and token of a provider.")
    provider_addresses: str = Field(
        "",
        description="Where providers are reached that go by another address in here than to their users: pairs of "
        "beginnings of URLs, `http://localhost:8180=http://keycloak:8080`, separated by commas. What is sent there is "
        "as safe as the network in between.",
    )
    provider_document_limit: int = Field(262_144, ge=1024, description="Larger documents of a provider are refused.")

    # The development issuer.
    development_token_life: float = Field(
        3600, ge=60, le=86_400, description="How long the development issuer's tokens live."
    )

    @field_validator("provider_addresses")
    @classmethod
    def _pairs(cls, text: str) -> str:
        parse_addresses(text)
        return text

    @field_validator("sts_endpoint")
    @classmethod
    def _safe_endpoint(cls, url: str | None) -> str | None:
        if url is not None:
            refuse_unsafe_url(url, "STS", "who reads what is sent there has users' tokens, and keys of their roles")
        return url

    @field_validator("trusted_issuers")
    @classmethod
    def _safe(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            refuse_unsafe_url(url)
        return urls
