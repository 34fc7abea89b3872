"""Images of versions: on this machine or pulled, and pinned to their version by a tag of ours.

A tag in a registry may move; a version never changes. What a version first ran as is therefore tagged
`agentkeep-version:<runtime>.<version>` here, and that is what its sessions get until the version is retired.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Final

from agentkeep.core.errors import EnvironmentStartFailed
from agentkeep.runtime.drivers.docker.engine import Engine, EngineError
from agentkeep.runtime.drivers.driver import VersionSpec

__all__ = ["REPOSITORY", "Image", "Images", "find_image", "image_of", "is_reference"]

REPOSITORY: Final = "agentkeep-version"
#: Stricter than a registry's rules need be; it keeps whatever is not a name out of the engine's paths.
_REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?::[0-9]+)?(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*"
                               r"(?::[A-Za-z0-9_][A-Za-z0-9._-]*)?(?:@sha256:[0-9a-f]{64})?")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Image:
    """`user` as the image names it, empty if it does not; `variables`: names it sets in the environment."""

    id: str
    user: str
    variables: frozenset[str]

    @property
    def names_user(self) -> bool:
        return self.user.partition(":")[0] not in ("", "0", "root")


class Images:
    def __init__(self, engine: Engine, pull_timeout: float) -> None:
        self._engine = engine
        self._pull_timeout = pull_timeout
        self._found: dict[tuple[str, str], Image] = {}
        self._finding: dict[tuple[str, str], asyncio.Lock] = {}

    async def get(self, version: VersionSpec) -> Image:
        """Raises EnvironmentStartFailed with the reason, SandboxUnavailable."""
        key = (version.runtime_id, version.version)
        async with self._finding.setdefault(key, asyncio.Lock()):
            if key not in self._found:
                self._found[key] = await self._find(version)
            return self._found[key]

    def forget(self, version: VersionSpec) -> None:
        """It turned out not to be there any more."""
        self._found.pop((version.runtime_id, version.version), None)

    async def retire(self, runtime_id: str, version: str) -> None:
        """Lets the image go; the engine keeps it while containers or other tags need it."""
        self._finding.pop((runtime_id, version), None)
        self._found.pop((runtime_id, version), None)
        try:
            await self._engine.remove_image(f"{REPOSITORY}:{runtime_id}.{version}")
        except EngineError as error:
            if error.status != 409:  # a session still runs from it: then it stays, under this name
                raise

    async def _find(self, version: VersionSpec) -> Image:
        pin = f"{version.runtime_id}.{version.version}"
        if (found := await self._engine.image(f"{REPOSITORY}:{pin}")) is not None:
            return image_of(found)
        image = await find_image(self._engine, version.image or "", self._pull_timeout)
        await self._engine.tag(image.id, REPOSITORY, pin)
        return image


async def find_image(engine: Engine, reference: str, pull_timeout: float) -> Image:
    """On this machine, or pulled. Raises EnvironmentStartFailed with the reason."""
    if not is_reference(reference):
        raise EnvironmentStartFailed(f"{reference!r} is not the name of an image (registry/name:tag)")
    if "@" not in reference and ":" not in reference.rpartition("/")[2]:
        reference += ":latest"  # without a tag the engine would pull all
    try:
        found = await engine.image(reference)
    except EngineError as error:
        raise EnvironmentStartFailed(f"the image {reference} cannot be used: {error}") from None
    if found is None:
        found = await _pull(engine, reference, pull_timeout)
    if found.get("Os", "linux") != "linux":
        raise EnvironmentStartFailed(f"the image {reference} is made for {found['Os']}; only Linux images run here")
    return image_of(found)


def is_reference(text: str) -> bool:
    return _REFERENCE.fullmatch(text) is not None


async def _pull(engine: Engine, reference: str, timeout: float) -> dict[str, Any]:
    beginning = f"the image {reference} is not on this machine and cannot be pulled"
    try:
        async with asyncio.timeout(timeout):
            await engine.pull(reference)
    except EngineError as error:
        raise EnvironmentStartFailed(f"{beginning}: {error}") from None
    except TimeoutError:
        raise EnvironmentStartFailed(f"{beginning} within {timeout:g} s") from None
    found = await engine.image(reference)
    if found is None:
        raise EnvironmentStartFailed(f"{beginning}: the engine does not have it after pulling")
    return found


def image_of(document: dict[str, Any]) -> Image:
    """From what the engine says of one."""
    configuration = document.get("Config") or {}
    names = frozenset(str(variable).partition("=")[0] for variable in configuration.get("Env") or ())
    return Image(document["Id"], configuration.get("User") or "", names)
