"""What a new session costs: time and processor until /ping answers 200, memory of its own; from a fork server and cold.

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
from dataclasses import dataclass
from pathlib import Path

from _history import keep

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


async def main(count: int, cold: int) -> None:
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
    print(json.dumps(figures, indent=2))
    keep("sessions", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--cold", type=int, default=5)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.count, arguments.cold))
