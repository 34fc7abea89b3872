"""Runs `agentkeep` commands for tests: each in a process of its own, forked from one that has imported them. What a
command costs is mostly its imports, and the tests run hundreds.

    standard input   a SOCK_SEQPACKET socket; when its other end is closed, it ends
    request          {"arguments", "environment", "folder"}, and where standard output, error and the status go
    status           the process's id in one line, its exit status in the next
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from typing import Any

_LARGEST = 200_000
_lock = threading.Lock()
_server: socket.socket | None = None


def run(arguments: tuple[str, ...], environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with `capture_output=True, text=True`, of `python -m agentkeep.cli ARGUMENTS`."""
    request = json.dumps({"arguments": arguments, "environment": environment, "folder": os.getcwd()}).encode()
    status, reported = os.pipe()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors, open(status) as told:
        try:
            socket.send_fds(_started(), [request], [out.fileno(), errors.fileno(), reported])
        finally:
            os.close(reported)
        pid = int(told.readline())
        ending = threading.Timer(timeout, os.kill, (pid, 9))
        ending.start()
        code = int(told.readline())
        ended = not ending.is_alive()
        ending.cancel()
        texts = [(file.seek(0), file.read().decode())[1] for file in (out, errors)]
    if ended:
        raise subprocess.TimeoutExpired(arguments, timeout, *texts)
    return subprocess.CompletedProcess(arguments, code, *texts)


def _started() -> socket.socket:
    global _server
    with _lock:
        if _server is None:
            _server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                # Its own output is no terminal, as that of the commands is none.
                process = subprocess.Popen([sys.executable, "-P", __file__], stdin=theirs, stdout=subprocess.DEVNULL)
            atexit.register(_stop, _server, process)
        return _server


def _stop(server: socket.socket, process: subprocess.Popen[bytes]) -> None:
    server.close()
    process.wait(10)


def _serve() -> None:
    from agentkeep.cli.main import main  # only here: those that ask need none of it

    requests = socket.socket(fileno=0)
    while True:
        request, files, _, _ = socket.recv_fds(requests, _LARGEST, 3)
        if not request:
            return
        if os.fork() == 0:
            _watch(main, json.loads(request), *files)
        for file in files:
            os.close(file)
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _watch(main: Any, request: dict[str, Any], out: int, errors: int, reported: int) -> None:
    """Runs the command in a child, so that its end is seen, however it ends."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(errors, 2)
        os.closerange(3, 64)
        _command(main, request)
    os.write(reported, b"%d\n" % pid)
    os.write(reported, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _command(main: Any, request: dict[str, Any]) -> None:
    code: Any = 1
    try:
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = ["agentkeep", *request["arguments"]]
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
