"""The order of things: plant in many sessions at once, attack from all of them, end them, look for what is left."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from urllib3.exceptions import HTTPError

from agentkeep.verify.host import Host, planted_here
from agentkeep.verify.outside import OUTSIDE, Attempt
from agentkeep.verify.probe import agent
from agentkeep.verify.probe.attack import ATTACKS, CONTAINER, ENDPOINT, PROCESS, STORAGE, Victim, masked
from agentkeep.verify.report import Finding, Report
from agentkeep.verify.sessions import Answer, Session, Wire, new_session
from agentkeep.verify.stage import Stage, Unprepared

__all__ = ["Suite"]

assert agent.LISTS  # all attacks are on the list now

ATONCE, AFTERWARDS, OUTSIDE_PHASE = "at once", "afterwards", "from outside"
#: Users whose data each session reaches for; its neighbours in a ring, so everybody is attacked.
VICTIMS = 3
#: Numbers of processes are small inside a sandbox and anything outside: these, and those of this command.
PIDS = range(1, 400)


class Suite:
    def __init__(self, wire: Wire, stage: Stage, *, sessions: int, image: bool, say: Callable[[str], None]) -> None:
        self.report = Report(stage.id, sessions)
        self.report.driver = "containers" if image else "code"
        self._wire = wire
        self._stage = stage
        self._where = [CONTAINER if image else PROCESS, ENDPOINT]
        self._say = say
        self._count = sessions
        self._living: list[Session] = []

    def run(self) -> Report:
        """Also when it is interrupted, its sessions are ended; the stage is the caller's to remove."""
        try:
            self._run()
        except Unprepared as error:
            self.report.gaps.append(str(error))
        except HTTPError as error:
            self.report.gaps.append(f"the deployment did not answer: {error}")
        finally:
            self._end(self._living)
        return self.report

    def _run(self) -> None:
        users = [f"user{number}-{self._stage.id}-{secrets.token_hex(4)}" for number in range(self._count)]
        victims = self._stage.make(users)
        with planted_here(self._stage.beginning, self._wire.endpoint) as host:
            self._say(f"{self._count} sessions of {self._count} users plant their secrets")
            sessions = self._start([self._session(number, victim) for number, victim in enumerate(victims)])
            self.report.users = self._how(sessions)
            self._say("they attack each other, the host and the session endpoint")
            self._attack(ATONCE, sessions, sessions, host)
            self._from_outside(sessions, ended=False)
            self._say("all end")
            self._end(sessions)
            self._from_outside(sessions, ended=True)
            self._say("new sessions look for what is left")
            later = self._start(self._successors(sessions))
            self._attack(AFTERWARDS, later, sessions, host)

    # Sessions.

    def _session(self, number: int, victim: Victim, id: str | None = None) -> Session:
        kind = number % len(self._stage.runtimes)
        runtime = self._stage.runtimes[kind]
        session = new_session(
            self._wire, runtime, victim.user, bearer=kind == 1, number=number, beginning=self._stage.beginning, id=id
        )
        session.victim = dataclasses.replace(
            victim, session=session.id, runtime=runtime, workload=self._stage.workloads[runtime], bearer=session.bearer
        )
        return session

    def _successors(self, ended: Sequence[Session]) -> list[Session]:
        """Somebody new, in a session of each kind, and an ended session's own user with its id."""
        found = []
        for kind in range(len(self._stage.runtimes)):
            victim = self._stage.plant(f"later{kind}-{self._stage.id}-{secrets.token_hex(4)}")
            found.append(self._session(len(self._stage.runtimes) * len(ended) + kind, victim))
        return [*found, self._session(0, ended[0].victim, ended[0].id)]

    def _start(self, sessions: Sequence[Session]) -> list[Session]:
        """Each with its plants and its keys. Those that cannot are left out, and said."""

        def start(session: Session) -> str | None:
            self._living.append(session)
            try:
                planted = session.plant()
                if STORAGE not in planted["places"]:
                    return f"session {session.id} cannot write to its session storage"
                keys = session.ask(do="keys")
                session.victim.keys, session.victim.token = keys["keys"], keys["token"]
            except (RuntimeError, HTTPError, ValueError, KeyError) as error:
                return f"session {session.id} could not plant its secrets: {error}"
            return None

        failures = list(self._all(start, sessions))
        self.report.gaps += [failure for failure in failures if failure]
        started = [session for session, failure in zip(sessions, failures, strict=True) if not failure]
        if not started:
            raise Unprepared("no session could be started")
        return started

    def _end(self, sessions: Sequence[Session]) -> None:
        def end(session: Session) -> str | None:
            try:
                answer = session.stop()
                return (
                    None if answer.ok or answer.status == 404 else f"session {session.id} could not be ended: {answer}"
                )
            except (HTTPError, RuntimeError) as error:
                return f"session {session.id} could not be ended: {error}"

        sessions = list(sessions)
        failures = list(self._all(end, sessions))
        self.report.gaps += [failure for failure in failures if failure]
        for session in sessions:
            with contextlib.suppress(ValueError):
                self._living.remove(session)

    def _how(self, sessions: Sequence[Session]) -> str:
        bearers = sum(session.bearer for session in sessions)
        if not bearers:
            return f"{len(sessions)} named by the operator (SigV4)"
        return (
            f"{len(sessions) - bearers} named by the operator (SigV4), {bearers} by tokens of the deployment's issuer"
        )

    @staticmethod
    def _all(function: Callable[[Session], Any], sessions: Iterable[Session]) -> Iterable[Any]:
        sessions = list(sessions)
        pool = ThreadPoolExecutor(max(1, min(64, len(sessions))))
        try:
            return list(pool.map(function, sessions))
        finally:  # interrupted, too: what still runs ends with its session
            pool.shutdown(wait=False, cancel_futures=True)

    # Attacks.

    def _attack(self, phase: str, attackers: Sequence[Session], attacked: Sequence[Session], host: Host) -> None:
        def attack(session: Session) -> list[Finding]:
            others = [other for other in attacked if other is not session]
            try:
                target = self._target(session, others, host)
                results = session.ask(do="attack", where=self._where, target=target)
            except (RuntimeError, HTTPError, ValueError) as error:
                results = {"": str(error)}
            return list(self._findings(phase, session, results))

        for findings in self._all(attack, attackers):
            self.report.add(findings)

    def _target(self, session: Session, others: Sequence[Session], host: Host) -> dict[str, Any]:
        at = next((n for n, other in enumerate(others) if other.own.port > session.own.port), 0)
        ring = [*others[at:], *others[:at]]
        strangers = [other for other in ring if other.user != session.user]
        canaries = [other.victim.canary for other in strangers]
        return {
            "names": [host.name, *(other.name for other in others)],
            "pids": [*host.pids, *PIDS],
            "ports": [port for port in (host.port, *(other.port for other in others)) if port != session.port],
            "keys": [host.key, *(other.key for other in others)],
            "secrets": [host.secret, *(masked(other.secret) for other in others), *canaries],
            "addresses": [a for a in dict.fromkeys(other.own.address for other in others) if a != session.own.address],
            "places": host.places,
            "files": host.files,
            "victims": [asdict(other.victim) for other in strangers[:VICTIMS]],
            "gateway": self._stage.gateway,
            "provider": self._stage.provider,
            "own": asdict(session.own),
            "me": asdict(session.victim),
        }

    def _findings(self, phase: str, session: Session, results: Mapping[str, Any]) -> Iterable[Finding]:
        """Of every attack on the list that makes sense here, also of those the session said nothing of."""
        for attack in ATTACKS.values():
            if not attack.where.intersection(self._where):
                continue
            found = results.get(attack.name)
            if found is None:
                why = str(results.get("", "the session did not report it"))
                found = {"outcome": ["not run", why], "control": ["not run", why]}
            (outcome, detail), (control, why) = found["outcome"], found["control"]
            seconds = found.get("seconds", 0.0)
            yield Finding(phase, attack.name, attack.tries, session.name, outcome, detail, control, why, seconds)

    def _from_outside(self, sessions: Sequence[Session], *, ended: bool) -> None:
        """The first of each kind of session by the user of the next one of that kind."""
        for kind in (False, True):
            alike = [session for session in sessions if session.bearer == kind]
            if len(alike) < 2:
                continue
            for attempt in OUTSIDE:
                if attempt.ended == ended:
                    self.report.add([self._outside_finding(attempt, alike[0], alike[1])])

    @staticmethod
    def _outside_finding(attempt: Attempt, theirs: Session, mine: Session) -> Finding:
        def outcome(request: Callable[[Session, Session], Answer]) -> tuple[str, str]:
            try:
                answer = request(theirs, mine)
            except (HTTPError, RuntimeError) as error:
                return "not run", str(error)
            if answer.ok:
                return "succeeded", str(answer)
            return ("failed" if 400 <= answer.status < 500 else "not run"), str(answer)

        done, control = outcome(attempt.attack), outcome(attempt.control)
        return Finding(OUTSIDE_PHASE, attempt.name, attempt.tries, theirs.name, *done, *control)
