"""What a new session costs: time and processor until /ping answers 200, memory of its own; from a fork server and cold.
And its first call through the whole platform, as unmodified boto3 sees it: cold, from a fork server, and claimed from a
warm pool (the aim: below 50 ms). With --image the same for containers, from the machine's Docker engine.

The agent is an ordinary one of the SDK with boto3, its dependencies this virtual environment's. Processor time is the
kernel's count in three parts: the session's process, its fork server's share (forks, namespaces), the platform's.
The aim for a version seen before: within 150 ms of processor, less than 20 MB of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _history import keep
from _platform import Platform

from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.drivers.process.environment import ProcessEnvironment
from agentkeep.testing.driver import make_spec, request

AGENT = """
import boto3
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()

@app.entrypoint
def invoke(payload):
    return {"echo": payload}

app.run()
"""
REQUIREMENTS = "bedrock-agentcore==1.25.0\nboto3\n"
POOL = 5
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@dataclass
class Measured:
    start_ms: float
    ping_ms: float
    cpu_ms: float
    environment: ProcessEnvironment


def cpu_ms(pid: int, *, children: bool = False) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11 : 15 if children else 13]) * TICK_MS


def own_mb(pid: int) -> float:
    """Memory that only this process has: what one more session takes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def fork_server_pid(environment: ProcessEnvironment) -> int:
    status = Path(f"/proc/{environment.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))


async def one(driver: ProcessDriver, version: VersionSpec, name: str) -> Measured:
    began = time.perf_counter()
    environment = await driver.start(make_spec(version))
    started = time.perf_counter()
    status, _ = await request(environment, "GET", "/ping", timeout=120)
    ready = time.perf_counter()
    assert status == 200
    return Measured((started - began) * 1e3, (ready - began) * 1e3, cpu_ms(environment.pid), environment)


def spread(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    return {
        "p50": round(statistics.median(values), 1),
        "p95": round(values[min(len(values) - 1, int(0.95 * len(values)))], 1),
        "max": round(values[-1], 1),
    }


async def measure(driver: ProcessDriver, version: VersionSpec, count: int, *, at_once: bool) -> dict[str, object]:
    warm = await one(driver, version, "warm")
    server = fork_server_pid(warm.environment)
    await warm.environment.stop(0)
    await asyncio.sleep(0.2)
    server_before, platform_before = cpu_ms(server, children=True), time.process_time()
    began = time.perf_counter()
    if at_once:
        measured = list(await asyncio.gather(*(one(driver, version, str(number)) for number in range(count))))
    else:
        measured = [await one(driver, version, str(number)) for number in range(count)]
    took = time.perf_counter() - began
    platform_ms = (time.process_time() - platform_before) * 1e3 / count
    server_ms = (cpu_ms(server, children=True) - server_before) / count
    await asyncio.sleep(0.5)
    memory = [own_mb(each.environment.pid) for each in measured]
    began = time.perf_counter()
    await asyncio.gather(*(each.environment.stop(0) for each in measured))
    session_ms = statistics.mean(each.cpu_ms for each in measured)
    return {
        "sealed_ms": spread([each.start_ms for each in measured]),
        "ping_ms": spread([each.ping_ms for each in measured]),
        "all_ready_ms": round(took * 1e3, 1),
        "cpu_ms": {
            "session": round(session_ms, 1),
            "fork_server": round(server_ms, 1),
            "platform": round(platform_ms, 1),
            "sum": round(session_ms + server_ms + platform_ms, 1),
        },
        "own_memory_mb": spread(memory),
        "stop_all_ms": round((time.perf_counter() - began) * 1e3, 1),
    }


class Caller:
    """boto3 against a platform with `settings`, and one agent."""

    def __init__(self, platform: Platform, arn: str, count: int) -> None:
        self._platform = platform
        self._client = platform.client("bedrock-agentcore", max_pool_connections=count)
        self._arn = arn
        self._count = count

    def first_call(self) -> float:
        """Milliseconds until the answer is here."""
        session, began = str(uuid.uuid4()), time.perf_counter()
        called = {"agentRuntimeArn": self._arn, "runtimeSessionId": session, "runtimeUserId": "alice"}
        self._client.invoke_agent_runtime(**called, payload=b"{}")["response"].read()
        took = (time.perf_counter() - began) * 1e3
        self._client.stop_runtime_session(agentRuntimeArn=self._arn, runtimeSessionId=session)
        return took

    def one_by_one(self, count: int, pool: int = 0) -> dict[str, float]:
        """Each when the pool is full again, so that what refills it is not measured with it."""
        taken = []
        for _ in range(count):
            self._until_full(pool)
            taken.append(self.first_call())
        return spread(taken)

    def at_once(self, count: int, pool: int = 0) -> dict[str, float]:
        self._until_full(pool)
        with ThreadPoolExecutor(count) as threads:
            return spread(list(threads.map(lambda _: self.first_call(), range(count))))

    def _until_full(self, pool: int) -> None:
        while pool:
            (found,) = json.loads(self._platform.request("GET", "/sessions"))["warmPools"]
            if found["ready"] == pool and not found["starting"]:
                return
            time.sleep(0.05)


def through_boto3(count: int, cold: int, image: str | None, socket: str) -> dict[str, object]:
    """First calls, by how the environment comes to be."""
    kinds = {"cold": "false", "fork server": "true"} if image is None else {"container": "true"}
    figures: dict[str, object] = {}
    for kind, fork_servers in kinds.items():
        for size in (0, POOL):
            if size and kind == "cold":
                continue  # what waits in a pool came from a fork server
            with (
                tempfile.TemporaryDirectory() as text,
                Platform(
                    Path(text),
                    AGENTKEEP_RUNTIME_PROCESS_FORK_SERVERS=fork_servers,
                    AGENTKEEP_RUNTIME_DOCKER=str(image is not None).lower(),
                    AGENTKEEP_RUNTIME_DOCKER_SOCKET=socket,
                    AGENTKEEP_RUNTIME_WARM_POOL=str(size),
                ) as platform,
            ):
                (agent := Path(text) / "agent.py").write_text(AGENT)
                arn = platform.deploy(agent, requirements=REQUIREMENTS, **_artifact(image))
                caller = Caller(platform, arn, count)
                caller.first_call()  # the client's own beginnings, and the fork server's
                times = cold if kind == "cold" else count
                name = f"{kind}, claimed from a pool of {size}" if size else kind
                figures[f"{name}, one by one"] = caller.one_by_one(times, size)
                if size:
                    figures[f"{name}, {size} at once"] = caller.at_once(size, size)
    return figures


def _artifact(image: str | None) -> dict[str, Any]:
    if image is None:
        return {}
    return {"agentRuntimeArtifact": {"containerConfiguration": {"containerUri": image}}}


async def in_the_driver(count: int, cold: int) -> dict[str, object]:
    packages = next(Path(entry) for entry in sys.path if (Path(entry) / "bedrock_agentcore").is_dir())
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        folder.chmod(0o755)
        bundle = folder / "bundle"
        bundle.mkdir()
        (bundle / "main.py").write_text(AGENT)
        version = VersionSpec("benchmark", "1", bundle=bundle, dependencies=packages, entry_point=("main.py",))
        driver = ProcessDriver(folder / "state")
        try:
            began = time.perf_counter()
            await driver.prepare(version)
            figures["fork server ready, ms"] = round((time.perf_counter() - began) * 1e3, 1)
            figures["fork server, one by one"] = await measure(driver, version, count, at_once=False)
            figures[f"fork server, {count} at once"] = await measure(driver, version, count, at_once=True)
            own = VersionSpec(
                "cold", "1", bundle=bundle, dependencies=packages, entry_point=("main.py",), fork_server=False
            )
            figures["cold, one by one"] = await measure(driver, own, cold, at_once=False)
            mode, controllers = await driver.describe()
            figures["mode"] = f"{mode}, control groups: {', '.join(sorted(controllers)) or 'none'}"
        finally:
            await driver.close()
    return figures


def main(count: int, cold: int, image: str | None, socket: str) -> None:
    figures = {} if image is not None else asyncio.run(in_the_driver(count, cold))
    figures["first call through boto3, ms"] = through_boto3(count, cold, image, socket)
    print(json.dumps(figures, indent=2))
    keep("sessions", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--cold", type=int, default=5)
    parser.add_argument("--image", help="an agent's image in this machine's Docker engine; then only containers")
    parser.add_argument("--socket", default="/var/run/docker.sock", help="that engine's")
    arguments = parser.parse_args()
    main(arguments.count, arguments.cold, arguments.image, arguments.socket)
