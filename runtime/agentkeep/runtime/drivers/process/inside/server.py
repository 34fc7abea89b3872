"""The fork server of one agent version: PID 1 of its sandbox, without network, capabilities, writable files or secrets.

It imports the libraries it is told to, once, and then forks a child for each session. It learns nothing of a session:
environment and credentials go from the platform to the sealed child, so that no later child can inherit a trace of it.

Messages (SEQPACKET, descriptor 3):
    platform ▶ `setup` + a file in memory (JSON)       `ready` + JSON ▶ platform
    platform ▶ `fork` + session socket, log pipe       `exit <pid here> <status>` ▶ platform
    platform ▶ `enter` + what `entry.py` says
The platform closing its end is the order to end; PID 1 ending ends every session of it.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading

from . import agent, entry, kernel, session

CONTROL = 3


def main() -> None:
    given = int(sys.argv[1])
    if given != CONTROL:
        os.dup2(given, CONTROL, inheritable=False)
        os.close(given)
    control = socket.socket(fileno=CONTROL)
    _, descriptors = kernel.receive(control)
    if not descriptors:
        return
    setup = json.loads(kernel.read_all(descriptors[0]))
    if setup["leave_root"] is not None:
        _leave_root(setup["leave_root"])
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    report = _preload(setup["dependencies"], setup["preload"], setup["bundle"])
    control.send(b"ready " + json.dumps(report).encode())
    filters = [base64.b64decode(program) for program in setup["filters"]]
    request = _serve(control)
    if request is None:
        return
    control.detach()  # closed with everything else in the child; the object must not close a reused number
    message, descriptors = request
    if message == b"enter":
        entry.enter(descriptors, filters)
    work = session.begin(descriptors[0], descriptors[1], setup["user"], filters)
    del request, message, descriptors, setup, filters
    agent.run(work)


def _leave_root(uid: int) -> None:
    """Root's driver: takes an ordinary host uid before anything of a library is imported."""
    # bubblewrap run by root covers parts of its /proc, and then the kernel refuses sessions a /proc of their own.
    kernel.mount("proc", "/proc", "proc", kernel.NOSUID | kernel.NODEV | kernel.NOEXEC)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # the change of uid cleared bubblewrap's


def _preload(dependencies: str | None, modules: list[str], bundle: str) -> dict[str, object]:
    """Imports what may be shared by the sessions. Reports what was, what failed, and what makes sharing unwise."""
    base = [path for path in sys.path if not path.startswith("/.agentkeep") and path not in ("", "/")]
    sys.path[:] = [*([dependencies] if dependencies else []), *base]
    failed: dict[str, str] = {}
    gc.disable()
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException as error:  # whatever a library does, the session can still import it by itself
            failed[name] = f"{type(error).__name__}: {error}"
    gc.enable()
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, the shared pages
    own = {"__main__", __package__}
    loaded = {name.partition(".")[0] for name in sys.modules} - own
    with contextlib.suppress(OSError):
        return {
            "failed": failed,
            "threads": _threads_after_fork(),
            "shadowed": sorted({entry.name.partition(".")[0] for entry in os.scandir(bundle)} & loaded),
        }
    return {"failed": failed, "threads": 1, "shadowed": []}


def _threads_after_fork() -> int:
    """Threads that libraries started and do not end around a fork (some, like OpenBLAS, do)."""
    if threading.active_count() > 1:
        return threading.active_count()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return len(os.listdir("/proc/self/task"))


def _serve(control: socket.socket) -> tuple[bytes, list[int]] | None:
    """Forks on request. Returns None when the platform is gone and, in a child, the request: what it shall be, and the
    descriptors for that."""
    # No work in the handler: it could run in the middle of a fork. The descriptor wakes `select`.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    while True:
        ready, _, _ = select.select([control.fileno(), reader], [], [])
        if reader in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 4096)
            _report_exits(control)
        if control.fileno() not in ready:
            continue
        message, descriptors = kernel.receive(control)
        if not message:
            return None
        if os.fork() == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return message, descriptors
        for descriptor in descriptors:
            os.close(descriptor)


def _report_exits(control: socket.socket) -> None:
    while True:
        try:
            child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return
        if child is None:
            return
        status = child.si_status if child.si_code == os.CLD_EXITED else -child.si_status
        control.send(b"exit %d %d" % (child.si_pid, status))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        main()
