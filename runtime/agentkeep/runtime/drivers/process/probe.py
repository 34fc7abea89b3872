"""What `agentkeep doctor` says of sandboxes: tries each thing by starting a real, throw-away session."""

from __future__ import annotations

import asyncio
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from agentkeep.core.errors import DriverError, SandboxUnavailable
from agentkeep.runtime.drivers.driver import Driver, EnvironmentSpec, Finding, Limits, Severity, VersionSpec
from agentkeep.runtime.drivers.process import seccomp
from agentkeep.runtime.drivers.process.bubblewrap import find_bubblewrap
from agentkeep.runtime.drivers.process.privilege import Mode
from agentkeep.runtime.drivers.process.tasks import in_thread

__all__ = ["Probed", "probe"]

_NAMESPACES_FIX = (
    "allow unprivileged user namespaces, whichever of these this machine has: "
    "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 23.10 and later), "
    "sysctl kernel.unprivileged_userns_clone=1 (Debian 10), sysctl user.max_user_namespaces=15000; "
    "in a container: --security-opt seccomp=unconfined and --security-opt systempaths=unconfined"
)
_PROC_FIX = (
    "parts of this machine's /proc are masked, as in a container; start it with --security-opt systempaths=unconfined"
)

# The steps of a session's birth in their order (see inside/session.py): step → (what is tried, fix).
_STEPS = {
    "namespaces": ("namespaces of a session inside the sandbox", _NAMESPACES_FIX),
    "user mapping": ("a user of its own for the session", _NAMESPACES_FIX),
    "cgroup namespace": ("a cgroup namespace", "use a kernel with CONFIG_CGROUPS"),
    "mounts": ("private file systems", "use a kernel with CONFIG_TMPFS"),
    "proc": ("a /proc of the session's own", _PROC_FIX),
    "devpts": ("pseudo-terminals of the session's own", "use a kernel with CONFIG_UNIX98_PTYS"),
    "loopback": ("a loopback interface with the session endpoint's address", "use a kernel with CONFIG_NET_NS"),
    "sockets": ("sockets passed out of the session", "raise the limit of open files (ulimit -n)"),
    "second user namespace": ("a nested user namespace", _NAMESPACES_FIX),
    "limits": ("resource limits", "raise the platform's own limits (ulimit -Ha)"),
    "capabilities": ("dropping every capability", _NAMESPACES_FIX),
    "seccomp": ("the system call filter", "use a kernel with CONFIG_SECCOMP_FILTER"),
}
_AGENT = """
import http.server, ssl, sqlite3, ctypes, zlib
class Ping(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8080), Ping).serve_forever()
"""
_TIMEOUT = 30.0


class Probed(Driver, Protocol):
    """The process driver, as its probe sees it."""

    async def describe(self) -> tuple[Mode, frozenset[str]]:
        """As whom sessions run, and the control group controllers that limit them. Raises SandboxUnavailable."""
        ...


async def probe(driver: Probed, folder: Path) -> Sequence[Finding]:
    findings = [await _bubblewrap(), await in_thread(_libseccomp)]
    if any(finding.severity is Severity.ERROR for finding in findings):
        return findings
    try:
        mode, controllers = await driver.describe()
    except SandboxUnavailable as error:
        return [*findings, Finding("privileges", Severity.ERROR, str(error), "see the reason")]
    findings.append(_privileges(mode))
    findings.extend(await _session(driver, folder))
    findings.extend(_limits(mode, controllers))
    return findings


async def _bubblewrap() -> Finding:
    try:
        command = find_bubblewrap()
        ran = await in_thread(subprocess.run, [command, "--version"], capture_output=True, text=True, timeout=10)
    except (SandboxUnavailable, OSError, subprocess.SubprocessError) as error:
        return Finding("bubblewrap", Severity.ERROR, str(error), "apt install bubblewrap")
    return Finding("bubblewrap", Severity.OK, ran.stdout.strip())


def _libseccomp() -> Finding:
    try:
        size = sum(len(program) for program in seccomp.filters()) // 8
    except SandboxUnavailable as error:
        return Finding("libseccomp", Severity.ERROR, str(error), "apt install libseccomp2")
    return Finding("libseccomp", Severity.OK, f"system call filter of {size} instructions for {platform.machine()}")


def _privileges(mode: Mode) -> Finding:
    if mode is Mode.ROOT:
        return Finding("privileges", Severity.OK, "root: each session gets a host user of its own")
    return Finding(
        "privileges",
        Severity.WARNING,
        "ordinary user: sessions are separated by namespaces, but share your user",
        "for a host user of its own for each session, run the platform as root",
    )


async def _session(driver: Driver, folder: Path) -> list[Finding]:
    """A real session: each step of its birth is one finding."""
    await in_thread(_write_agent, folder)
    version = VersionSpec("doctor", "1", bundle=folder, entry_point=("main.py",), python=_own_python())
    log: list[bytes] = []
    spec = EnvironmentSpec(
        version=version,
        environment={},
        endpoint=asyncio.Protocol,
        log=log.append,
        limits=Limits(memory=256 << 20, processes=16, open_files=128, cpus=1, disk=16 << 20),
    )
    try:
        environment = await driver.start(spec)
    except DriverError as error:
        return _failed_birth(str(error))
    finally:
        await driver.retire("doctor", "1")
    findings = [Finding(what, Severity.OK, "works") for what, _ in _STEPS.values()]
    findings.append(Finding("inspection from outside", Severity.OK, "the kernel confirms that the session is sealed"))
    try:
        connection = await environment.connect(_TIMEOUT)
        connection.socket.close()
        connection.release()
        findings.append(Finding("an agent in the sandbox", Severity.OK, "its interpreter runs, and it can be reached"))
    except (DriverError, TimeoutError) as error:
        detail = f"{error}; it wrote: {b''.join(log).decode(errors='replace')[-2000:]}"
        fix = "check that this Python's libraries lie in its own folder or under /usr"
        findings.append(Finding("an agent in the sandbox", Severity.ERROR, detail, fix))
    finally:
        await environment.stop(0)
    return findings


def _failed_birth(reason: str) -> list[Finding]:
    failed = next((step for step in _STEPS if f"failed {step}:" in reason), None)
    if failed is None:
        fix = "read the reason; if it says 'Operation not permitted': " + _NAMESPACES_FIX
        return [Finding("a session", Severity.ERROR, reason, fix)]
    findings = []
    for step, (what, fix) in _STEPS.items():
        if step == failed:
            findings.append(Finding(what, Severity.ERROR, reason, fix))
            break
        findings.append(Finding(what, Severity.OK, "works"))
    return findings


def _limits(mode: Mode, controllers: frozenset[str]) -> list[Finding]:
    fix = (
        "run the platform in a unit of its own: systemd-run --user --scope -p Delegate=yes agentkeep up"
        if mode is Mode.USER
        else "let the platform write to /sys/fs/cgroup"
    )
    weaker = {
        "memory": "each process is limited and the session is watched once a second; it may overshoot in between",
        "pids": "the kernel's limit for a user (RLIMIT_NPROC) stands in",
        "cpu": "a session may use all processors",
    }
    return [
        Finding(f"limit on {name}", Severity.OK, "control group")
        if name in controllers
        else Finding(f"limit on {name}", Severity.WARNING, f"no control group: {without}", fix)
        for name, without in weaker.items()
    ]


def _write_agent(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    script = folder / "main.py"
    script.write_text(_AGENT)
    script.chmod(0o644)


def _own_python() -> str:
    return ".".join(platform.python_version_tuple()[:2])
