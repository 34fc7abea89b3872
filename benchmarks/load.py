"""Whether the invocation path stays flat: what the platform holds before and after many invocations and sessions.

A whole embedded platform with real sandboxes. Most invocations are small and answered at once; every hundredth is one
of the others: a large body, an event stream, a client that leaves in the middle of its answer, one with a connection of
its own, a wrong signature, another user's session. Every eighth session ends by a crash in the middle of an answer,
another eighth by leaving, and of another the first caller does not wait for its answer; the rest is stopped.

Counted inside the platform's process: tasks, threads, descriptors, objects of the collector, memory; and outside:
processes, control groups, mounts, the driver's files, items of the store by family. Exit status 1 if anything grew that
must not (`BOUNDS`).

    python benchmarks/load.py [--invocations 100000] [--sessions 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop
from _history import keep
from _platform import Platform, Signed, exchange, invocation, stop
from botocore.credentials import Credentials

CONNECTIONS = 32
SESSIONS_AT_ONCE = 8
SETTLE = 60.0
SIGNED_FOR = 120.0

#: How much each figure may have grown when everything has ended: once, per 1000 invocations, per session.
BOUNDS: dict[str, tuple[float, float, float]] = {
    "tasks": (2, 0, 0),
    "threads": (2, 0, 0),
    "descriptors": (8, 0, 0),  # another fork server's, a read-only connection of a database
    "processes": (2, 0, 0),  # a worn fork server and the one after it
    "control_groups": (0, 0, 0),
    "mounts": (0, 0, 0),
    "driver_files": (4, 0, 0),
    "objects": (20_000, 100, 5),  # caches are filled once
    "memory_mb": (60, 0.1, 0.005),
    "items": (200, 0, 12),  # what is kept of ended sessions by design: records, usage
}


class Load:
    def __init__(self, platform: Platform, arn: str) -> None:
        self.platform = platform
        self.arn = arn
        self.answers: Counter[str] = Counter()

    def prepared(self, session: str, body: bytes = b"{}", user: str | None = None) -> Signed:
        return self.platform.invocation(self.arn, session, body, user)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.platform.port, limit=1 << 22)

    async def say(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> tuple[int, bytes]:
        """Raises asyncio.IncompleteReadError where the answer is cut."""
        writer.write(request)
        status, _, body = await exchange(reader)
        self.answers[str(status)] += 1
        return status, body

    async def once(self, invocation: Signed) -> tuple[int, bytes]:
        """On a connection of its own."""
        reader, writer = await self.connect()
        try:
            return await self.say(reader, writer, invocation.next())
        finally:
            writer.close()

    # Signeds.

    async def invocations(self, count: int, sessions: list[str]) -> float:
        """How many a second."""
        began, left = time.perf_counter(), count

        def another() -> bool:
            nonlocal left
            left -= 1
            return left >= 0

        await asyncio.gather(*(self._connection(sessions[n % len(sessions)], another) for n in range(CONNECTIONS)))
        return count / (time.perf_counter() - began)

    async def _connection(self, session: str, another: Any) -> None:
        reader, writer = await self.connect()
        small = self.prepared(session)
        signed, number = time.monotonic(), 0
        while another():
            number += 1
            if time.monotonic() - signed > SIGNED_FOR:
                small, signed = self.prepared(session), time.monotonic()
            if number % 100 == 0:
                await self._odd(session, number // 100 % 6)
                continue
            status, body = await self.say(reader, writer, small.next())
            assert status == 200, body
        writer.close()

    async def _odd(self, session: str, kind: int) -> None:
        match kind:
            case 0:
                await self.once(self.prepared(session, b"{}" + b" " * 400_000))
            case 1:
                _, body = await self.once(self.prepared(session, b'{"events": 20}'))
                assert body.count(b"data: ") == 20
            case 2:
                await self._leave(self.prepared(session, b'{"events": 200, "pause": 0.01}'))
            case 3:
                await self.once(self.prepared(session, b'{"size": 1000000}'))
            case 4:
                stranger = Credentials(self.platform.credentials.access_key, "wrong")
                forged = invocation(stranger, self.platform.url, self.arn, session, b"{}")
                assert (await self.once(forged))[0] == 403
            case _:
                assert (await self.once(self.prepared(session, user="somebody")))[0] == 403

    async def _leave(self, invocation: Signed) -> None:
        """After the first piece of the answer."""
        reader, writer = await self.connect()
        writer.write(invocation.next())
        await reader.readuntil(b"data: ")
        writer.transport.abort()
        self.answers["left"] += 1

    # Sessions.

    async def sessions(self, count: int) -> float:
        began = time.perf_counter()
        left = iter(range(count))

        async def one_after_the_other() -> None:
            for number in left:
                await self._session(number)

        await asyncio.gather(*(one_after_the_other() for _ in range(SESSIONS_AT_ONCE)))
        return count / (time.perf_counter() - began)

    async def _session(self, number: int) -> None:
        session, kind = str(uuid.uuid4()), number % 8
        if kind == 0:  # its first caller does not wait
            _, writer = await self.connect()
            writer.write(self.prepared(session).next())
            await asyncio.sleep(0.03)
            writer.transport.abort()
        status, body = await self.once(self.prepared(session, user=f"user-{number % 50}"))
        if kind == 0:
            # Nobody's session, which the first call has made; or this user's own, where that came too late.
            assert status in (200, 403), body
        else:
            assert status == 200, body
        if kind == 1:
            with contextlib.suppress(asyncio.IncompleteReadError):
                await self.once(self.prepared(session, b'{"crash": true}', user=f"user-{number % 50}"))
            self.answers["crashed"] += 1
        elif kind == 2:
            await self.once(self.prepared(session, b'{"exit": true}', user=f"user-{number % 50}"))
        else:
            await self.once(stop(self.platform.credentials, self.platform.url, self.arn, session))

    def active(self) -> list[str]:
        listed = json.loads(self.platform.request("GET", "/sessions"))
        return [one["sessionId"] for one in listed["sessions"] if one["status"] != "STOPPED"]


async def settled(load: Load) -> dict[str, Any]:
    """What is held when the sessions have ended and connections to agents have idled out."""
    await asyncio.sleep(6)
    deadline = time.monotonic() + SETTLE
    while True:
        figures = await asyncio.to_thread(load.platform.count)
        await asyncio.sleep(1)
        again = await asyncio.to_thread(load.platform.count)
        quiet = all(figures[name] == again[name] for name in ("tasks", "descriptors", "processes"))
        if quiet or time.monotonic() > deadline:
            return again


def growth(before: dict[str, Any], after: dict[str, Any], invocations: int, sessions: int) -> list[str]:
    """What grew beyond its bound, and what it consists of."""
    grown = []
    for name, (once, of_thousand, of_session) in BOUNDS.items():
        allowed = once + of_thousand * invocations / 1000 + of_session * sessions
        more = after[name] - before[name]
        if more > allowed:
            line = f"{name} grew by {more:g}, allowed {allowed:g}"
            if (parts := f"_{name}") in after:
                kinds = Counter(after[parts])
                kinds.subtract(before[parts])
                line += f": {', '.join(f'{kind} {n:+}' for kind, n in kinds.most_common(8))}"
            grown.append(line)
    return grown


async def run(invocations: int, sessions: int, steps: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="agentkeep-load-") as folder,
        Platform(Path(folder), AGENTKEEP_RUNTIME_STOP_GRACE="1") as platform,
    ):
        load = Load(platform, platform.deploy())
        kept = [str(uuid.uuid4()) for _ in range(8)]
        for session in kept:
            assert (await load.once(load.prepared(session)))[0] == 200
        # Caches and pools are filled before the first count.
        await load.invocations(min(invocations, 3200), kept)
        await load.sessions(min(sessions, 16))
        counts = [await settled(load)]
        rates = []
        for _ in range(steps):
            rates.append(
                {
                    "invocations_per_s": round(await load.invocations(invocations // steps, kept)),
                    "sessions_per_s": round(await load.sessions(sessions // steps), 1),
                }
            )
            counts.append(await settled(load))
            print({name: value for name, value in counts[-1].items() if name[0] != "_"}, rates[-1], flush=True)
        left = [one for one in load.active() if one not in kept]
        grown = growth(counts[0], counts[-1], invocations, sessions)
        if left:
            grown.append(f"{len(left)} sessions are still active")
        kinds = Counter(counts[-1]["_items"])
        kinds.subtract(counts[0]["_items"])
        print("items:", {kind: n for kind, n in kinds.most_common() if n})
        objects = Counter(counts[-1]["_objects"])
        objects.subtract(counts[1]["_objects"])
        print("objects since the first step:", {kind: n for kind, n in objects.most_common(12) if n})
        plain = [{name: value for name, value in one.items() if name[0] != "_"} for one in counts]
        return {
            "invocations": invocations,
            "sessions": sessions,
            "answers": dict(load.answers),
            "before": plain[0],
            "after": plain[-1],
            "memory_mb": [one["memory_mb"] for one in plain],
            "rates": rates,
            "grown": grown,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--invocations", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=5, help="after each of which it is counted")
    parser.add_argument(
        "--keep", action=argparse.BooleanOptionalAction, default=True, help="the figures, in history.jsonl"
    )
    arguments = parser.parse_args()
    figures = uvloop.run(run(arguments.invocations, arguments.sessions, arguments.steps))
    print(json.dumps(figures, indent=2))
    if arguments.keep:
        keep("load", figures)
    sys.exit(1 if figures["grown"] else 0)


if __name__ == "__main__":
    main()
