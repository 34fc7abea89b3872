"""What every driver must do with commands. Subclass in a test module that gives the fixtures of `DriverContract`.

class TestMyDriversCommands(CommandContract): ...
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

import pytest

from agentkeep.core.errors import CommandNotStarted, EnvironmentStartFailed
from agentkeep.runtime.drivers.driver import PIECE, Driver, Environment, Execution, VersionSpec
from agentkeep.testing.driver import LIMITS, ask, make_spec, request

__all__ = ["CommandContract", "Ran", "run"]

PATIENCE = 60.0


@dataclass(frozen=True)
class Ran:
    output: str
    error: str
    status: int | None


async def run(environment: Environment, line: str, patience: float = PATIENCE) -> Ran:
    execution = await environment.execute(line)
    try:
        async with asyncio.timeout(patience):
            return await read_all(execution)
    finally:
        await execution.close()


async def read_all(execution: Execution) -> Ran:
    streams: dict[bool, list[bytes]] = {False: [], True: []}
    while (piece := await execution.read()) is not None:
        assert 0 < len(piece.data) <= PIECE
        streams[piece.error].append(piece.data)
    output, error = (b"".join(streams[which]).decode() for which in (False, True))
    return Ran(output, error, await execution.wait())


class CommandContract:
    #: Where a session's own storage is asked to be.
    STORAGE: ClassVar[str] = "/mnt/data"

    @asynccontextmanager
    async def session(
        self, driver: Driver, version: VersionSpec, variables: Mapping[str, str] | None = None
    ) -> AsyncIterator[Environment]:
        environment = await driver.start(make_spec(version, variables))
        try:
            assert await request(environment, "GET", "/ping") == (200, b'{"status": "Healthy"}')
            yield environment
        finally:
            await environment.stop(0)

    async def test_a_command_tells_what_it_wrote_and_how_it_ended(self, driver: Driver, version: VersionSpec) -> None:
        async with self.session(driver, version) as environment:
            assert await run(environment, "echo out; echo err >&2; exit 3") == Ran("out\n", "err\n", 3)
            assert await run(environment, "true") == Ran("", "", 0)
            assert (await run(environment, "kill -KILL $$")).status == 137
            assert (await run(environment, "no-such-program")).status == 127
            text = 'it\'s "quoted" $HOME `x` \\ * ü\n\ttwo'
            quoted = text.replace("'", "'\\''")
            assert (await run(environment, f"printf %s '{quoted}'")).output == text

    async def test_a_command_is_where_and_what_the_agent_is(self, driver: Driver, version: VersionSpec) -> None:
        """EXE-2: its user, variables, folder, processes, files, network."""
        async with self.session(driver, version, {"COLOUR": "deep blue"}) as environment:
            place = await ask(environment, "place")
            assert (await run(environment, 'printf %s "$COLOUR"')).output == "deep blue"
            assert (await run(environment, "pwd -P")).output.strip() == place["cwd"]
            for what in ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters"):
                line = f"grep ^{what}: /proc/self/status; grep ^{what}: /proc/{place['pid']}/status"
                own, agents = (await run(environment, line)).output.splitlines()
                assert own == agents
            for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user"):
                line = f"readlink /proc/self/ns/{kind} /proc/{place['pid']}/ns/{kind}"
                own, agents = (await run(environment, line)).output.splitlines()
                assert own == agents
            groups = await run(environment, f"cmp /proc/self/cgroup /proc/{place['pid']}/cgroup && echo same")
            assert groups == Ran("same\n", "", 0)
            await run(environment, "echo kept > /tmp/note")
            assert (await run(environment, "cat /tmp/note")).output == "kept\n"

    async def test_a_command_may_write_to_its_streams_by_name(self, driver: Driver, version: VersionSpec) -> None:
        async with self.session(driver, version) as environment:
            assert await run(environment, "echo a > /dev/stdout; echo b > /dev/stderr") == Ran("a\n", "b\n", 0)

    async def test_much_output_waits_for_its_reader(self, driver: Driver, version: VersionSpec) -> None:
        async with self.session(driver, version) as environment:
            execution = await environment.execute("head -c 20000000 /dev/zero; echo done > /tmp/done; echo end")
            assert await execution.read() is not None
            await asyncio.sleep(1)
            assert (await run(environment, "cat /tmp/done")).status == 1
            ran = await read_all(execution)
            await execution.close()
            assert ran.output.endswith("\0end\n") and ran.status == 0
            assert 20_000_004 - PIECE <= len(ran.output) < 20_000_004
            assert (await run(environment, "cat /tmp/done")).output == "done\n"

    async def test_a_command_ends_with_its_shell(self, driver: Driver, version: VersionSpec) -> None:
        """What it leaves behind lives in the session, and holds no stream open."""
        async with self.session(driver, version) as environment:
            ran = await run(environment, "(setsid sleep 4321 &); sleep 4322 & echo bye", patience=30)
            assert ran == Ran("bye\n", "", 0)
            left = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o 'sleep 432[12]' | sort"
            assert (await run(environment, left)).output.split("\n")[:2] == ["sleep 4321", "sleep 4322"]
            loud = await run(environment, "yes & sleep 0.2; exit 5", patience=30)
            assert loud.status == 5

    async def test_a_command_is_killed_with_all_it_started(self, driver: Driver, version: VersionSpec) -> None:
        async with self.session(driver, version) as environment:
            line = (
                "trap '' TERM HUP INT; sleep 5431 & (setsid sleep 5432; :) & echo ready; while :; do sleep 5433; done"
            )
            execution = await environment.execute(line)
            assert (first := await execution.read()) is not None and first.data == b"ready\n"
            await execution.kill()
            assert await execution.wait() == 137
            assert await execution.read() is None
            await execution.close()
            left = await run(environment, "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'slee[p] 543'")
            assert left.output.strip() == "0"

    async def test_a_bomb_is_killed_and_the_agent_lives(self, driver: Driver, version: VersionSpec) -> None:
        """EXE-3: as the agent, so its commands: within the limit on processes."""
        async with self.session(driver, version) as environment:
            execution = await environment.execute("b() { b | b & }; b; sleep 1; b; wait; sleep 60")
            await asyncio.sleep(1)
            await execution.close()
            assert await request(environment, "GET", "/ping") == (200, b'{"status": "Healthy"}')
            deadline = asyncio.get_running_loop().time() + PATIENCE
            while True:  # what outran its end has a while to be ended by, or to end by itself
                try:
                    ran = await run(environment, "echo alive")
                except CommandNotStarted:
                    assert asyncio.get_running_loop().time() < deadline
                    await asyncio.sleep(0.5)
                else:
                    assert ran == Ran("alive\n", "", 0)
                    break

    async def test_commands_run_beside_each_other(self, driver: Driver, version: VersionSpec) -> None:
        async with self.session(driver, version) as environment:
            line = "echo {0}; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo {0}"
            running = [asyncio.create_task(run(environment, line.format(number))) for number in range(4)]
            await run(environment, "touch /tmp/go")
            ran = await asyncio.gather(*running)
            assert ran == [Ran(f"{number}\n{number}\n", "", 0) for number in range(4)]

    async def test_a_command_ends_with_its_session(self, driver: Driver, version: VersionSpec) -> None:
        async with self.session(driver, version) as environment:
            execution = await environment.execute("echo begun; sleep 1000")
            assert await execution.read() is not None
            await environment.stop(0)
            async with asyncio.timeout(PATIENCE):
                assert await execution.read() is None
                assert await execution.wait() in (137, None)
                await execution.close()
            with pytest.raises(EnvironmentStartFailed):
                await environment.execute("true")

    async def test_a_session_has_storage_of_its_own(self, driver: Driver, version: VersionSpec) -> None:
        """EXE-2, EXE-4: within its limit, nobody else's, and gone with it."""
        version = dataclasses.replace(version, runtime_id="storage", storage=(self.STORAGE,))
        await driver.prepare(version)
        try:
            async with self.session(driver, version) as one, self.session(driver, version) as other:
                assert (await run(one, f"echo mine > {self.STORAGE}/note")).status == 0
                assert (await run(one, f"cat {self.STORAGE}/note")).output == "mine\n"
                assert (await run(other, f"ls -A {self.STORAGE}")) == Ran("", "", 0)
                full = await run(one, f"head -c {LIMITS.disk + 1} /dev/zero > {self.STORAGE}/full")
                assert full.status != 0
                assert (await run(one, f"rm {self.STORAGE}/full; touch /mnt/else")).status != 0
            async with self.session(driver, version) as later:
                assert (await run(later, f"ls -A {self.STORAGE}")) == Ran("", "", 0)
        finally:
            await driver.retire("storage", version.version)
