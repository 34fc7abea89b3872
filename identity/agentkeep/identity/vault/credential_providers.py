"""Credential providers: named accounts at other services, each with the secret that agents use there.

A provider and its secret are two items, written together and read apart: whatever shows a provider has not read its
secret.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson

from agentkeep.core.clock import Clock, epoch_ms, from_epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    InternalServerException,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
)
from agentkeep.core.identifiers import Deployment, suffix
from agentkeep.core.pages import place
from agentkeep.core.pages import token as page_token
from agentkeep.core.tags import merged, refuse_reserved, without
from agentkeep.identity.vault.token_vault import VAULT, TokenVault
from agentkeep.storage.interface import ABSENT, PRESENT, Delete, KeyValueStore, Put, Write, partition

__all__ = ["CredentialProvider", "CredentialProviders", "ProviderKind"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 5


class ProviderKind(StrEnum):
    """Its value is the resource type in ARNs."""

    API_KEY = "apikeycredentialprovider"
    OAUTH2 = "oauth2credentialprovider"

    @property
    def noun(self) -> str:
        return "API key credential provider" if self is ProviderKind.API_KEY else "OAuth2 credential provider"

    @property
    def secrets(self) -> str:
        """Where AgentCore files the secrets of this kind: `apikey`, `oauth2`."""
        return self.value.removesuffix("credentialprovider")


@dataclass(frozen=True, slots=True)
class CredentialProvider:
    """`details` is what its kind keeps besides, JSON and without secrets. `secret_arn` has the form of AgentCore's,
    which names a secret in Secrets Manager; here it names one in the token vault. It keeps its random end as long as
    the provider lives."""

    name: str
    arn: str
    secret_arn: str
    created: datetime
    updated: datetime
    details: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def dump(self) -> bytes:
        return orjson.dumps(
            {
                "secret_arn": self.secret_arn,
                "created": epoch_ms(self.created),
                "updated": epoch_ms(self.updated),
                "details": dict(self.details),
                "tags": dict(self.tags),
            }
        )


class CredentialProviders:
    """The providers of one kind. `most`: how many there may be."""

    def __init__(
        self,
        kind: ProviderKind,
        store: KeyValueStore,
        vault: TokenVault,
        deployment: Deployment,
        clock: Clock,
        most: int,
    ) -> None:
        self.kind = kind
        self._store = store
        self._vault = vault
        self._deployment = deployment
        self._clock = clock
        self._most = most
        self._providers = partition("identity", "credential-providers", kind)
        self._secrets = partition("identity", "token-vaults", VAULT, kind.secrets)

    async def create(
        self, name: str, secret: str | None, details: Mapping[str, Any], tags: Mapping[str, str]
    ) -> CredentialProvider:
        """Raises ConflictException where the name is taken, ServiceQuotaExceededException beyond `most`."""
        refuse_reserved(tags)
        # Read, not counted in the transaction: of creations at the same moment one too many may pass.
        if len(await self._store.query(self._providers, limit=self._most)) == self._most:
            raise ServiceQuotaExceededException(
                f"There are {self._most} {self.kind.noun}s already; delete one, or raise "
                "AGENTKEEP_IDENTITY_CREDENTIAL_PROVIDERS"
            )
        path = f"bedrock-agentcore-identity!{VAULT}/{self.kind.secrets}/{name}"
        secret_arn = self._deployment.arn(f"secret:{path}-{suffix(length=6)}", service="secretsmanager")
        now = self._now()
        provider = CredentialProvider(name, self.arn(name), secret_arn, now, now, details, tags)
        sealed = await self._secret_write(name, secret)
        try:
            await self._store.transact([Put(self._providers, name, provider.dump(), expect=ABSENT), sealed])
        except ConditionFailed:
            raise ConflictException(f"There is already an {self.kind.noun} named {name}") from None
        return provider

    async def get(self, name: str) -> CredentialProvider:
        """Raises ResourceNotFoundException."""
        value = await self._store.get(self._providers, name)
        if value is None:
            raise self._missing(name)
        return self._load(name, value)

    async def list(self, limit: int, token: str | None) -> tuple[list[CredentialProvider], str | None]:
        """A page by name, and the token of the next."""
        items = await self._store.query(self._providers, after=place(token), limit=limit + 1)
        page = [self._load(item.sort, item.value) for item in items[:limit]]
        return page, page_token(page[-1].name) if len(items) > limit else None

    async def update(
        self,
        name: str,
        secret: str | None,
        details: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda kept: kept,
    ) -> CredentialProvider:
        """Replaces the secret; `details` makes the new details of the old ones."""

        def change(provider: CredentialProvider) -> CredentialProvider:
            return replace(provider, details=details(provider.details), updated=self._now())

        return await self._change(name, change, await self._secret_write(name, secret))

    async def delete(self, name: str) -> None:
        """Raises ResourceNotFoundException."""
        try:
            await self._store.transact([Delete(self._providers, name, expect=PRESENT), Delete(self._secrets, name)])
        except ConditionFailed:
            raise self._missing(name) from None

    async def secret(self, name: str) -> str:
        """Raises ResourceNotFoundException, or InternalServerException where the vault cannot open it."""
        envelope = await self._store.get(self._secrets, name)
        if envelope is None:
            raise self._missing(name)
        return await self._opened(name, envelope)

    async def with_secret(self, name: str) -> tuple[CredentialProvider, str | None]:
        """The provider and its secret, None where it has none, of one moment: an update between reading the two must
        not send the old secret to new endpoints.

        Raises ResourceNotFoundException, InternalServerException where the vault cannot open it, ConflictException
        where it changes all the time.
        """
        value = await self._store.get(self._providers, name)
        for _ in range(_ATTEMPTS):
            if value is None:
                raise self._missing(name)
            envelope = await self._store.get(self._secrets, name)
            before, value = value, await self._store.get(self._providers, name)
            if value == before:
                return self._load(name, value), None if envelope is None else await self._opened(name, envelope)
        raise ConflictException(f"{self.kind.noun} {name} is being changed by others; try again")

    # Tags.

    async def tag(self, arn: str, tags: Mapping[str, str]) -> None:
        await self._change(self._name(arn), lambda one: replace(one, tags=merged(one.tags, tags)))

    async def untag(self, arn: str, keys: Sequence[str]) -> None:
        await self._change(self._name(arn), lambda one: replace(one, tags=without(one.tags, keys)))

    async def tags(self, arn: str) -> Mapping[str, str]:
        return (await self.get(self._name(arn))).tags

    def arn(self, name: str) -> str:
        return self._deployment.arn(f"token-vault/{VAULT}/{self.kind}/{name}")

    # Inside.

    def _name(self, arn: str) -> str:
        prefix = self.arn("")
        if not arn.startswith(prefix) or "/" in (name := arn.removeprefix(prefix)):
            raise ResourceNotFoundException(f"There is no {self.kind.noun} with ARN {arn}")
        return name

    def _label(self, name: str) -> str:
        return f"{self.kind.secrets}/{name}"

    async def _secret_write(self, name: str, secret: str | None) -> Write:
        if secret is None:
            return Delete(self._secrets, name)
        return Put(self._secrets, name, await self._vault.seal(secret, self._label(name)))

    async def _opened(self, name: str, envelope: bytes) -> str:
        secret = await self._vault.open(envelope, self._label(name))
        if secret is None:
            logger.error(
                "the secret of %s %s does not open: it was sealed with another master key", self.kind.noun, name
            )
            raise InternalServerException(
                f"The secret of {self.kind.noun} {name} cannot be opened with this platform's master key. "
                "Restore the master key, or update the provider with its secret."
            )
        return secret

    def _missing(self, name: str) -> ResourceNotFoundException:
        return ResourceNotFoundException(f"There is no {self.kind.noun} named {name}")

    def _now(self) -> datetime:
        return from_epoch_ms(epoch_ms(self._clock.now()))  # as it is stored

    def _load(self, name: str, value: bytes) -> CredentialProvider:
        document: dict[str, Any] = orjson.loads(value)
        return CredentialProvider(
            name,
            self.arn(name),
            document["secret_arn"],
            from_epoch_ms(document["created"]),
            from_epoch_ms(document["updated"]),
            document["details"],
            document["tags"],
        )

    async def _change(
        self, name: str, change: Callable[[CredentialProvider], CredentialProvider], *others: Write
    ) -> CredentialProvider:
        for _ in range(_ATTEMPTS):
            value = await self._store.get(self._providers, name)
            if value is None:
                raise self._missing(name)
            changed = change(self._load(name, value))
            try:
                await self._store.transact([Put(self._providers, name, changed.dump(), expect=value), *others])
            except ConditionFailed:
                continue
            return changed
        raise ConflictException(f"{self.kind.noun} {name} is being changed by others; try again")
