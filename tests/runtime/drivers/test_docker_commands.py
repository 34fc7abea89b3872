"""Commands in sessions' containers, under the contract of drivers, through the proxy before the socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from docker_engine import DockerEngine, docker_engine  # noqa: F401 -- a fixture

from agentkeep.core.errors import CommandNotStarted
from agentkeep.runtime.docker_guard.__main__ import serving
from agentkeep.runtime.docker_guard.commands import STARTED
from agentkeep.runtime.docker_guard.settings import DockerGuardSettings
from agentkeep.runtime.drivers.docker.commands import ending, running
from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.docker.engine import Engine, EngineError
from agentkeep.runtime.drivers.docker.network import ensure_network
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.testing.driver import AGENT, LIMITS
from agentkeep.testing.driver_commands import CommandContract, run

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]


#: That the contract's lines run; no bash: the shell is a plain one.
PROGRAMS = ["cat", "cmp", "grep", "head", "ls", "readlink", "rm", "setsid", "sleep", "sort", "touch", "tr", "yes"]


@pytest.fixture(scope="module")
def version(docker_engine: DockerEngine) -> VersionSpec:  # noqa: F811
    image = docker_engine.image("commands", {AGENT.name: AGENT.read_bytes()}, programs=PROGRAMS)
    return VersionSpec("contract", "1", image=image)


@pytest.fixture(scope="module")
async def driver(
    docker_engine: DockerEngine,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[DockerDriver]:
    """Behind the proxy: what it lets pass works without it, too."""
    listen = tmp_path_factory.mktemp("guard") / "docker.sock"
    engine = Engine(docker_engine.socket)
    await ensure_network(engine)
    await engine.close()
    settings = DockerGuardSettings(engine=docker_engine.socket, listen=listen, images="agentkeep-test/*")
    async with serving(settings, DockerDriverSettings(), LIMITS):
        driver = DockerDriver(tmp_path_factory.mktemp("state"), DockerDriverSettings(socket=listen))
        yield driver
        assert driver.environments == []
        await driver.close()


class TestDockerCommands(CommandContract):
    async def test_what_cannot_be_started_says_so(self, driver: DockerDriver, version: VersionSpec) -> None:
        async with self.session(driver, version) as environment:
            with pytest.raises(CommandNotStarted):
                await environment.execute("x" * 200_000)

    async def test_the_proxy_runs_nothing_else(
        self,
        driver: DockerDriver,
        version: VersionSpec,
        docker_engine: DockerEngine,  # noqa: F811
    ) -> None:
        """EXE-5: no other command, no other user, no privileges, in no container but a session's."""
        direct = Engine(docker_engine.socket)
        guarded = Engine(driver._settings.socket)
        async with self.session(driver, version) as environment:
            try:
                good = running("true")
                other = [
                    good | {"Privileged": True},
                    good | {"Privileged": 0},
                    good | {"User": "0:0"},
                    good | {"Tty": True},
                    good | {"AttachStdin": True},
                    good | {"Env": ["LD_PRELOAD=/tmp/x"]},
                    good | {"WorkingDir": "/"},
                    good | {"Cmd": ["/bin/sh", "-c", "true"]},
                    good | {"Cmd": ["/usr/bin/env", *good["Cmd"]]},
                    good | {"Cmd": [*good["Cmd"], "more"]},
                    good | {"Cmd": "true"},
                    ending("1; true"),
                    ending("-1"),
                    ending(""),
                    {},
                    [good],
                ]
                for body in other:
                    with pytest.raises(EngineError, match="refused") as refused:
                        await guarded.create_command(environment.id, body)  # type: ignore[arg-type]
                    assert refused.value.status == 403
                image = docker_engine.docker("inspect", "-f", "{{.Image}}", environment.id)
                docker_engine.docker("run", "-d", "--name", "agentkeep-00000000000000cc", image, "sleep", "600")
                stranger = await direct.create_command("agentkeep-00000000000000cc", good)
                with pytest.raises(EngineError, match="not a session's"):
                    await guarded.create_command("agentkeep-00000000000000cc", good)
                operators = await direct.create_command(environment.id, good | {"Privileged": True})
                rights = await direct.create_command(environment.id, {"Cmd": ["id"], "AttachStdout": True})
                for id in (stranger, operators, rights):
                    with pytest.raises(EngineError, match="refused"):
                        async with guarded.run_command(id):
                            pass
                    with pytest.raises(EngineError, match="refused"):
                        await guarded.command(id)
                own = await guarded.create_command(environment.id, good)
                for start in (STARTED | {"Detach": True}, STARTED | {"Tty": True}, {}, STARTED | {"More": 1}):
                    connector = aiohttp.UnixConnector(path=str(driver._settings.socket))
                    async with (
                        aiohttp.ClientSession(connector=connector) as session,
                        session.post(f"http://docker/exec/{own}/start", json=start) as response,
                    ):
                        assert response.status == 403
                assert (await run(environment, "echo still")).output == "still\n"
            finally:
                docker_engine.docker("rm", "-f", "agentkeep-00000000000000cc")
                await direct.close()
                await guarded.close()
