"""Unmodified agents with real libraries in the sandbox: what the system call filter and the mounts must not break."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.testing.driver import Log, ask, make_spec, request

pytestmark = pytest.mark.sandbox

SITE_PACKAGES = next(Path(entry) for entry in sys.path if (Path(entry) / "bedrock_agentcore").is_dir())

AGENT = """
import asyncio, concurrent.futures, ctypes, json, multiprocessing, os, pty, socket, sqlite3, ssl, subprocess, sys
import tempfile, threading, urllib.request, warnings
from typing import TypedDict

import boto3
import numpy
from bedrock_agentcore import BedrockAgentCoreApp, RequestContext
from langgraph.graph import END, START, StateGraph

app = BedrockAgentCoreApp()


class State(TypedDict):
    number: int


def double(number):
    return number * 2


def graph():
    builder = StateGraph(State)
    builder.add_node("double", lambda state: {"number": double(state["number"])})
    builder.add_edge(START, "double")
    builder.add_edge("double", END)
    return builder.compile().invoke({"number": 21})["number"]


def threads():
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return sum(pool.map(double, range(16)))


def processes():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return sum(pool.map(double, range(4)))


def forks():
    # Not a pool: it ends its workers by SIGTERM, and forked ones have inherited uvicorn's handler for it. They hang,
    # in a sandbox or out of it.
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(double(6)))
    child.start()
    answer = ours.recv()
    child.join()
    return answer


def shell():
    return subprocess.run("echo one | tr a-z A-Z", shell=True, capture_output=True, text=True).stdout.strip()


def itself():
    code = "import bedrock_agentcore, sys; print(sys.version_info[0])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def database():
    with tempfile.NamedTemporaryFile() as file, sqlite3.connect(file.name) as database:
        database.execute("create table t (n)")
        database.execute("insert into t values (7)")
        return database.execute("select n from t").fetchone()[0]


def certificates():
    return len(ssl.create_default_context().get_ca_certs()) > 10


def terminal():
    master, slave = pty.openpty()
    return os.isatty(slave)


def linear_algebra():
    return round(float(numpy.linalg.inv(numpy.eye(300) * 2)[0, 0]), 3)


def aws():
    client = boto3.client("bedrock-agentcore", endpoint_url="http://169.254.170.2", region_name="us-east-1",
                          aws_access_key_id="a", aws_secret_access_key="b")
    try:
        client.get_workload_access_token(workloadName="test-agent")
    except Exception as error:
        return type(error).__name__ if "169.254.170.2" in str(error) else "reached"
    return "reached"


def loops():
    import uvloop
    async def main():
        process = await asyncio.create_subprocess_exec("true")
        return await process.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [asyncio.run(main()), uvloop.run(main())]


CHECKS = [graph, threads, processes, forks, shell, itself, database, certificates, terminal, linear_algebra, aws, loops]


@app.entrypoint
def invoke(payload, context: RequestContext):
    return {check.__name__: check() for check in CHECKS} | {
        "session": context.session_id, "main": sys.modules["__main__"].__name__}


if __name__ == "__main__" and "RANDOM" in os.environ:
    import random, secrets, uuid
    print(random.random(), secrets.token_hex(8), ssl.RAND_bytes(8).hex(), uuid.uuid4(), uuid.uuid1().clock_seq,
          os.urandom(8).hex(), numpy.random.random(), tempfile.mktemp())
elif __name__ == "__main__":
    app.run()
"""

EXPECTED = {
    "graph": 42, "threads": 240, "processes": 12, "forks": 12, "shell": "ONE", "itself": "3", "database": 7,
    "certificates": True, "terminal": True, "linear_algebra": 0.5, "aws": "reached", "loops": [0, 0],
    "session": None, "main": "__main__",
}  # fmt: skip


@pytest.fixture(scope="module")
async def driver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessDriver]:
    driver = ProcessDriver(tmp_path_factory.mktemp("state"))
    yield driver
    await driver.close()


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> VersionSpec:
    """One version for several tests: its fork server imports all that this virtual environment has of the list."""
    bundle = tmp_path_factory.mktemp("libraries") / "agent"
    bundle.mkdir(mode=0o755)
    (bundle / "main.py").write_text(AGENT)
    return VersionSpec("libraries", "1", bundle=bundle, dependencies=SITE_PACKAGES, entry_point=("main.py",))


def with_dependencies(version: VersionSpec) -> VersionSpec:
    return dataclasses.replace(version, dependencies=SITE_PACKAGES)


@pytest.mark.parametrize("fork_server", [True, False], ids=["fork server", "cold"])
async def test_an_agent_does_what_agents_do(driver: ProcessDriver, libraries: VersionSpec, fork_server: bool) -> None:
    """EXE-2: SDK, boto3, LangGraph, numpy, threads, processes, shells, terminals, databases, TLS."""
    version = dataclasses.replace(libraries, fork_server=fork_server)
    log = Log()
    environment = await driver.start(make_spec(version, log=log))
    try:
        status, body = await request(environment, "POST", "/invocations", b"{}", timeout=90)
        assert status == 200, (body, log.text)
        assert json.loads(body) == EXPECTED
    finally:
        await environment.stop(0)
    assert (await driver._servers.get(version)).cold_reason == ("" if fork_server else "its version asks for it")


async def test_opentelemetry_instrument_runs_first(driver: ProcessDriver, make_version: Any) -> None:
    """The two-word entry point of AgentCore's code configuration: instrumented before the agent imports anything."""
    code = """
    import sys
    from opentelemetry.instrumentation import auto_instrumentation
    print(__name__, sys.argv, "sitecustomize" in sys.modules, auto_instrumentation.__file__ is not None)
    """
    version = with_dependencies(
        make_version(entry_point=("opentelemetry-instrument", "main.py"), main=textwrap.dedent(code))
    )
    log = Log()
    environment = await driver.start(
        make_spec(version, environment={"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "none"}, log=log)
    )
    assert (await environment.wait()).code == 0, log.text
    assert "__main__ ['/var/task/main.py'] True True" in log.text


async def test_what_must_be_set_before_an_interpreter_starts(driver: ProcessDriver, version: VersionSpec) -> None:
    """A session that sets PYTHON... or LD_... gets an interpreter of its own, the version keeps its fork server."""
    environment = await driver.start(make_spec(version, environment={"PYTHONHASHSEED": "0"}))
    try:
        assert (await ask(environment, "environment"))["PYTHONHASHSEED"] == "0"
        assert Path(f"/proc/{environment.pid}/environ").read_bytes().count(b"PYTHONHASHSEED=0") == 1
    finally:
        await environment.stop(0)
    assert (await driver._servers.get(version)).cold_reason == ""


async def test_a_bundle_that_shadows_a_preloaded_module_runs_cold(driver: ProcessDriver, make_version: Any) -> None:
    """`import queue` must give the agent its own queue.py, as it would anywhere else."""
    version = make_version(main="import queue\nprint(queue.MINE)", queue="MINE = 'my own'")
    log = Log()
    environment = await driver.start(make_spec(version, log=log))
    assert (await environment.wait()).code == 0
    assert log.text == "my own\n"
    assert "queue" in (await driver._servers.get(version)).cold_reason


async def test_packages_that_did_not_come_from_an_index_are_not_preloaded(
    driver: ProcessDriver, make_version: Any, tmp_path: Path
) -> None:
    """Import-time trust: code of the agent's developer never runs in the fork server."""
    dependencies = tmp_path / "dependencies"
    for name, extra in (("boto3", {"direct_url.json": "{}"}), ("requests", {})):
        (dependencies / name).mkdir(parents=True)
        (dependencies / name / "__init__.py").write_text("import os\nBORN_IN = os.getpid(), os.environ.get('TOKEN')\n")
        information = dependencies / f"{name}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Name: {name}\n")
        for file, text in extra.items():
            (information / file).write_text(text)
    version = dataclasses.replace(
        make_version(main="import boto3, requests\nprint(boto3.BORN_IN[1], requests.BORN_IN[1])"),
        dependencies=dependencies,
    )
    log = Log()
    await (await driver.start(make_spec(version, environment={"TOKEN": "t"}, log=log))).wait()
    assert log.text == "t None\n"


async def test_siblings_do_not_share_randomness(driver: ProcessDriver, libraries: VersionSpec) -> None:
    """EXE-1: generators that were seeded before the fork."""
    logs = [Log(), Log()]
    for log in logs:
        environment = await driver.start(make_spec(libraries, environment={"RANDOM": "yes"}, log=log))
        assert (await environment.wait()).code == 0
    first, second = (log.text.split() for log in logs)
    assert len(first) == len(second) == 8
    assert not set(first) & set(second)


async def test_threads_of_an_agent_outlive_its_script_and_exit_functions_run(
    driver: ProcessDriver, make_version: Any
) -> None:
    code = """
    import atexit, threading, time
    WORD = "late"
    def later():
        time.sleep(0.2)
        print(WORD)
    atexit.register(lambda: print("at exit"))
    threading.Thread(target=later).start()
    print("end of script")
    """
    log = Log()
    environment = await driver.start(make_spec(make_version(main=textwrap.dedent(code)), log=log))
    assert (await environment.wait()).code == 0
    assert log.text == "end of script\nlate\nat exit\n"


@pytest.mark.parametrize("python", ["3.12", "3.13"])
async def test_other_interpreters(driver: ProcessDriver, make_version: Any, python: str) -> None:
    command = shutil.which(f"python{python}")
    if command is None or subprocess.run([command, "-c", ""], capture_output=True).returncode != 0:
        pytest.skip(f"NOT SHOWN: no Python {python} on this machine")
    log = Log()
    version = dataclasses.replace(make_version(main="import sys, ssl\nprint(sys.version_info[:2])"), python=python)
    environment = await driver.start(make_spec(version, log=log))
    assert (await environment.wait()).code == 0, log.text
    major, minor = python.split(".")
    assert log.text == f"({major}, {minor})\n"


def test_under_uvloop(tmp_path: Path, version: VersionSpec) -> None:
    """The platform's own event loop in production."""

    async def main() -> None:
        driver = ProcessDriver(tmp_path)
        try:
            environment = await driver.start(make_spec(version, environment={"NAME": "uvloop"}, endpoint="served"))
            assert (await ask(environment, "environment"))["NAME"] == "uvloop"
            assert await ask(environment, "endpoint", path="/") == "served"
            for _ in range(40):
                connection = await environment.connect(5)
                loop = asyncio.get_running_loop()
                transport, _ = await loop.create_connection(asyncio.Protocol, sock=connection.socket)
                transport.close()
                connection.release()
            assert (await environment.stop(5)).reason == "stopped"
        finally:
            await driver.close()

    uvloop.run(main())
