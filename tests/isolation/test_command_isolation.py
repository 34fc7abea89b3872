"""Commands (InvokeAgentRuntimeCommand) come into a session from outside. They can do no more than the agent, and on
their way in the agent can do nothing with them."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import secrets
import shlex
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentkeep.runtime.drivers.driver import Environment, VersionSpec
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.testing.driver import make_spec, request
from agentkeep.testing.driver_commands import run
from agentkeep.verify.bundle import ENTRY_POINT, probe_files
from agentkeep.verify.probe.attack import masked

pytestmark = pytest.mark.sandbox

SECRETS_BEGIN = f"secret-{secrets.token_hex(8)}-"
KEY, PORT = 0x5C000000, 21500
ATTACK = """
import json, sys
from probe.agent import run
from probe.attack import Target
print(json.dumps(run(Target.of(json.loads(bytes.fromhex(sys.argv[1]))), ["process"])))
"""
#: Looks at every process of its session but the agent, itself and its shell, for as long as it is let.
WATCH = """
import os, time
OWN_KINDS = ("pipe", "socket", "anon_inode", "/memfd")  # the last: what it is told, the line and the environment
seen, deadline = set(), time.monotonic() + 60
os.write(1, b"watching\\n")
while time.monotonic() < deadline and not os.path.exists("/tmp/stop"):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) in (1, os.getpid(), os.getppid()):
            continue
        try:
            status = dict(line.split(":\\t", 1) for line in open(f"/proc/{pid}/status").read().splitlines())
            seen.add(tuple(status[name] for name in ("CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Uid")))
            for name in os.listdir(f"/proc/{pid}/fd"):
                link = os.readlink(f"/proc/{pid}/fd/{name}")
                kind = link.partition(":")[0]
                if kind not in OWN_KINDS and not link.startswith(("/dev/null", "/proc/", "/usr/", "/etc/")):
                    seen.add(link)
        except (OSError, ValueError):
            pass
os.write(1, repr(seen).encode())
"""


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> VersionSpec:
    bundle = tmp_path_factory.mktemp("commands") / "agent"
    for name, content in probe_files().items():
        (bundle / name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        (bundle / name).write_bytes(content)
    return VersionSpec("commands", "1", bundle=bundle, entry_point=(ENTRY_POINT,))


@pytest.fixture(scope="module")
async def driver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessDriver]:
    driver = ProcessDriver(tmp_path_factory.mktemp("state"))
    yield driver
    await driver.close()


@pytest.fixture
def hosts_secret(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A name and a secret: a file of the host's, and a variable of the platform's."""
    name, secret = f"host-{secrets.token_hex(8)}", _new_secret()
    file = Path("/var/tmp", name)
    file.write_text(secret)
    monkeypatch.setenv("PLANTED_BY_THE_HOST", secret)
    yield name, secret
    file.unlink()


def _new_secret() -> str:
    return SECRETS_BEGIN + secrets.token_hex(16)


async def _ask(environment: Environment, **payload: Any) -> Any:
    status, body = await request(environment, "POST", "/invocations", json.dumps(payload).encode(), timeout=90)
    assert status == 200, body
    return json.loads(body)


async def test_a_command_leaks_no_more_than_the_agent(
    driver: ProcessDriver, version: VersionSpec, hosts_secret: tuple[str, str]
) -> None:
    """EXE-1, EXE-5: the same attacks, by a process that has come in from outside; the system call filter among them."""
    name, secret, own = f"session-{secrets.token_hex(8)}", _new_secret(), _new_secret()
    one, other = await asyncio.gather(
        driver.start(make_spec(version, {"TOKEN": own})), driver.start(make_spec(version, {"TOKEN": secret}))
    )
    try:
        port, key = PORT + secrets.randbelow(100), KEY + secrets.randbelow(1 << 16)
        await _ask(other, do="plant", name=name, port=port, key=key, secret=masked(secret))
        target = {
            "names": [hosts_secret[0], name],
            "pids": [os.getpid(), os.getppid(), other.pid],
            "ports": [port],
            "keys": [key],
            "secrets": [masked(hosts_secret[1]), masked(secret)],
            "own": {"secret": masked(own)},
        }
        ran = await run(one, shlex.join(["python3", "-c", ATTACK, json.dumps(target).encode().hex()]), patience=90)
        assert ran.status == 0, ran.error
        results = json.loads(ran.output)
        assert results.pop("processes_of_others")["outcome"] == ["succeeded", "[1]"]  # that is its session's agent
        assert {name: result for name, result in results.items() if result["outcome"][0] != "failed"} == {}
        assert len(results) >= 35
    finally:
        await asyncio.gather(one.stop(0), other.stop(0))


async def test_a_command_cannot_be_caught_on_its_way_in(driver: ProcessDriver, version: VersionSpec) -> None:
    """EXE-1: while it has any power it is not there to be seen, and it brings nothing along."""
    session = await driver.start(make_spec(version, {"TOKEN": "own"}))
    try:
        watching = await session.execute(shlex.join(["python3", "-c", WATCH]))
        first = await watching.read()
        assert first is not None and first.data == b"watching\n"
        for _ in range(30):
            assert (await run(session, "true")).status == 0
        await run(session, "touch /tmp/stop")
        said = await watching.read()
        assert said is not None
        seen = ast.literal_eval(said.data.decode())
        nothing = "0" * 16
        assert seen == {(nothing, nothing, nothing, "1", "2", "\t".join(["1000"] * 4))}
        await watching.close()
    finally:
        await session.stop(0)


async def test_a_stopped_command_cannot_hold_up_the_platform(driver: ProcessDriver, version: VersionSpec) -> None:
    """An agent that stops or kills whatever comes harms its own user only."""
    session = await driver.start(make_spec(version, {"TOKEN": "own"}))
    others = "for p in /proc/[0-9]*; do p=${p#/proc/}; case $p in 1|$$|$PPID) ;; *) kill -%s $p ;; esac; done"
    try:
        for signal in ("STOP", "KILL"):
            execution = await session.execute("echo begun; while :; do sleep 0.1; done")
            assert await execution.read() is not None
            await run(session, others % signal)
            async with asyncio.timeout(30):
                await execution.close()
        assert (await run(session, "echo fine")).output == "fine\n"
        assert (await request(session, "GET", "/ping"))[0] == 200
    finally:
        await session.stop(0)
