"""Which ports there are, which service serves each, and which services may call which method.

Deny by default: a caller that is not named here is refused, whatever it can prove about itself, and so is everybody
where a method is not (tests/service/test_ports_wire.py says which those are).
"""

# mypy: disable-error-code="type-abstract"

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from agentkeep.core.ports import (
    Alerts,
    Audit,
    Authorizers,
    Budget,
    Keys,
    MemorySessions,
    Models,
    OutboundCredentials,
    SessionUsers,
    Usage,
    WorkloadTokens,
)
from agentkeep.service.ports.description import PortMethod, describe

__all__ = [
    "ALERTS",
    "AUDIT",
    "AUTHORIZERS",
    "BUDGET",
    "KEYS",
    "MEMORY_SESSIONS",
    "MODELS",
    "OUTBOUND_CREDENTIALS",
    "PORTS",
    "SESSION_USERS",
    "USAGE",
    "WORKLOAD_TOKENS",
    "Port",
]

P = TypeVar("P")


@dataclass(frozen=True, slots=True, eq=False)
class Port(Generic[P]):
    """`plane` serves it. `callers`: by method, the services that may call it. `safe`: methods that may be sent again
    when a connection failed: they read, or doing them twice changes nothing. `seconds`: limit of one call."""

    name: str
    protocol: type[P]
    plane: str
    callers: Mapping[str, frozenset[str]]
    safe: frozenset[str]
    seconds: float
    methods: Mapping[str, PortMethod]


def _port(
    name: str,
    protocol: type[P],
    plane: str,
    callers: Mapping[str, str],
    safe: Iterable[str] = (),
    seconds: float = 5.0,
) -> Port[P]:
    methods = describe(protocol)
    named = {method: frozenset(services.split()) for method, services in callers.items()}
    return Port(name, protocol, plane, named, frozenset(safe), seconds, methods)


_ALL_BUT_IDENTITY: Final = "runtime gateway memory observability"

KEYS: Final = _port(
    "keys",
    Keys,
    "identity",
    {
        "find": _ALL_BUT_IDENTITY,
        "begin_session": "runtime",
        "issue_for_session": "runtime",
        "end_session": "runtime",
    },
    safe=("find", "end_session"),
    seconds=10.0,  # AWS's STS may have to be asked
)
AUTHORIZERS: Final = _port(
    "authorizers",
    Authorizers,
    "identity",
    {"check": "runtime gateway", "verify": "runtime gateway"},
    safe=("check", "verify"),
    seconds=15.0,  # it may have to fetch a provider's documents
)
WORKLOAD_TOKENS: Final = _port(
    "workload-tokens",
    WorkloadTokens,
    "identity",
    dict.fromkeys(("create_for_service", "delete_for_service", "issue"), "runtime gateway"),
    safe=("create_for_service", "delete_for_service", "issue"),
)
OUTBOUND_CREDENTIALS: Final = _port(
    "outbound-credentials", OutboundCredentials, "identity", {"api_key": "gateway"}, safe=("api_key",)
)
USAGE: Final = _port(
    "usage",
    Usage,
    "observability",
    {"record": "gateway", "of_session": "runtime gateway"},
    safe=("record", "of_session"),  # a record's request id makes it one
)
BUDGET: Final = _port(
    "budget",
    Budget,
    "observability",
    {"open": "runtime", "reserve": "gateway", "settle": "gateway"},
    safe=("open", "settle"),
)
SESSION_USERS: Final = _port(
    "session-users", SessionUsers, "runtime", {"user_of": "identity gateway memory observability"}, safe=("user_of",)
)
ALERTS: Final = _port(
    "alerts",
    Alerts,
    "observability",
    {"raise_alert": "runtime gateway memory identity"},
    safe=("raise_alert",),  # one told twice is better than one lost
)
AUDIT: Final = _port(
    "audit",
    Audit,
    "observability",
    {"record": "runtime gateway memory identity"},
    safe=("record",),  # a record's id makes it one
)
MEMORY_SESSIONS: Final = _port(
    "memory-sessions", MemorySessions, "memory", {"session_ended": "runtime"}, safe=("session_ended",)
)

MODELS: Final = _port("models", Models, "gateway", {"answer": "memory"}, seconds=600.0)

PORTS: Final[Mapping[str, Port[object]]] = {
    port.name: port  # type: ignore[misc]
    for port in (
        KEYS,
        AUTHORIZERS,
        WORKLOAD_TOKENS,
        OUTBOUND_CREDENTIALS,
        USAGE,
        BUDGET,
        ALERTS,
        AUDIT,
        SESSION_USERS,
        MODELS,
        MEMORY_SESSIONS,
    )
}
