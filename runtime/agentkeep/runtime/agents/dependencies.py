"""A bundle's requirements, installed once for every bundle that has the same, by uv, into a folder that sessions share
read-only.

Installing must not run a stranger's code on the platform: wheels only, from the operator's index only.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import shutil
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import uv

from agentkeep.runtime.agents.artifacts import ArtifactError

__all__ = ["Dependencies", "DependenciesFailed"]

log = logging.getLogger(__name__)

REQUIREMENTS: Final = "requirements.txt"
_TAIL: Final = 2000
#: A stranger's text is matched against expressions below: blanks are run together first, and it has an end.
_LONGEST_FILE: Final = 1 << 20
_LONGEST_LINE: Final = 16_384
_VERSION: Final = r"(?:===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9][A-Za-z0-9.*+!_-]*"
#: name[extras] specifiers ; marker: nothing that names a file, an address or an option of the installer.
_REQUIREMENT: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[A-Za-z0-9._,\s-]*\])?"
    rf"\s*(\(\s*{_VERSION}(\s*,\s*{_VERSION})*\s*\)|{_VERSION}(\s*,\s*{_VERSION})*)?"
    r"\s*(;(?!.*--)[^@/]*)?"
)
_HASHES: Final = re.compile(r"(\s+--hash[= ]sha\d+:[0-9a-f]+)+$")
_SECRET: Final = re.compile(r"//[^/@\s]+@")


class DependenciesFailed(ArtifactError):
    pass


class Dependencies:
    """`environment` is what uv runs with: index, certificates, proxy (see `uv_environment`). `no_index`: only from
    where its find-links point."""

    def __init__(self, folder: Path, environment: Mapping[str, str], timeout: float, *, no_index: bool = False) -> None:
        self._folder = folder
        self._no_index = no_index
        self._environment = environment
        self._timeout = timeout
        self._installing: dict[str, asyncio.Lock] = {}

    async def install(self, bundle: Path) -> Path | None:
        """The packages of the bundle's requirements.txt; None where it has none or brings its packages along.

        Raises DependenciesFailed with the end of what uv said.
        """
        requirements = await asyncio.to_thread(_read_requirements, bundle)
        if requirements is None:
            return None
        key = _key(requirements)
        folder = self._folder / key
        async with self._installing.setdefault(key, asyncio.Lock()):
            if not await asyncio.to_thread(folder.is_dir):
                await self._install(requirements, folder)
        return folder

    async def collect(self, bundles: Iterable[Path]) -> None:
        """Removes what none of these bundles uses, and what an interrupted installation left."""
        await asyncio.to_thread(self._collect, list(bundles))

    def _collect(self, bundles: Iterable[Path]) -> None:
        used = {".cache"}
        for bundle in bundles:
            try:
                requirements = _read_requirements(bundle)
            except DependenciesFailed:
                continue
            if requirements is not None:
                used.add(_key(requirements))
        for entry in self._folder.iterdir() if self._folder.is_dir() else ():
            if entry.name not in used:
                shutil.rmtree(entry, ignore_errors=True)

    async def _install(self, requirements: str, folder: Path) -> None:
        scratch = self._folder / ".installing"
        await asyncio.to_thread(scratch.mkdir, parents=True, exist_ok=True)
        work = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=scratch))
        try:
            await asyncio.to_thread((work / REQUIREMENTS).write_text, requirements)
            await self._run_uv(requirements, work)
            # Where a rename failed because another process was faster, its folder is as good.
            if not await asyncio.to_thread(folder.is_dir):
                await asyncio.to_thread(_publish, work / "packages", folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    async def _run_uv(self, requirements: str, work: Path) -> None:
        command = [
            *(uv.find_uv_bin(), "pip", "install", "--python", sys.executable, "--target", str(work / "packages")),
            *("--only-binary", ":all:", "--compile-bytecode", "--no-progress", "--color", "never"),
            "--system-certs",  # a company's own authority, known to the machine, is one for package indexes too
            *(["--require-hashes"] if "--hash" in requirements else []),
            *(["--no-index"] if self._no_index else []),
            *("--requirement", str(work / REQUIREMENTS)),
        ]
        log.info("installing requirements into %s", work.name)
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=work,
            env={**self._environment, "HOME": str(work), "UV_CACHE_DIR": str(self._folder / ".cache")},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._timeout):
                output, _ = await process.communicate()
        except TimeoutError:
            raise DependenciesFailed(
                f"Installing the bundle's requirements took longer than {self._timeout:.0f} seconds."
            ) from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode != 0:
            tail = _SECRET.sub("//***@", output.decode(errors="replace")).strip()[-_TAIL:]
            hint = (
                "\nPackages are installed from wheels only, since building one runs its code on the platform: ship "
                "such a package inside the bundle."
                if "only-binary" in tail or "no usable wheels" in tail or "building from source" in tail
                else ""
            )
            raise DependenciesFailed(f"The bundle's requirements cannot be installed:\n{tail}{hint}")


def uv_environment(
    *,
    default_index: str | None,
    extra_index: str | None,
    find_links: str | None,
    certificates: str | None,
    https_proxy: str | None,
    no_proxy: str | None,
) -> dict[str, str]:
    """The whole environment uv runs in; nothing of the platform's own."""
    given = {
        "UV_DEFAULT_INDEX": default_index,
        "UV_INDEX": extra_index,
        "UV_FIND_LINKS": find_links,
        "SSL_CERT_FILE": certificates,
        "HTTPS_PROXY": https_proxy,
        "NO_PROXY": no_proxy,
    }
    fixed = {"PATH": "/usr/bin:/bin", "UV_PYTHON_DOWNLOADS": "never", "UV_NO_ENV_FILE": "1"}
    return fixed | {name: value for name, value in given.items() if value}


def _read_requirements(bundle: Path) -> str | None:
    path = bundle / REQUIREMENTS
    # Packages at the root of the bundle: whoever packed it has installed them, for this platform.
    if not path.is_file() or any(bundle.glob("*.dist-info")):
        return None
    if path.stat().st_size > _LONGEST_FILE:
        raise DependenciesFailed(f"requirements.txt is longer than {_LONGEST_FILE:,} bytes.")
    lines = []
    text = path.read_text(errors="replace").replace("\\\n", " ").replace("\\\r\n", " ")
    for number, raw in enumerate(text.splitlines(), 1):
        line = " ".join(re.sub(r"(^|\s)#.*$", "", raw).split())
        if not line:
            continue
        if len(line) > _LONGEST_LINE or _REQUIREMENT.fullmatch(_HASHES.sub("", line)) is None:
            raise DependenciesFailed(
                f"requirements.txt line {number} ({line[:80]!r}) is not a plain requirement. Files, addresses and "
                "installer options are not taken: name packages with versions; the index is the operator's setting."
            )
        lines.append(line)
    return "\n".join(lines) + "\n" if lines else None


def _key(requirements: str) -> str:
    content = "\n".join((requirements, sys.version, sysconfig.get_platform()))
    return hashlib.sha256(content.encode()).hexdigest()


def _publish(made: Path, folder: Path) -> None:
    made.mkdir(exist_ok=True)  # requirements whose markers all say no
    for entry in (made / "bin", made / ".lock"):
        # Scripts name the platform's interpreter; nothing in a session may rely on them.
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    made.chmod(0o755)
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
