"""Versions made ready to run on this machine: bundle unpacked and packages installed, or image there; the driver
prepared; once each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agentkeep.runtime.agents.bundles import PYTHON, Bundle, Bundles
from agentkeep.runtime.agents.rules import Settings
from agentkeep.runtime.drivers.driver import Driver, VersionSpec
from agentkeep.runtime.records import Version

__all__ = ["PreparedVersion", "PreparedVersions"]


@dataclass(frozen=True, slots=True)
class PreparedVersion:
    version: Version
    settings: Settings
    bundle: Bundle | None  # None: it is an image
    spec: VersionSpec


class PreparedVersions:
    def __init__(self, bundles: Bundles, driver: Driver) -> None:
        self._bundles = bundles
        self._driver = driver
        self._ready: dict[tuple[str, int], PreparedVersion] = {}
        self._preparing: dict[tuple[str, int], asyncio.Lock] = {}

    async def get(self, version: Version) -> PreparedVersion:
        """Raises ArtifactError, EnvironmentStartFailed or SandboxUnavailable: what would fail every session."""
        key = (version.runtime_id, version.number)
        if found := self._ready.get(key):
            return found
        async with self._preparing.setdefault(key, asyncio.Lock()):
            if found := self._ready.get(key):
                return found
            settings = Settings.of(version.settings)
            artifact = version.settings["agentRuntimeArtifact"]
            bundle = None
            if "containerConfiguration" not in artifact:
                bundle = await self._bundles.prepare(artifact["codeConfiguration"], version.artifact)
            spec = VersionSpec(
                runtime_id=version.runtime_id,
                version=str(version.number),
                bundle=None if bundle is None else bundle.folder,
                dependencies=None if bundle is None else bundle.dependencies,
                entry_point=settings.entry_point,
                python=PYTHON,
                image=artifact["containerConfiguration"]["containerUri"] if bundle is None else None,
                port=settings.port,
                storage=settings.storage,
            )
            await self._driver.prepare(spec)
            self._ready[key] = found = PreparedVersion(version, settings, bundle, spec)
            return found

    async def retire(self, runtime_id: str, number: int) -> None:
        """No new session of this version is expected; one that comes nevertheless is served, after preparing again."""
        self._preparing.pop((runtime_id, number), None)
        if self._ready.pop((runtime_id, number), None) is not None:
            await self._driver.retire(runtime_id, str(number))
