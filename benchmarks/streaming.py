"""What the platform adds to each piece of a streamed answer: from the agent's write to the client's read.

The agent sends fifty server-sent events, ten milliseconds apart, each with the time at which it was written. Asked
directly, through nginx as a plain proxy, and through the platform, in turn, in one run; the stand is `invocation.py`'s.
Times in microseconds.

    python benchmarks/streaming.py

Aim: less than 500 us added at the median.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import uvloop
from _history import keep
from invocation import STREAM, Target, best, cpu, stand

ROUNDS = 6
STREAMS = (1, 32, 256)


async def events(target: Target, connections: int) -> dict[str, float]:
    delays: list[float] = []

    async def one(number: int) -> None:
        await asyncio.sleep(number * 0.01 / connections)
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        writer.write(target.request(number, STREAM))
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(50):
            await reader.readuntil(b"data: ")
            line = await reader.readuntil(b"\n\n")
            delays.append((time.monotonic_ns() - int(line.split()[0])) / 1000)
        writer.close()

    spent = cpu(target.pids)
    await asyncio.gather(*(one(number) for number in range(connections)))
    spent = cpu(target.pids) - spent
    delays.sort()
    return {
        "cpu_per_event": spent / len(delays) * 1e6,
        "p50": delays[len(delays) // 2],
        "p99": delays[len(delays) * 99 // 100],
    }


async def measure(targets: Mapping[str, Target]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for connections in STREAMS:
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
        for _ in range(ROUNDS):
            for name, target in targets.items():
                rounds[name].append(await events(target, connections))
        found = {name: best(of) for name, of in rounds.items()}
        figures[f"{connections} streams"] = {
            name: one | {"added_p50": round(one["p50"] - found["direct"]["p50"], 1)} for name, one in found.items()
        }
    return figures


def main() -> None:
    with stand() as targets:
        figures = uvloop.run(measure(targets))
    for name, figure in figures.items():
        print(name)
        for of, values in figure.items():
            print(f"  {of:10}", values)
    keep("streaming", figures)


if __name__ == "__main__":
    main()
