"""What the tests share that have many sessions attack one another (tests/isolation/attacks.py) and the machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

__all__ = ["container_agent", "host_port", "leaks", "masked", "own_addresses"]

ISOLATION = Path(__file__).parent / "isolation"


def container_agent() -> dict[str, bytes]:
    """The attacking agent's files, with the attacks that only containers are exposed to."""
    files = {name: (ISOLATION / name).read_bytes() for name in ("agent.py", "attacks.py", "docker_attacks.py")}
    files["agent.py"] = files["agent.py"].replace(b"import attacks\n", b"import attacks\nimport docker_attacks\n")
    return files


def masked(secret: str) -> str:
    """So that handing it to an attacker does not put it into his memory."""
    return bytes(byte + 1 for byte in secret.encode()).hex()


def leaks(results: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """The attacks that did not fail, with what each found; `results` are those of each session."""
    return {
        f"session {number}: {name}": detail
        for number, result in enumerate(results)
        for name, (outcome, detail) in result.items()
        if outcome != "failed"
    }


def own_addresses() -> list[str]:
    """Of this machine, but loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [str(probe.getsockname()[0])]


@pytest.fixture
def host_port() -> Iterator[int]:
    """Something the host serves on all its addresses."""
    server = socket.create_server(("0.0.0.0", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            client.close()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
