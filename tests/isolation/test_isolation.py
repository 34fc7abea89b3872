"""Twenty sessions at once, each planting secrets and trying to read the others' and the host's: zero leaks."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from attacked_sessions import leaks

from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.drivers.process.environment import ProcessEnvironment
from agentkeep.runtime.drivers.process.settings import ProcessDriverSettings
from agentkeep.testing.driver import make_spec, request
from agentkeep.verify.bundle import ENTRY_POINT, probe_files
from agentkeep.verify.probe import agent
from agentkeep.verify.probe.attack import ATTACKS, masked

pytestmark = pytest.mark.sandbox

KEY, PORT = 0x5A000000, 21000


@dataclass
class Planted:
    name: str
    port: int
    key: int
    secret: str


SECRETS_BEGIN = f"secret-{secrets.token_hex(8)}-"


def new_secret() -> str:
    return SECRETS_BEGIN + secrets.token_hex(16)


@pytest.fixture
def host() -> Iterator[Planted]:
    """What the host has: the same things as the sessions, and a secret in the platform's environment and memory."""
    number = secrets.randbelow(1 << 16)
    planted = Planted(f"host-{secrets.token_hex(8)}", 0, 0x5B000000 + number, new_secret())
    files = [Path(place, planted.name) for place in ("/tmp", "/dev/shm", "/var/tmp")]
    for file in files:
        file.write_text(planted.secret)
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(planted.key, 4096, 0o1666)
    assert segment >= 0
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(f"\0{planted.name}")
    unix.listen()
    tcp = socket.create_server(("127.0.0.1", 0))
    planted.port = tcp.getsockname()[1]
    for server in (unix, tcp):
        threading.Thread(target=_serve, args=(server, planted.name), daemon=True).start()
    os.environ["PLANTED_BY_THE_HOST"] = planted.secret
    yield planted
    del os.environ["PLANTED_BY_THE_HOST"]
    for server in (unix, tcp):
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    libc.shmctl(segment, 0, None)
    for file in files:
        file.unlink()


def _serve(server: socket.socket, name: str) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            client.sendall(name.encode())


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> VersionSpec:
    bundle = tmp_path_factory.mktemp("isolation") / "agent"
    for name, content in probe_files().items():
        (bundle / name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        (bundle / name).write_bytes(content)
    return VersionSpec("isolation", "1", bundle=bundle, entry_point=(ENTRY_POINT,))


@pytest.fixture(scope="module", params=["fork server", "cold"])
async def driver(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ProcessDriver]:
    settings = ProcessDriverSettings(fork_servers=request.param == "fork server")
    driver = ProcessDriver(tmp_path_factory.mktemp("state"), settings)
    yield driver
    await driver.close()


async def ask(environment: ProcessEnvironment, **payload: Any) -> Any:
    status, body = await request(environment, "POST", "/invocations", json.dumps(payload).encode(), timeout=90)
    assert status == 200, body
    return json.loads(body)


@pytest.mark.parametrize("sessions", [8, pytest.param(20, marks=pytest.mark.slow)])
async def test_sessions_leak_nothing(driver: ProcessDriver, version: VersionSpec, host: Planted, sessions: int) -> None:
    """EXE-1, EXE-5: files, environment, memory, process arguments, shared memory, abstract sockets, loopback ports of
    all neighbours and the host; and the ways out of a sandbox. See agentkeep.verify.probe."""
    if not driver._settings.fork_servers:
        sessions //= 4  # cold ones cost a second of processor each
    planted = [
        Planted(f"session-{number}-{secrets.token_hex(8)}", PORT + number, KEY + number, new_secret())
        for number in range(sessions)
    ]
    started = await asyncio.gather(
        *(driver.start(make_spec(version, {"TOKEN": one.secret, "NAME": one.name})) for one in planted)
    )
    try:
        own = await asyncio.gather(
            *(
                ask(session, do="plant", name=one.name, port=one.port, key=one.key, secret=masked(one.secret))
                for session, one in zip(started, planted, strict=True)
            )
        )
        outside = [os.getpid(), os.getppid(), *(session.pid for session in started), *_fork_server_pids(started)]

        async def attack(number: int) -> Any:
            others = [host, *(one for position, one in enumerate(planted) if position != number)]
            target = {
                "names": [one.name for one in others],
                "pids": [pid for pid in outside if pid != started[number].pid],
                "own": own[number]["own"],
                "ports": [one.port for one in others],
                "keys": [one.key for one in others],
                "secrets": [masked(one.secret) for one in others],
            }
            return await ask(started[number], do="attack", where=["process"], target=target)

        results = await asyncio.gather(*(attack(number) for number in range(sessions)))
    finally:
        await asyncio.gather(*(session.stop(0) for session in started))
    assert leaks(results) == {}
    assert all(len(result) >= 38 for result in results)


async def test_a_session_uses_up_only_what_is_its_own(driver: ProcessDriver, version: VersionSpec) -> None:
    """EXE-1: processes, disk, descriptors, memory end at the session's limits; it and its neighbour live."""
    greedy = await driver.start(make_spec(version, {"TOKEN": "x"}))
    neighbour = await driver.start(make_spec(version, {"TOKEN": "x"}))
    try:
        results = await ask(greedy, do="use up")
        assert results
        assert dict.fromkeys(results, True) == results
        for session in (greedy, neighbour):
            assert (await request(session, "GET", "/ping"))[0] == 200
    finally:
        await asyncio.gather(greedy.stop(0), neighbour.stop(0))


def _fork_server_pids(started: list[ProcessEnvironment]) -> list[int]:
    pids = []
    for session in started:
        status = Path(f"/proc/{session.pid}/status").read_text()
        pids += [int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:")]
    return sorted(set(pids))


def test_the_attack_list_says_what_each_tries() -> None:
    assert agent.LISTS and len(ATTACKS) > 70
    assert [name for name, one in ATTACKS.items() if not one.tries.endswith(".") or not one.where] == []


def test_the_attacks_work_where_there_is_no_sandbox(host: Planted) -> None:
    """Those that do no harm, run beside the host's plants by an ordinary process: else they would prove nothing."""
    harmless = (
        "files_of_others any_name_of_others host_folders host_configuration processes_of_others proc_entries_of_others "
        "process_arguments_of_others signals_to_others pidfds_of_others limits_of_others system_v_shared_memory "
        "abstract_sockets_of_others loopback_ports_of_others folders_of_the_kernel"
    )
    neighbour = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", host.name])
    target = {
        "names": [host.name],
        "pids": [os.getpid(), neighbour.pid],
        "ports": [host.port],
        "keys": [host.key],
        "secrets": [masked(host.secret)],
    }
    try:
        code = (
            "import json, sys\nfrom agentkeep.verify.probe import agent, attack\n"
            "target = attack.Target.of(json.loads(sys.argv[1]))\n"
            "for name in sys.argv[2:]:\n    attack.ATTACKS[name].function(target)\nprint('all')"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code, json.dumps(target), *harmless.split()],
            capture_output=True,
            text=True,
        )
    finally:
        neighbour.kill()
        neighbour.wait()
    assert ran.stdout == "all\n", ran.stderr
