"""Which images may be pulled and run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from agentkeep.runtime.drivers.docker.images import REPOSITORY, is_reference
from agentkeep.runtime.drivers.docker.probe import PROBE_IMAGE

__all__ = ["AllowedImages"]


class AllowedImages:
    """By patterns, separated by commas; a `*` stands for anything."""

    def __init__(self, patterns: str) -> None:
        self._patterns = [_whole(one) for one in map(str.strip, patterns.split(",")) if one]

    def pull(self, reference: str) -> bool:
        """A tag or a digest is part of the name: without one the engine would pull all."""
        named = "@" in reference or ":" in reference.rpartition("/")[2]
        return named and is_reference(reference) and self._matches([reference])

    def pin(self, image: Mapping[str, Any]) -> bool:
        """Whether any of its names is allowed."""
        return self._matches(_names(image))

    def run(self, image: Mapping[str, Any]) -> bool:
        """Or was, when it was pinned to a version; or is the empty image of `agentkeep doctor`."""
        names = _names(image)
        return any(name.startswith(f"{REPOSITORY}:") or name == ":".join(PROBE_IMAGE) for name in names) or self.pin(
            image
        )

    def _matches(self, names: Iterable[str]) -> bool:
        return any(fnmatchcase(_whole(name), pattern) for name in names for pattern in self._patterns)


def _names(image: Mapping[str, Any]) -> list[str]:
    return [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]


def _whole(reference: str) -> str:
    """With the registry and folder that the engine supplies where a name has none."""
    first, slash, _ = reference.partition("/")
    if not slash:
        return reference if reference == "*" else f"docker.io/library/{reference}"
    if first == "localhost" or "." in first or ":" in first or "*" in first:
        return reference
    return f"docker.io/{reference}"
