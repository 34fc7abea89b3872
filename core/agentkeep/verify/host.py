# ruff: noqa: S104, S108 -- places that every session has are what this is about.
"""What this machine has that sessions must not find: the same things as a session's, and ports on all its addresses.

It says something where the deployment runs on this machine; elsewhere it says that nothing of here is reached.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agentkeep.verify.probe.attack import masked

__all__ = ["Host", "own_addresses", "planted_here"]

_PLACES = ("/tmp", "/dev/shm", "/var/tmp")
_IPC_CREAT = 0o1000


@dataclass(frozen=True)
class Host:
    """`secret` is masked. `places`: host:port of what is served here, and of the deployment's public port."""

    name: str
    secret: str
    port: int
    key: int
    pids: list[int]
    places: list[str]
    files: list[str]


@contextmanager
def planted_here(beginning: str, endpoint: str) -> Iterator[Host]:
    """Removed at the end."""
    name, secret = f"host-{secrets.token_hex(8)}", beginning + secrets.token_hex(16)
    key = 0x5B000000 + secrets.randbelow(1 << 16)
    with ExitStack() as stack:
        for place in _PLACES:
            if os.access(place, os.W_OK):
                file = Path(place, name)
                file.write_text(secret)
                stack.callback(file.unlink, missing_ok=True)
        libc = ctypes.CDLL(None, use_errno=True)
        segment = libc.shmget(key, 4096, _IPC_CREAT | 0o666) if hasattr(libc, "shmget") else -1
        if segment >= 0:
            stack.callback(libc.shmctl, segment, 0, None)
        everywhere = socket.create_server(("0.0.0.0", 0))
        unix = socket.socket(socket.AF_UNIX)
        path = f"/tmp/{name}.sock"
        unix.bind(path)
        stack.callback(Path(path).unlink, missing_ok=True)
        servers = [everywhere, unix]
        if os.uname().sysname == "Linux":
            servers.append(socket.socket(socket.AF_UNIX))
            servers[-1].bind(f"\0{name}")
        for server in servers:
            server.listen()
            stack.callback(_shut, server)
            threading.Thread(target=_serve, args=(server, name), daemon=True).start()
        port = everywhere.getsockname()[1]
        public = urlsplit(endpoint)
        of_the_platform = f"{public.hostname}:{public.port or 443}"
        places = [f"{address}:{port}" for address in own_addresses()]
        if not of_the_platform.startswith(("127.", "localhost")):
            places.append(of_the_platform)
        # Where a container's own network ends at this machine.
        places += [
            f"{address}:{one}" for address in ("169.254.170.2", "169.254.171.254") for one in (port, public.port)
        ]
        yield Host(name, masked(secret), port, key, [os.getpid(), os.getppid()], places, [path])


def own_addresses() -> list[str]:
    """Of this machine, but loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [str(probe.getsockname()[0])]


def _serve(server: socket.socket, name: str) -> None:
    while True:
        try:
            client, _ = server.accept()
            with client:
                client.sendall(name.encode())
        except OSError:
            if server.fileno() < 0:
                return


def _shut(server: socket.socket) -> None:
    try:
        server.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    server.close()
