"""The environment variables of versions, which often are secrets: sealed wherever they are kept.

Each version's are sealed under a data key of its own, which lies beside them, wrapped for this runtime and version
alone. They are opened when an environment is started, and for who may read them (GetAgentRuntime); never to serve a
session that lives.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import orjson

from agentkeep.core.clock import Clock
from agentkeep.core.data_keys import DataKeys
from agentkeep.core.errors import (
    ConditionFailed,
    DependencyError,
    RetryableConflictException,
    SealBroken,
    ServiceError,
)
from agentkeep.core.key_service import Context
from agentkeep.core.sealing import SealingKey
from agentkeep.runtime.agents.catalogue import Catalogue
from agentkeep.runtime.records import Sealed, Version

__all__ = ["VARIABLES", "SealedVariables"]

log = logging.getLogger(__name__)

#: The member of a version's settings.
VARIABLES: Final = "environmentVariables"
LEAST_MASKED: Final = 8
RETRY_SECONDS: Final = 60.0
_ATTEMPTS: Final = 5


class SealedVariables:
    """`rewrite_store`: has the store forget what was overwritten, once what lay there in clear is sealed; None: that is
    left to who runs the store."""

    def __init__(
        self,
        catalogue: Catalogue,
        keys: DataKeys,
        clock: Clock,
        rewrite_store: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._keys = keys
        self._clock = clock
        self._rewrite_store = rewrite_store
        self._overwritten = False
        self._sealing: asyncio.Task[None] | None = None

    async def seal(self, version: Version) -> Version:
        """The version as it may be stored. If it is not stored then: `discard`. Asks no key service where there are no
        variables. Raises KeyServiceUnavailable, KeyRefused: there is no lesser key to fall back on."""
        variables = version.settings.get(VARIABLES)
        if not variables:
            return version
        key = await self._keys.generate(_context(version))
        sealed = SealingKey(key.plain).seal(orjson.dumps(variables), _label(version))
        return replace(
            version,
            settings={name: value for name, value in version.settings.items() if name != VARIABLES},
            variables=Sealed(_text(key.wrapped), _text(sealed)),
        )

    async def open(self, version: Version) -> dict[str, str]:
        """What the deployer gave it. Raises KeyServiceUnavailable; KeyRefused, where the key was erased, too;
        SealBroken."""
        sealed = version.variables
        if sealed is None:
            return dict(version.settings.get(VARIABLES, {}))  # none, or from before they were sealed
        key = SealingKey(await self._keys.unwrap(_bytes(sealed.key), _context(version)))
        variables: dict[str, str] = orjson.loads(key.open(_bytes(sealed.data), _label(version)))
        return variables

    async def mask(self, version: Version, text: str) -> str:
        """What the version's agent wrote, to be stored or logged by the platform, without their values. Short ones
        stay: they are words like any other, and no secrets. Raises as `open`."""
        values = (value for value in (await self.open(version)).values() if len(value) >= LEAST_MASKED)
        for value in sorted(values, key=len, reverse=True):
            text = text.replace(value, "***")
        return text

    async def erase(self, version: Version) -> None:
        """What was sealed for the version can nowhere be opened any more: not even in copies of the store, where the
        key service keeps something of each key. May be repeated. Raises KeyServiceUnavailable."""
        if version.variables is not None:
            await self._keys.erase(_bytes(version.variables.key))

    async def discard(self, version: Version) -> None:
        """Erases the key of a version that is not in the store, or no longer; or leaves it, and says so."""
        try:
            await self.erase(version)
        except ServiceError as error:
            log.warning("a data key that nothing stored is sealed under is left behind: %s", error)

    # From before they were sealed.

    async def start(self) -> None:
        """Seals what earlier releases stored in clear: now, or as soon as the key service allows it."""
        if not await self._seal_former():
            self._sealing = asyncio.create_task(self._seal_later(), name="seal-variables")

    async def stop(self) -> None:
        if self._sealing is not None:
            self._sealing.cancel()
            await asyncio.wait([self._sealing])

    async def _seal_later(self) -> None:
        while True:
            await self._clock.sleep(RETRY_SECONDS)
            if await self._seal_former():
                return

    async def _seal_former(self) -> bool:
        try:
            async for runtime in self._catalogue.all_runtimes():
                async for stored in self._catalogue.all_versions(runtime.record.id):
                    if stored.record.settings.get(VARIABLES):
                        await self._seal_stored(stored.record.runtime_id, stored.record.number)
            if self._overwritten and self._rewrite_store is not None:
                await self._rewrite_store()
        except (ServiceError, DependencyError) as error:
            log.warning("environment variables in the store are still to be sealed: %s", error)
            return False
        return True

    async def _seal_stored(self, runtime_id: str, number: int) -> None:
        for _ in range(_ATTEMPTS):
            stored = await self._catalogue.find_version(runtime_id, number)
            if stored is None or not stored.record.settings.get(VARIABLES):
                return  # deleted, or sealed by another replica
            sealed = await self.seal(stored.record)
            try:
                await self._catalogue.store.transact([self._catalogue.put_version(sealed, stored.raw)])
            except ConditionFailed:
                await self.discard(sealed)
                continue
            self._overwritten = True
            log.info("sealed the environment variables of agent runtime %s, version %d", runtime_id, number)
            return
        raise RetryableConflictException(f"Version {number} of agent runtime {runtime_id} is being changed")


def _context(version: Version) -> Context:
    return {"agentkeep:runtime": version.runtime_id, "agentkeep:version": str(version.number)}


def _label(version: Version) -> str:
    return f"runtime/{version.runtime_id}/{version.number}/{VARIABLES}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise SealBroken("what is stored of environment variables is damaged") from None
