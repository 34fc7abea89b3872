# ruff: noqa: S108 -- places that every session has are what this is about.
"""What an attack is, what it aims at, and how it is told whether it succeeded.

An attack that succeeds returns what it got (or did); one that fails raises OSError, ValueError or LookupError, as it
must. Anything else it raises says that it could not be carried out, which is not a pass.

Each attack is run a second time, aimed at what is the session's own (`Target.control`): there it must succeed. So it
takes what it tries from `Target.aim`, or from members of the target that the control fills with the session's own.
Calls that no session may make cannot succeed in one; there the control makes an allowed call in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

__all__ = [
    "ATTACKS",
    "CONTAINED",
    "CONTAINER",
    "ENDPOINT",
    "PROCESS",
    "STORAGE",
    "Attack",
    "Blocked",
    "NoControl",
    "Own",
    "Target",
    "Victim",
    "any_of",
    "attack",
    "contained",
    "in_masked",
    "masked",
    "unmasked",
]

T = TypeVar("T")

#: Where the probe asks for session storage: to be gone with the session.
STORAGE = "/mnt/verify"

#: Where an attack makes sense: in a sandbox made of processes, in a container, at the session endpoint of either.
PROCESS, CONTAINER, ENDPOINT = "process", "container", "endpoint"
_MASK = bytes((value + 1) % 256 for value in range(256))
_UNMASK = bytes((value - 1) % 256 for value in range(256))


def masked(secret: str) -> str:
    """Each byte plus one, as hexadecimal: so that handing a secret to an attacker does not put it into his memory."""
    return secret.encode().translate(_MASK).hex()


def unmasked(text: str) -> str:
    return bytes.fromhex(text).translate(_UNMASK).decode()


def in_masked(text: str, data: bytes) -> bool:
    """Whether the masked secret is in `data`, without unmasking it."""
    return data.translate(_MASK).find(bytes.fromhex(text)) >= 0


@dataclass
class Own:
    """The attacker's session: its plants all bear `name`. `folder`: a directory of its own with a file of that name.
    `secret` is masked; `pid` a child's of the `agent`, which planted it all."""

    name: str = ""
    secret: str = ""
    port: int = 0
    key: int = 0
    address: str = ""
    pid: int = 0
    agent: int = 0
    folder: str = "/tmp"

    @property
    def file(self) -> str:
        return f"{self.folder}/{self.name}"


@dataclass
class Victim:
    """A user, and what is his at the session endpoint. Secrets (`canary`, `keys`, `token`) are masked."""

    user: str
    memory: str = ""
    event: str = ""
    record: str = ""
    canary: str = ""
    session: str = ""
    runtime: str = ""
    workload: str = ""
    tool: str = ""
    keys: list[str] = field(default_factory=list)
    token: str = ""
    bearer: bool = False


@dataclass
class Target:
    """Of the neighbours and the host: `names` of what they planted (each plants one of everything under its name),
    `pids` (host's view), `ports`, `keys` of shared memory, `addresses` of neighbours, `places` (host:port) that the
    host and the platform serve, `files` of theirs (sockets of engines, say). `secrets` are masked. `own` and `me` are
    the attacker's; `gateway`, `provider` are ids."""

    names: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    victims: list[Victim] = field(default_factory=list)
    gateway: str = ""
    provider: str = ""
    own: Own = field(default_factory=Own)
    me: Victim = field(default_factory=lambda: Victim(""))
    control: bool = False

    @classmethod
    def of(cls, document: dict[str, Any]) -> Target:
        victims = [Victim(**one) for one in document.get("victims", ())]
        me = Victim(**document.get("me", {"user": ""}))
        return cls(**{**document, "victims": victims, "me": me, "own": Own(**document.get("own", {}))})

    def aim(self, others: Sequence[T], own: Sequence[T]) -> list[T]:
        """What the attack is to try: what must fail, or, in the control, what must succeed."""
        return list(own if self.control else others)

    def at_oneself(self) -> Target:
        """The control's target."""
        own = self.own
        return replace(
            self, names=[own.name], pids=[own.pid], ports=[own.port], keys=[own.key], secrets=[own.secret],
            addresses=[own.address], places=[f"127.0.0.1:{own.port}"], files=[f"{own.file}.sock"], victims=[self.me],
            control=True,
        )  # fmt: skip


Function = Callable[[Target], Any]


@dataclass(frozen=True)
class Attack:
    """`where`: any of PROCESS, CONTAINER, ENDPOINT. `tries`: in words."""

    name: str
    tries: str
    where: frozenset[str]
    function: Function


ATTACKS: dict[str, Attack] = {}  # must fail
CONTAINED: dict[str, Function] = {}  # must hit a limit: the function returns True if it did


def attack(*where: str) -> Callable[[Function], Function]:
    """Puts a function on the list; without `where`: in every sandbox. Its docstring's first line says what it tries."""

    def note(function: Function) -> Function:
        name, tries = function.__name__, (function.__doc__ or "").split("\n")[0]
        assert name not in ATTACKS and tries, name
        ATTACKS[name] = Attack(name, tries, frozenset(where or (PROCESS, CONTAINER)), function)
        return function

    return note


def contained(function: Function) -> Function:
    CONTAINED[function.__name__] = function
    return function


class Blocked(OSError):
    """Nothing was found or reached."""


class NoControl(Exception):
    """This session has nothing of its own at which the attack could be aimed; another one does."""


def any_of(attempts: Sequence[Callable[[], Any]]) -> Any:
    """The first attempt that succeeds; raises the last failure if none does."""
    failure: Exception = Blocked("nothing to try")
    for attempt in attempts:
        try:
            return attempt()
        except (OSError, ValueError, LookupError) as error:
            failure = error
    raise failure
