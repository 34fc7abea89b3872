"""What the tests share that have many sessions attack one another and the machine (agentkeep.verify.probe)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

__all__ = ["host_port", "leaks"]


def leaks(results: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The attacks that did not fail, with what each found, and those whose control did not succeed, so that failing
    says nothing; `results` are those of each session."""
    return {
        f"session {number}: {name}": found
        for number, result in enumerate(results)
        for name, found in result.items()
        if (found["outcome"][0], found["control"][0]) != ("failed", "succeeded")
    }


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
