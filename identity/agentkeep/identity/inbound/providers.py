"""OpenID providers as the platform knows them: their keys, kept, renewed, and used through an outage for a while."""

from __future__ import annotations

import asyncio
import logging

from agentkeep.core.clock import Clock
from agentkeep.core.errors import ProviderError, ServiceUnavailableException
from agentkeep.identity.inbound.provider_documents import (
    DocumentFetcher,
    ProviderKeys,
    parse_addresses,
    parse_issuer,
    parse_keys,
)
from agentkeep.identity.settings import IdentitySettings

__all__ = ["OpenIdProvider", "OpenIdProviders"]

logger = logging.getLogger(__name__)

_MOST_PROVIDERS = 1000
_RETRY_AFTER_FAILURE = 1.0  # seconds


class OpenIdProvider:
    """One provider, by its discovery URL. Its keys are

    - fresh until `provider_refresh` seconds old;
    - then used while they are fetched again in the background, until `provider_outage` seconds old;
    - then not used: callers wait for the fetch and are refused if it fails. Never a downgrade.
    """

    def __init__(self, url: str, fetcher: DocumentFetcher, clock: Clock, settings: IdentitySettings) -> None:
        self.url = url
        self._fetcher = fetcher
        self._clock = clock
        self._settings = settings
        self._keys: ProviderKeys | None = None
        self._fetched = 0.0
        self._next = float("-inf")  # no fetch before
        self._fetching: asyncio.Task[None] | None = None
        self._failure = ""

    def current(self) -> ProviderKeys | None:
        """The keys that may be used now, without waiting. The same object until the provider publishes others."""
        if self._keys is None:
            return None
        age = self._clock.monotonic() - self._fetched
        if age >= self._settings.provider_refresh:
            self._start()
            if age >= self._settings.provider_outage:
                return None
        return self._keys

    async def keys(self) -> ProviderKeys:
        """The keys that may be used now. Raises ServiceUnavailableException where there are none."""
        if (keys := self.current()) is not None:
            return keys
        await self._refresh()
        if (keys := self.current()) is not None:
            return keys
        raise self._unreachable()

    async def newer(self, keys: ProviderKeys) -> ProviderKeys:
        """The provider's keys after looking whether it publishes others than `keys` by now; `keys` itself where it does
        not, or was asked only just. Raises ServiceUnavailableException where it could not be asked: what it may have
        published since is not known, so nobody is refused for good."""
        if self._keys is keys:
            await self._refresh()
        if self._keys is keys and self._failure:
            raise self._unreachable()
        return self.current() or keys

    def _unreachable(self) -> ServiceUnavailableException:
        return ServiceUnavailableException(
            f"The identity provider of {self.url} cannot be reached, so user tokens cannot be verified. Try again."
        )

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    async def _refresh(self) -> None:
        self._start()
        if self._fetching is not None:
            await asyncio.wait([self._fetching])  # not awaited itself: one caller's leaving must not end it for all

    def _start(self) -> None:
        if self._fetching is None and self._clock.monotonic() >= self._next:
            self._fetching = asyncio.create_task(self._fetch(), name=f"fetch {self.url}")

    async def _fetch(self) -> None:
        wait = _RETRY_AFTER_FAILURE
        try:
            issuer, keys_url = parse_issuer(self.url, await self._fetcher.fetch(self.url))
            keys = parse_keys(issuer, await self._fetcher.fetch(keys_url))
            if self._keys is None or self._keys.fingerprint != keys.fingerprint:
                self._keys = keys
            self._fetched = self._clock.monotonic()
            self._failure = ""
            wait = self._settings.provider_retry
        except ProviderError as error:
            if str(error) != self._failure:
                logger.warning("keys of %s cannot be fetched: %s", self.url, error)
            self._failure = str(error)
        finally:
            self._next = self._clock.monotonic() + wait
            self._fetching = None


class OpenIdProviders:
    """The providers in use; the least recently used are forgotten first."""

    def __init__(self, clock: Clock, settings: IdentitySettings) -> None:
        self._fetcher = DocumentFetcher(
            settings.provider_timeout, settings.provider_document_limit, parse_addresses(settings.provider_addresses)
        )
        self._clock = clock
        self._settings = settings
        self._providers: dict[str, OpenIdProvider] = {}

    def get(self, url: str) -> OpenIdProvider:
        provider = self._providers.pop(url, None) or OpenIdProvider(url, self._fetcher, self._clock, self._settings)
        self._providers[url] = provider
        if len(self._providers) > _MOST_PROVIDERS:
            del self._providers[next(iter(self._providers))]  # what it fetches right now ends by itself
        return provider

    async def close(self) -> None:
        for provider in self._providers.values():
            await provider.close()
        await self._fetcher.close()
