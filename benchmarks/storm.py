"""What becomes of more than the platform takes: many first calls at once, and many calls at once of one session.

A whole embedded platform that takes 50 sessions, of which 8 start at one time and 20 wait; and 64 invocations at once
of one session. Every call gets an answer that the model knows: 200, 402 (sessions) or 429 (starts, invocations). Then
it is asked whether it is well: sessions that live answer, what was refused can be had when there is room, nothing is
left over. Exit status 1 if not.

    python benchmarks/storm.py [--calls 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop
from _history import keep
from _platform import Platform, Signed, exchange, stop

SESSIONS = 50
SETTINGS = {
    "AGENTKEEP_RUNTIME_MAX_SESSIONS": str(SESSIONS),
    "AGENTKEEP_RUNTIME_STARTS_AT_ONCE": "8",
    "AGENTKEEP_RUNTIME_STARTS_WAITING": "20",
    "AGENTKEEP_RUNTIME_INVOCATIONS_OF_SESSION": "64",
    "AGENTKEEP_RUNTIME_STOP_GRACE": "1",
}
CODES = {200: "", 402: "ServiceQuotaExceededException", 429: "ThrottlingException"}
MEMORY_MB = 150
PATIENCE = 120.0


def peak_mb(pid: int, *, reset: bool = False) -> float:
    """The most memory it has had since the last reset."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1000


async def call(platform: Platform, request: Signed) -> tuple[int, str, float]:
    """Status, error code and seconds, on a connection of its own."""
    began = time.perf_counter()
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
        try:
            writer.write(request.next())
            status, headers, _ = await exchange(reader)
        finally:
            writer.close()
    return status, headers.get("x-amzn-errortype", ""), time.perf_counter() - began


async def storm(platform: Platform, requests: list[Signed]) -> dict[str, Any]:
    """All at once."""
    peak_mb(platform.pid, reset=True)
    began = time.perf_counter()
    answers = await asyncio.gather(*(call(platform, request) for request in requests), return_exceptions=True)
    took = time.perf_counter() - began
    outcomes: Counter[str] = Counter()
    delays = []
    for answer in answers:
        if isinstance(answer, BaseException):
            outcomes[repr(answer)] += 1
        else:
            status, code, seconds = answer
            outcomes[f"{status} {code}".strip()] += 1
            delays.append(seconds)
    delays.sort()
    return {
        "outcomes": dict(outcomes),
        "took_s": round(took, 2),
        "p50_s": round(delays[len(delays) // 2], 3),
        "max_s": round(delays[-1], 3),
        "peak_mb": round(peak_mb(platform.pid), 1),
    }


async def run(calls: int) -> tuple[dict[str, Any], list[str]]:
    wrong: list[str] = []

    def expect(truth: object, what: str) -> None:
        if not truth:
            wrong.append(what)

    with (
        tempfile.TemporaryDirectory(prefix="agentkeep-storm-") as folder,
        Platform(Path(folder), **SETTINGS) as platform,
    ):
        arn = platform.deploy()

        def request(session: str, body: bytes = b"{}") -> Signed:
            return platform.invocation(arn, session, body)

        async def ended(sessions: list[str]) -> None:
            for session in sessions:
                await call(platform, stop(platform.credentials, platform.url, arn, session))

        def living() -> list[str]:
            return [one["sessionId"] for one in json.loads(platform.request("GET", "/sessions"))["sessions"]]

        expect((await call(platform, request(first := str(uuid.uuid4()))))[0] == 200, "the first session")
        before = platform.count()
        known = {f"{status} {code}".strip() for status, code in CODES.items()}

        many = await storm(platform, [request(str(uuid.uuid4())) for _ in range(calls)])
        expect(set(many["outcomes"]) <= known, f"first calls: {many['outcomes']}")
        expect(many["outcomes"].get("200", 0) >= 1, "some got a session")
        expect(many["peak_mb"] - before["memory_mb"] < MEMORY_MB, f"memory: {many['peak_mb']}")
        expect((await call(platform, request(first)))[0] == 200, "the session from before goes on")
        sessions = living()
        expect(len(sessions) <= SESSIONS, f"{len(sessions)} sessions live")
        answers = [await call(platform, request(session)) for session in sessions]
        expect(all(answer[0] == 200 for answer in answers), "those that live answer")
        await ended([session for session in sessions if session != first])
        fresh = [await call(platform, request(str(uuid.uuid4()))) for _ in range(3)]
        expect(all(answer[0] == 200 for answer in fresh), "there is room again")
        await ended([session for session in living() if session != first])

        one = await storm(platform, [request(first, b'{"hang": 1.5}') for _ in range(calls)])
        expect(set(one["outcomes"]) <= {"200", "429 ThrottlingException"}, f"one session: {one['outcomes']}")
        expect(one["outcomes"].get("200", 0) >= 64, "as many as are allowed were answered")
        expect(one["peak_mb"] - before["memory_mb"] < MEMORY_MB, f"memory: {one['peak_mb']}")
        expect((await call(platform, request(first)))[0] == 200, "the session goes on")

        await asyncio.sleep(6)  # until connections to agents have idled out
        after = platform.count()
        for name in ("tasks", "threads", "processes", "control_groups", "descriptors"):
            expect(after[name] <= before[name] + 8, f"{name}: {before[name]}, then {after[name]}")
    return {"first calls": many, "one session": one, "before_mb": before["memory_mb"]}, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--keep", action=argparse.BooleanOptionalAction, default=True, help="in history.jsonl")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 16_384)), hard))
    figures, wrong = uvloop.run(run(arguments.calls))
    print(json.dumps(figures | {"wrong": wrong}, indent=2))
    if arguments.keep:
        keep("storm", figures)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
