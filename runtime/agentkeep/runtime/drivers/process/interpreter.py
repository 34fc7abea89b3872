"""The Python that agents run under: where it is, and what of it the sandbox must show."""

from __future__ import annotations

import asyncio
import shutil
import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import orjson

from agentkeep.core.errors import EnvironmentStartFailed

__all__ = ["Interpreter", "find_interpreter"]


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`prefixes` are mounted at their own paths (a shared libpython is found by a path written into the executable, and
    elsewhere another one might silently be taken); `hidden` are its own site-packages, which are not the agent's."""

    executable: Path
    prefixes: tuple[Path, ...]
    hidden: tuple[Path, ...]


_DESCRIBE = """
import json, os, site, sys, sysconfig
packages = [*site.getsitepackages([sys.base_prefix]), sysconfig.get_path("purelib", vars={"base": sys.base_prefix})]
print(json.dumps([os.path.realpath(sys._base_executable), sys.base_prefix, sys.base_exec_prefix, packages]))
"""


async def find_interpreter(version: str) -> Interpreter:
    """The platform's own Python where `version` ("3.11") is its version, else `python<version>` on the PATH.

    Raises EnvironmentStartFailed where there is none.
    """
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        executable = getattr(sys, "_base_executable", sys.executable)
        packages = site.getsitepackages([sys.base_prefix])
        packages.append(sysconfig.get_path("purelib", vars={"base": sys.base_prefix}))
        return _interpreter(executable, sys.base_prefix, sys.base_exec_prefix, packages)
    command = shutil.which(f"python{version}")
    if command is not None:
        child = await asyncio.create_subprocess_exec(
            command, "-I", "-c", _DESCRIBE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        output, _ = await child.communicate()
        if child.returncode == 0:
            executable, prefix, exec_prefix, packages = orjson.loads(output)
            return _interpreter(executable, prefix, exec_prefix, packages)
    raise EnvironmentStartFailed(
        f"the version asks for Python {version}, which is not on this machine; "
        f"install python{version} or use {sys.version_info.major}.{sys.version_info.minor}"
    )


def _interpreter(executable: str, prefix: str, exec_prefix: str, packages: list[str]) -> Interpreter:
    prefixes = {Path(prefix), Path(exec_prefix), Path(prefix).resolve(), Path(exec_prefix).resolve()}
    # Debian keeps packages for all versions of Python 3 in one folder.
    hidden = {*(Path(path) for path in packages), Path("/usr/lib/python3/dist-packages")}
    return Interpreter(
        executable=Path(executable).resolve(),
        prefixes=tuple(sorted(path for path in prefixes if path not in (Path("/usr"), Path("/")))),
        hidden=tuple(sorted(path for path in hidden if path.is_dir())),
    )
