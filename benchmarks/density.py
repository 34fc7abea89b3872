"""How many sessions a machine holds: 300 first calls at once through the whole platform, each its sandbox; what a
session adds in memory, processor time and descriptors; and sessions per GiB.

Memory is what a session adds to the machine (proportional set size of everything below the platform, which counts
shared pages once), after each has answered a call. The agent is an ordinary one of the SDK with boto3; `--light`: of
the standard library alone.

    python benchmarks/density.py [--sessions 300] [--light]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import uvloop
from _history import keep
from _platform import LIGHT_AGENT, Platform, Signed, exchange

SDK_AGENT = """
import boto3
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()

@app.entrypoint
def invoke(payload):
    return {"echo": payload}

app.run()
"""
PATIENCE = 180.0


def proportional_mb(pid: int) -> float:
    """Of the process and everything below it."""
    total = 0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


async def call(platform: Platform, request: Signed) -> tuple[int, float]:
    began = time.perf_counter()
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
        try:
            writer.write(request.next())
            status, _, _ = await exchange(reader)
        finally:
            writer.close()
    return status, time.perf_counter() - began


async def run(sessions: int, light: bool) -> dict[str, Any]:
    settings = {"AGENTKEEP_RUNTIME_MAX_SESSIONS": str(sessions + 10), "AGENTKEEP_RUNTIME_STARTS_WAITING": str(sessions),
                "AGENTKEEP_RUNTIME_START_PATIENCE": str(PATIENCE)}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="agentkeep-density-") as folder:
        main = Path(folder) / "agent.py"
        main.write_text(LIGHT_AGENT.read_text() if light else SDK_AGENT)
        with Platform(Path(folder) / "data", **settings) as platform:
            packages = "" if light else "bedrock-agentcore==1.25.0\nboto3\n"
            arn = platform.deploy(main, requirements=packages)
            names = [str(uuid.uuid4()) for _ in range(sessions)]
            requests = [platform.invocation(arn, name, b'{"prompt":"hello"}') for name in names]
            assert (await call(platform, platform.invocation(arn, str(uuid.uuid4()), b"{}")))[0] == 200
            before, before_mb = platform.count(), proportional_mb(platform.pid)
            began = time.perf_counter()
            answers = await asyncio.gather(*(call(platform, request) for request in requests))
            took = time.perf_counter() - began
            delays = sorted(seconds for _, seconds in answers)
            again = await asyncio.gather(*(call(platform, request) for request in requests))
            warm = sorted(seconds for _, seconds in again)
            await asyncio.sleep(1)
            after, after_mb = platform.count(), proportional_mb(platform.pid)
            each = (after_mb - before_mb) / sessions
            return {
                "agent": "standard library" if light else "SDK and boto3",
                "sessions": sessions,
                "answers": {str(status): n for status, n in Counter(status for status, _ in answers).items()},
                "all_answered_s": round(took, 2),
                "first_call_s": {"p50": round(delays[len(delays) // 2], 2), "max": round(delays[-1], 2)},
                "second_call_all_at_once_ms": {
                    "p50": round(warm[len(warm) // 2] * 1e3, 1),
                    "max": round(warm[-1] * 1e3, 1),
                },
                "mb_a_session": round(each, 2),
                "sessions_per_gib": round(1024 / each),
                "platforms_mb_a_session": round((after["memory_mb"] - before["memory_mb"]) / sessions, 3),
                "platforms_descriptors_a_session": round((after["descriptors"] - before["descriptors"]) / sessions, 1),
                "platforms_cpu_ms_a_session": round((after["cpu_s"] - before["cpu_s"]) / sessions * 1e3, 1),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--light", action="store_true", help="an agent of the standard library alone")
    parser.add_argument("--keep", action=argparse.BooleanOptionalAction, default=True, help="in history.jsonl")
    arguments = parser.parse_args()
    figures = uvloop.run(run(arguments.sessions, arguments.light))
    print(json.dumps(figures, indent=2))
    if arguments.keep:
        keep("density", figures)
    sys.exit(0 if set(figures["answers"]) == {"200"} else 1)


if __name__ == "__main__":
    main()
