"""Replicas of the runtime service killed with SIGKILL under load.

Five services as processes with a real Valkey and the process driver; of the runtime service three replicas behind
nginx,
which sends each call to the next one. Clients call as SDKs do: up to five attempts, with a new connection after each
that failed. Two callers share each session, so its calls arrive at different replicas at the same time; sessions are
stopped after a while and new ones begun. Each call writes a memory event. Every so often a replica is killed, and
started again some seconds later.

What must hold (exit status 1 if it does not):

- every event that was acknowledged is there in the end;
- no session was served by two environments at one time: agents say which instance they are, and when each call began
  and ended, by one clock; in an instance every count comes once;
- after each kill sessions are served again, the dead replica's too, and new ones made, within `--recovered` seconds.

And printed: availability, by first attempts and after retries; how long sessions were without service; calls' times.

    python benchmarks/kill_replicas.py [--seconds 300] [--replicas 3] [--seed N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvloop
from _history import keep
from _nginx import Nginx
from _platform import Operator, Signed, exchange, invocation, stop
from botocore.credentials import Credentials

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from service_processes import ServiceProcess, Services, free_port, running_services

AGENT = Path(__file__).with_name("_event_agent.py")
SESSIONS = 6
CALLERS = 2  # of each session
CALLS = 60  # then a session ends
ATTEMPTS = 5
PATIENCE = 60.0
RETRIED = frozenset({0, 409, 429, 500, 502, 503, 504})
KILL_EVERY = (8.0, 16.0)
DOWN_FOR = (1.0, 6.0)


@dataclass
class Call:
    session: str
    began: float
    ended: float
    statuses: list[int]
    answer: dict[str, Any] | None
    said: str = ""

    @property
    def served(self) -> bool:
        return self.answer is not None


@dataclass
class Kill:
    at: float
    replica: int
    back: float = 0.0


@dataclass
class Stand:
    services: Services
    replicas: list[ServiceProcess]
    front: Nginx
    credentials: Credentials = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.front.port}"


@contextmanager
def standing(folder: Path, count: int) -> Iterator[Stand]:
    with ExitStack() as stack:
        services = stack.enter_context(running_services(folder, AGENTKEEP_RUNTIME_STOP_GRACE="1"))
        first = services["runtime"]
        replicas = [first]
        for number in range(2, count + 1):
            own = folder / f"runtime-{number}"
            own.mkdir()
            public, internal = free_port(), free_port()
            ports = {"AGENTKEEP_SERVICE_PORT": str(public), "AGENTKEEP_SERVICE_INTERNAL_PORT": str(internal)}
            replica = ServiceProcess("runtime", own, {**first.environment, **ports}, public, internal)
            replica.start()
            stack.callback(_ended, replica)
            replicas.append(replica)
        for replica in replicas:
            replica.wait()
        front = stack.enter_context(Nginx(folder / "nginx", [one.port for one in replicas], try_next=True))
        operator = services.operator()
        yield Stand(services, replicas, front, Credentials(operator["accessKeyId"], operator["secretAccessKey"]))


def _ended(replica: ServiceProcess) -> None:
    assert replica.process is not None
    if replica.process.poll() is None:
        replica.stop()


class Load:
    def __init__(self, stand: Stand, arn: str, memory: str, chance: random.Random) -> None:
        self.stand = stand
        self.arn = arn
        self.memory = memory
        self.chance = chance
        self.calls: list[Call] = []
        self.kills: list[Kill] = []
        self.stops: Counter[int] = Counter()
        self.refusals: Counter[str] = Counter()
        self.actors: dict[str, str] = {}  # by session
        self.running = True

    async def attempt(self, request: bytes) -> tuple[int, bytes]:
        """Status 0: no whole answer."""
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.stand.front.port)
                try:
                    writer.write(request)
                    status, _, body = await exchange(reader)
                    return status, body
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError, KeyError) as error:
            return 0, repr(error).encode()

    async def retried(self, signed: Signed) -> tuple[list[int], bytes]:
        """As SDKs do: the same call, with its invocation id, until it is answered or has failed too often."""
        request, statuses = signed.next(), list[int]()
        while True:
            status, body = await self.attempt(request)
            statuses.append(status)
            if status != 200:
                self.refusals[f"{status} {' '.join(body.decode(errors='replace').split())[:150]}"] += 1
            if status not in RETRIED or len(statuses) == ATTEMPTS:
                return statuses, body
            await asyncio.sleep(self.chance.random() * min(2.0, 0.1 * 2 ** len(statuses)))

    async def user(self, number: int) -> None:
        actor = f"user-{number}"
        while self.running:
            session = str(uuid.uuid4())
            self.actors[session] = actor
            await asyncio.gather(*(self._caller(session, actor) for _ in range(CALLERS)))
            ending = stop(self.stand.credentials, self.stand.url, self.arn, session)
            statuses, _ = await self.retried(ending)
            self.stops[statuses[-1]] += 1

    async def _caller(self, session: str, actor: str) -> None:
        for _ in range(CALLS):
            if not self.running:
                return
            payload = {"memory": self.memory, "actor": actor, "pause": self.chance.random() * 0.1}
            signed = invocation(
                self.stand.credentials, self.stand.url, self.arn, session, json.dumps(payload).encode(), actor
            )
            began = time.monotonic()
            statuses, body = await self.retried(signed)
            served = statuses[-1] == 200
            answer = json.loads(body) if served else None
            said = "" if served else body[:300].decode(errors="replace")
            self.calls.append(Call(session, began, time.monotonic(), statuses, answer, said))
            await asyncio.sleep(self.chance.random() * 0.1)

    async def kill(self, until: float, hurry: float) -> None:
        """`hurry`: below 1 for a run so short that there would be hardly any."""
        while True:
            pause = self.chance.uniform(*KILL_EVERY) * hurry
            if time.monotonic() + pause > until - 10 * hurry:
                return
            await asyncio.sleep(pause)
            kill = Kill(time.monotonic(), self.chance.randrange(len(self.stand.replicas)))
            self.kills.append(kill)
            replica = self.stand.replicas[kill.replica]
            await asyncio.to_thread(replica.kill)
            await asyncio.sleep(self.chance.uniform(*DOWN_FOR))
            replica.start()
            await asyncio.to_thread(replica.wait)
            kill.back = time.monotonic()


# What must hold.


def overlaps(calls: Sequence[Call]) -> list[str]:
    """Sessions that two environments served at one time, and counts that came twice."""
    found = []
    by_session: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for call in calls:
        if call.answer is not None:
            by_session[call.session][call.answer["instance"]].append(call.answer)
    for session, instances in by_session.items():
        spans = []
        for instance, answers in instances.items():
            counts = [answer["count"] for answer in answers]
            if len(set(counts)) != len(counts):
                found.append(f"{session}: a count of {instance} came twice")
            spans.append((min(answer["born"] for answer in answers), max(answer["ended"] for answer in answers)))
        for (_, ended), (born, _) in pairwise(sorted(spans)):
            if born < ended:
                found.append(f"{session}: another environment was born {(ended - born) / 1e6:.0f} ms too early")
    return found


def outages(calls: Sequence[Call], kills: Sequence[Kill]) -> list[float]:
    """Of each kill, the longest that a session which was in use at that moment waited for an answer."""
    found = []
    for kill in kills:
        under_way = [call for call in calls if call.began <= kill.at + 0.5 and call.ended >= kill.at]
        found.append(max((call.ended - kill.at for call in under_way), default=0.0))
    return found


def first_calls(calls: Sequence[Call], kills: Sequence[Kill]) -> list[float]:
    """Of each kill, how long until a session that began after it had its first answer, from that call's beginning."""
    begun: dict[str, Call] = {}
    for call in sorted(calls, key=lambda call: call.began):
        begun.setdefault(call.session, call)
    found = []
    for kill in kills:
        new = [call for call in begun.values() if kill.at < call.began < (kill.back or kill.at + 10) and call.served]
        found += [call.ended - call.began for call in new]
    return found


def lost(stand: Stand, load: Load) -> tuple[int, list[str]]:
    """How many events were acknowledged, and those that are not there."""
    client = Operator(stand.services["memory"].url, stand.credentials).client("bedrock-agentcore")
    acknowledged: dict[str, set[str]] = defaultdict(set)
    for call in load.calls:
        if call.answer is not None:
            acknowledged[call.session].add(call.answer["event"])
    missing = []
    for session, events in acknowledged.items():
        pages = client.get_paginator("list_events").paginate(
            memoryId=load.memory, actorId=load.actors[session], sessionId=session
        )
        missing += events - {event["eventId"] for page in pages for event in page["events"]}
    return sum(map(len, acknowledged.values())), missing


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else 0.0


async def run(seconds: float, replicas: int, seed: int, recovered: float) -> tuple[dict[str, Any], list[str]]:
    with (
        tempfile.TemporaryDirectory(prefix="agentkeep-kill-") as folder,
        standing(Path(folder), replicas) as stand,
    ):
        chance = random.Random(seed)
        runtime = Operator(stand.url, stand.credentials)
        arn = await asyncio.to_thread(runtime.deploy, AGENT, "events", "boto3\n")
        control = Operator(stand.services["memory"].url, stand.credentials).client("bedrock-agentcore-control")
        memory = control.create_memory(name="kills", eventExpiryDuration=30)["memory"]["id"]
        load = Load(stand, arn, memory, chance)
        began = time.monotonic()
        users = [asyncio.create_task(load.user(number)) for number in range(SESSIONS)]
        killing = asyncio.create_task(load.kill(began + seconds, min(1.0, seconds / 100)))
        done, _ = await asyncio.wait([killing, *users], timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        await killing
        load.running = False
        await asyncio.gather(*users)
        events, missing = await asyncio.to_thread(lost, stand, load)
    calls, kills = load.calls, load.kills
    waits, new = outages(calls, kills), first_calls(calls, kills)
    failed = [call for call in calls if not call.served]
    times = [call.ended - call.began for call in calls if call.served]
    figures = {
        "seconds": seconds,
        "replicas": replicas,
        "seed": seed,
        "kills": len(kills),
        "calls": len(calls),
        "sessions": len({call.session for call in calls}),
        "environments": len({call.answer["instance"] for call in calls if call.answer is not None}),
        "acknowledged_events": events,
        "lost_events": len(missing),
        "availability_first_attempt": round(sum(call.statuses[0] == 200 for call in calls) / len(calls), 5),
        "availability": round(1 - len(failed) / len(calls), 5),
        "failed_attempts": dict(load.refusals.most_common(12)),
        "failed_calls": dict(Counter(f"{call.statuses} {call.said[:120]}" for call in failed).most_common(5)),
        "stops": {str(status): n for status, n in load.stops.items()},
        "call_s": {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99), "max": percentile(times, 1)},
        "longest_wait_after_a_kill_s": {"p50": percentile(waits, 0.5), "max": percentile(waits, 1)},
        "new_sessions_while_one_is_down_s": {"count": len(new), "p50": percentile(new, 0.5), "max": percentile(new, 1)},
    }
    wrong = overlaps(calls)
    if missing:
        wrong.append(f"{len(missing)} acknowledged events are lost: {missing[:3]}")
    wrong += [f"{wait:.1f} s without an answer after a kill" for wait in waits if wait > recovered]
    wrong += [f"a new session took {wait:.1f} s" for wait in new if wait > recovered]
    if not kills or not events:
        wrong.append("nothing was killed, or nothing called: it shows nothing")
    return figures, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--recovered", type=float, default=30, help="seconds after which all must be served again")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--keep", action=argparse.BooleanOptionalAction, default=True, help="in history.jsonl")
    arguments = parser.parse_args()
    figures, wrong = uvloop.run(run(arguments.seconds, arguments.replicas, arguments.seed, arguments.recovered))
    print(json.dumps(figures | {"wrong": wrong}, indent=2))
    if arguments.keep:
        keep("kill_replicas", figures)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
