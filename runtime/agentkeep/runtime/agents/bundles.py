"""Code bundles: a version's zip fetched, checked, and unpacked once into a read-only folder named by its digest.

A bundle is a stranger's file. Nothing of it is run here, and nothing of it is written but regular files below the
folder made for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from agentkeep.runtime.agents.artifacts import ArtifactError, ArtifactObject, ArtifactStore
from agentkeep.runtime.agents.dependencies import Dependencies
from agentkeep.runtime.records import Artifact

__all__ = ["Bundle", "BundleRejected", "Bundles"]

log = logging.getLogger(__name__)

PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_ENTRIES: Final = 100_000
_PIECE: Final = 1 << 20
_COMPILE_MEMORY: Final = 1 << 30
_COMPILE_SECONDS: Final = 30
_COMPILE: Final = """
import pathlib, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob("*.py")):
    try:
        compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        sys.exit(print(str(error) or f"{path.name}: {type(error).__name__}") or 1)
"""


class BundleRejected(ArtifactError):
    """The bundle cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on this machine. `note`: what whoever reads the session's log should know."""

    artifact: Artifact
    folder: Path
    dependencies: Path | None
    note: str | None = None


class Bundles:
    """`folder` is this plane's own; bundles in it that no version names may be removed at any time."""

    def __init__(
        self,
        folder: Path,
        store: ArtifactStore,
        dependencies: Dependencies,
        *,
        size_limit: int,
        unpacked_limit: int,
        python_substitution: bool,
    ) -> None:
        self._folder = folder
        self._store = store
        self._dependencies = dependencies
        self._size_limit = size_limit
        self._unpacked_limit = unpacked_limit
        self._python_substitution = python_substitution
        self._unpacking: dict[str, asyncio.Lock] = {}

    async def prepare(self, code: Mapping[str, Any], pinned: Artifact | None) -> Bundle:
        """The bundle of a version's `codeConfiguration`, made ready if it is not. `pinned`: what the version was made
        from, once that is known; then it is that or nothing. Raises ArtifactError."""
        if pinned is None:
            pinned = await self._pin(code)
        folder = self._folder / pinned.digest
        async with self._unpacking.setdefault(pinned.digest, asyncio.Lock()):
            if not await asyncio.to_thread(folder.is_dir):
                await self._unpack(pinned, folder)
        note = await asyncio.to_thread(self._check, folder, code)
        return Bundle(pinned, folder, await self._dependencies.install(folder), note)

    async def _pin(self, code: Mapping[str, Any]) -> Artifact:
        place = code["code"]["s3"]
        found = await self._store.head(place["bucket"], place["prefix"], place.get("versionId"))
        if found.size > self._size_limit:
            raise BundleRejected(
                f"The bundle is {found.size:,} bytes; at most {self._size_limit:,} are allowed. Leave out what is not "
                "needed to run (data, tests, caches)."
            )
        with tempfile.TemporaryFile(dir=await self._scratch()) as file:
            await self._store.fetch(found, file)
            digest = await asyncio.to_thread(_digest, file)
        return Artifact(found.bucket, found.key, found.version_id, digest)

    async def _unpack(self, artifact: Artifact, folder: Path) -> None:
        scratch = await self._scratch()
        with tempfile.TemporaryFile(dir=scratch) as file:
            await self._store.fetch(ArtifactObject(artifact.bucket, artifact.key, artifact.version_id, 0), file)
            if await asyncio.to_thread(_digest, file) != artifact.digest:
                raise BundleRejected(
                    f"s3://{artifact.bucket}/{artifact.key} is not what this version was made from. Update the runtime "
                    "to make a new version."
                )
            made = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=scratch, prefix="bundle-"))
            try:
                await asyncio.to_thread(_extract, file, made, self._unpacked_limit)
                await asyncio.to_thread(made.rename, folder)
            except FileExistsError:
                pass  # another process was faster
            finally:
                await asyncio.to_thread(shutil.rmtree, made, ignore_errors=True)

    async def _scratch(self) -> Path:
        scratch = self._folder / ".unpacking"
        await asyncio.to_thread(scratch.mkdir, parents=True, exist_ok=True)
        return scratch

    def _check(self, folder: Path, code: Mapping[str, Any]) -> str | None:
        main = code["entryPoint"][-1]
        if not (folder / main).is_file():
            raise BundleRejected(f"The entry point {main} is not in the bundle. It holds: {_listing(folder)}.")
        wanted = str(code["runtime"]).removeprefix("PYTHON_").replace("_", ".")
        return None if wanted == PYTHON else self._check_other_python(folder, wanted)

    def _check_other_python(self, folder: Path, wanted: str) -> str:
        """A bundle made for another Python 3 runs here if it can be seen that it does."""
        advice = f"This platform runs Python {PYTHON}: name PYTHON_{PYTHON.replace('.', '_')} as the runtime"
        if not self._python_substitution:
            raise BundleRejected(f"The bundle wants Python {wanted}. {advice}.")
        own = f"cpython-{PYTHON.replace('.', '')}-"
        for path in folder.rglob("*.so"):
            if ".cpython-" in path.name and own not in path.name:
                raise BundleRejected(
                    f"{path.relative_to(folder)} is built for Python {wanted}. {advice}, and install the bundle's "
                    "packages for it, or ship a requirements.txt instead of the packages."
                )
        # Packages carry files for other versions on purpose; the agent's own code must be right.
        if (fault := _compile_fault(folder)) is not None:
            raise BundleRejected(
                f"The bundle wants Python {wanted} and does not compile on {PYTHON} ({fault}). {advice}."
            )
        return f"made for Python {wanted}, runs on Python {PYTHON}"

    async def collect(self, used: Iterable[str]) -> None:
        """Removes bundles (by digest) that nothing uses, and packages that no bundle left uses."""
        left = await asyncio.to_thread(_collect, self._folder, frozenset(used))
        await self._dependencies.collect(left)


def _compile_fault(folder: Path) -> str | None:
    """What is wrong with the Python files at the bundle's root; None if they compile. A small file can take gigabytes
    and minutes to compile, so a process of its own does it, with limits."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _COMPILE, str(folder), str(_COMPILE_MEMORY)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={},
            timeout=_COMPILE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"it takes longer than {_COMPILE_SECONDS} seconds"
    if done.returncode == 0:
        return None
    return done.stdout.decode(errors="replace").strip()[:500] or "it takes too much memory"


def _digest(file: Any) -> str:
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return digest


def _extract(file: Any, target: Path, limit: int) -> None:
    """Unpacks regular files and folders only, and never more than `limit` bytes, whatever the zip says of itself."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > _ENTRIES:
                raise BundleRejected(f"The bundle has {len(entries):,} entries; at most {_ENTRIES:,} are allowed.")
            left = limit
            for entry in entries:
                path = _place(entry, target)
                if path is not None:
                    left = _write(archive, entry, path, left, limit)
    except BundleRejected:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise BundleRejected(f"The bundle is not a zip file that can be read: {error}") from None
    except OSError as error:
        # Names that collide (a file where another entry needs a folder) or are too long.
        raise BundleRejected(f"The bundle cannot be unpacked: {error.strerror}") from None
    for folder, _, _ in os.walk(target):
        Path(folder).chmod(0o755)


def _place(entry: zipfile.ZipInfo, target: Path) -> Path | None:
    name = PurePosixPath(entry.filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename or "\0" in entry.filename:
        raise BundleRejected(f"The bundle's entry {entry.filename!r} points outside the bundle.")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BundleRejected(
            f"The bundle's entry {entry.filename!r} is not a file or folder (a link?). Pack without links: zip follows "
            "them unless told not to (-y)."
        )
    if entry.flag_bits & 0x1:
        raise BundleRejected(f"The bundle's entry {entry.filename!r} is encrypted.")
    # Other methods cannot be unpacked in pieces of bounded size.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleRejected(f"The bundle's entry {entry.filename!r} is compressed by another method than deflate.")
    if not name.parts:
        return None
    path = target.joinpath(*name.parts)
    if entry.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return None
    return path


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, left: int, limit: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    executable = (entry.external_attr >> 16) & 0o111
    with archive.open(entry) as source, path.open("xb") as file:
        while piece := source.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise BundleRejected(f"Unpacked, the bundle is larger than {limit:,} bytes.")
            file.write(piece)
        os.fchmod(file.fileno(), 0o555 if executable else 0o444)
    return left


def _listing(folder: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    shown = ", ".join(names[:10])
    return f"{shown}, and {len(names) - 10} more" if len(names) > 10 else shown or "nothing"


def _collect(folder: Path, used: frozenset[str]) -> list[Path]:
    left = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name in used:
            left.append(entry)
        else:
            log.info("removing unused bundle %s", entry.name)
            shutil.rmtree(entry, ignore_errors=True)
    return left
