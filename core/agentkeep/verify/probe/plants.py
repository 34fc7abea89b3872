# ruff: noqa: S104, S108 -- places that every session has are what this is about.
"""One of everything that could leak, under the session's name."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import Any

from .attack import STORAGE, Own, masked
from .kernel import libc

#: Where sessions may write, in one driver or the other.
PLACES = ("/tmp", "/dev/shm", "/var/tmp", "/home/agent", "/run", STORAGE, "/mnt", "/var/task")
kept: list[Any] = []


def plant(name: str, secret: str, port: int, key: int) -> dict[str, Any]:
    """Returns what was planted where (`Own`), and what the session looks like from inside."""
    planted = []
    for place in PLACES:
        try:
            with open(f"{place}/{name}", "w") as file:
                file.write(secret)
            planted.append(place)
        except OSError:
            continue
    folder = planted[0]
    with open(f"{folder}/{name}.spare", "w") as file:
        file.write("to be written to")
    os.environ["PLANTED_BY_THE_SESSION"] = secret
    kept.append(name + secret)
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(3600)", name], env={**os.environ, "PLANTED": secret}
    )
    kept.append(child)
    segment = libc.shmget(key, 4096, 0o1666)  # 0o1000: IPC_CREAT
    if segment < 0:
        raise OSError(ctypes.get_errno(), f"shared memory with key {key:#x} cannot be made")
    kept.append(segment)
    for address in (f"\0{name}", f"{folder}/{name}.sock"):
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(address)
        serve(unix, name)
    serve(socket.create_server(("0.0.0.0", port)), name)
    own = Own(name, masked(secret), port, key, _address(), child.pid, os.getpid(), folder)
    return {"own": asdict(own), "places": planted, "uid": os.getuid(), "pid": os.getpid()}


def serve(server: socket.socket, name: str) -> None:
    """Tells `name` to whoever connects."""
    server.listen()
    threading.Thread(target=_answer, args=(server, name), daemon=True).start()


def _answer(server: socket.socket, name: str) -> None:
    while True:
        client, _ = server.accept()
        with client:
            try:
                client.sendall(name.encode())
            except OSError:
                continue


def _address() -> str:
    """Of this session on the network, if it has one but loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("169.254.170.2", 80))
            found = str(probe.getsockname()[0])
        except OSError:
            return ""
    return "" if found.startswith("127.") or found == "169.254.170.2" else found
