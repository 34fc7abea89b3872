"""Where code bundles lie: objects by bucket and key, each upload a version that never changes. Shaped as S3 is, so that
the store of a deployment on AWS is S3 itself."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from agentkeep.core.errors import DependencyError

__all__ = [
    "ArtifactError",
    "ArtifactNotFound",
    "ArtifactObject",
    "ArtifactStore",
    "ArtifactTooLarge",
    "FolderArtifactStore",
]

CHUNK = 1 << 20


class ArtifactError(DependencyError):
    """An artifact cannot be had or used. The message may be shown to whoever deploys it."""


class ArtifactNotFound(ArtifactError):
    pass


class ArtifactTooLarge(ArtifactError):
    pass


@dataclass(frozen=True, slots=True)
class ArtifactObject:
    bucket: str
    key: str
    version_id: str
    size: int


class ArtifactStore(Protocol):
    async def head(self, bucket: str, key: str, version_id: str | None = None) -> ArtifactObject:
        """The object's version, the newest if none is named. Raises ArtifactNotFound."""
        ...

    async def fetch(self, artifact: ArtifactObject, target: BinaryIO) -> None:
        """Writes the object into `target`. Raises ArtifactNotFound if it has gone."""
        ...

    async def put(self, bucket: str, key: str, body: AsyncIterator[bytes], limit: int) -> ArtifactObject:
        """Stores a new version, whole or not at all. Raises ArtifactTooLarge beyond `limit` bytes."""
        ...


class FolderArtifactStore:
    """Objects in a folder: `<bucket>/<digest of the key>/<digest of the content>`, beside it `newest` and `key`.

    A version's id is the SHA-256 of its content, so storing the same bytes again makes no new version. Buckets need
    not be made first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _object(self, bucket: str, key: str) -> Path:
        # Neither bucket nor key ever becomes a path as it is: keys hold slashes and dots, and may be 1,024 long.
        names = (hashlib.sha256(part.encode()).hexdigest() for part in (bucket, key))
        return self._folder.joinpath(*names)

    async def head(self, bucket: str, key: str, version_id: str | None = None) -> ArtifactObject:
        return await asyncio.to_thread(self._head, bucket, key, version_id)

    def _head(self, bucket: str, key: str, version_id: str | None) -> ArtifactObject:
        place = self._object(bucket, key)
        missing = ArtifactNotFound(
            f"There is no object s3://{bucket}/{key}" + (f" with version {version_id}" if version_id else "")
        )
        try:
            newest = (place / "newest").read_text()
            # An id that is not in the listing is refused before it can be a path.
            if version_id is not None and version_id not in os.listdir(place / "versions"):
                raise missing
            version = version_id or newest
            return ArtifactObject(bucket, key, version, (place / "versions" / version).stat().st_size)
        except FileNotFoundError:
            raise missing from None

    async def fetch(self, artifact: ArtifactObject, target: BinaryIO) -> None:
        await self.head(artifact.bucket, artifact.key, artifact.version_id)
        source = self._object(artifact.bucket, artifact.key) / "versions" / artifact.version_id
        await asyncio.to_thread(_copy, source, target)

    async def put(self, bucket: str, key: str, body: AsyncIterator[bytes], limit: int) -> ArtifactObject:
        place = self._object(bucket, key)
        await asyncio.to_thread(_make_place, place, bucket, key)
        digest, size = hashlib.sha256(), 0
        handle, name = await asyncio.to_thread(tempfile.mkstemp, dir=place, prefix="upload-")
        try:
            with os.fdopen(handle, "wb") as file:
                async for piece in body:
                    size += len(piece)
                    if size > limit:
                        raise ArtifactTooLarge(f"The object is larger than {limit} bytes.")
                    digest.update(piece)
                    await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(_publish, place, Path(name), digest.hexdigest())
        except BaseException:
            await asyncio.to_thread(Path(name).unlink, missing_ok=True)
            raise
        return ArtifactObject(bucket, key, digest.hexdigest(), size)


def _make_place(place: Path, bucket: str, key: str) -> None:
    (place / "versions").mkdir(parents=True, exist_ok=True)
    if not (place / "key").exists():
        _replace(place / "key", f"{bucket}/{key}")


def _publish(place: Path, upload: Path, version: str) -> None:
    with upload.open("rb") as file:
        os.fsync(file.fileno())
    upload.chmod(0o444)
    upload.replace(place / "versions" / version)
    _replace(place / "newest", version)


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix="new-", delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)


def _copy(source: Path, target: BinaryIO) -> None:
    with source.open("rb") as file:
        shutil.copyfileobj(file, target, CHUNK)
