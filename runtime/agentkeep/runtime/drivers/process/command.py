"""What a session runs, from its version's entry point and environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentkeep.core.errors import EnvironmentStartFailed
from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.bubblewrap import AGENT_HOME, BUNDLE, DEPENDENCIES
from agentkeep.runtime.drivers.process.interpreter import Interpreter

__all__ = ["Work", "check_entry_point", "instruments_itself", "plan_work", "reason_for_cold"]

INSTRUMENT = "opentelemetry-instrument"
DISTRIBUTION = "aws_opentelemetry_distro-*.dist-info"
# Read when an interpreter or a library is loaded: a session that sets one needs an interpreter of its own.
_START_TIME = ("PYTHON", "LD_", "MALLOC_", "GLIBC_TUNABLES", "OMP_", "OPENBLAS_", "MKL_", "OPENSSL_", "SSL_CERT_")
_HONOURED_LATER = frozenset(
    {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "SSL_CERT_FILE", "SSL_CERT_DIR"}
)


@dataclass(frozen=True, slots=True)
class Work:
    """`command`, where set, is executed in the sealed process; else `script` runs in the fork itself, `instrument`:
    after OpenTelemetry's automatic instrumentation."""

    environment: dict[str, str]
    folder: str
    path: tuple[str, ...]
    script: str
    command: tuple[str, ...] | None
    instrument: bool = False


def check_entry_point(version: VersionSpec) -> None:
    """Raises EnvironmentStartFailed with what would fail every session. Blocking."""
    if version.bundle is None or version.image is not None:
        raise EnvironmentStartFailed("the process driver runs code bundles; a container image needs the docker driver")
    if not version.bundle.is_dir():
        raise EnvironmentStartFailed(f"the version's bundle is not there: {version.bundle}")
    if version.dependencies is not None and not version.dependencies.is_dir():
        raise EnvironmentStartFailed(f"the version's dependencies are not there: {version.dependencies}")
    script = _script(version)
    if not (version.bundle / script).is_file():
        raise EnvironmentStartFailed(f"the entry point {script!r} is not in the bundle")


def _script(version: VersionSpec) -> str:
    words = [word for word in version.entry_point if word != INSTRUMENT]
    if len(words) != 1 or (len(version.entry_point) > 1 and version.entry_point[0] != INSTRUMENT):
        raise EnvironmentStartFailed(
            f"entry point {list(version.entry_point)}: expected [<script>] or ['{INSTRUMENT}', <script>]"
        )
    script = Path(words[0])
    if script.is_absolute() or ".." in script.parts:
        raise EnvironmentStartFailed(f"the entry point {words[0]!r} leaves the bundle")
    return words[0]


def reason_for_cold(version: VersionSpec) -> str:
    """Why sessions of this version cannot run in forks with libraries preloaded, or ""."""
    if not version.fork_server:
        return "its version asks for it"
    if version.entry_point[:1] == (INSTRUMENT,):
        return f"{INSTRUMENT} must run before any library is imported"
    return ""


def instruments_itself(version: VersionSpec) -> bool:
    """Whether AgentCore's OpenTelemetry distribution is among the version's packages: then the agent is instrumented
    with it, whether its entry point says so or not, as AgentCore's own starter does. Reads the folder: call it in a
    thread."""
    folder = version.dependencies
    return folder is not None and next(folder.glob(DISTRIBUTION), None) is not None


def _observed(given: Mapping[str, str]) -> bool:
    """The platform's switch, and the deployer's own."""
    return given.get("AGENT_OBSERVABILITY_ENABLED") == "true" and given.get("DISABLE_ADOT_OBSERVABILITY") != "true"


def plan_work(
    version: VersionSpec,
    given: Mapping[str, str],
    interpreter: Interpreter,
    cold_reason: str,
    instruments: bool = False,
) -> tuple[Work, str]:
    """What to run and, where it cannot run in a fork with its libraries preloaded, why. `instruments`: as
    `instruments_itself` says."""
    folder = str(Path(BUNDLE, _script(version)).parent)
    path = tuple(dict.fromkeys([folder, BUNDLE, *([DEPENDENCIES] if version.dependencies else [])]))
    environment = {
        "PATH": f"{DEPENDENCIES}/bin:{interpreter.executable.parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": AGENT_HOME,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        **given,
    }
    own_path = given.get("PYTHONPATH")
    environment["PYTHONPATH"] = ":".join([*([own_path] if own_path else []), *path[1:]])
    if own_path:
        path = (folder, *own_path.split(":"), *path[1:])
    reason = cold_reason
    if not reason:
        named = sorted(key for key in given if key.startswith(_START_TIME) and key not in _HONOURED_LATER)
        reason = f"its environment sets {', '.join(named)}" if named else ""
    script = str(Path(BUNDLE, _script(version)))
    python = str(interpreter.executable)
    command: tuple[str, ...] | None = None
    instrument = instruments and _observed(given)
    if version.entry_point[0] == INSTRUMENT or (reason and instrument):
        start = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
        command = (python, "-c", start, python, script)
    elif reason:
        command = (python, script)
    return Work(environment, BUNDLE, path, script, command, instrument and command is None), reason
