"""Two drivers as one: code bundles run in the one, container images in the other."""

from __future__ import annotations

from collections.abc import Sequence

from agentkeep.runtime.drivers.driver import (
    AdoptedEnvironment,
    Driver,
    Environment,
    EnvironmentSpec,
    Finding,
    VersionSpec,
)

__all__ = ["DriverByArtifact"]


class DriverByArtifact:
    def __init__(self, bundles: Driver, images: Driver) -> None:
        self._bundles = bundles
        self._images = images
        self.name = f"{bundles.name}, {images.name}"

    def of(self, version: VersionSpec) -> Driver:
        return self._bundles if version.image is None else self._images

    async def probe(self) -> Sequence[Finding]:
        return [*await self._bundles.probe(), *await self._images.probe()]

    async def prepare(self, version: VersionSpec) -> None:
        await self.of(version).prepare(version)

    async def start(self, spec: EnvironmentSpec) -> Environment:
        return await self.of(spec.version).start(spec)

    async def adopt(self) -> Sequence[AdoptedEnvironment]:
        return [*await self._bundles.adopt(), *await self._images.adopt()]

    async def take_over(self, replica: str) -> Sequence[AdoptedEnvironment]:
        return [*await self._bundles.take_over(replica), *await self._images.take_over(replica)]

    async def retire(self, runtime_id: str, version: str) -> None:
        await self._bundles.retire(runtime_id, version)
        await self._images.retire(runtime_id, version)

    async def close(self) -> None:
        try:
            await self._images.close()
        finally:
            await self._bundles.close()
