"""How often tools may be called: the catalogue's limits of a tool and the rate limits of its gateway, together.

All limits of a call are counted in one atomic step of the store, so that they are exact whatever the number of replicas
and callers, and a call that one limit refuses uses up nothing of the others.

Source for rate limits: AgentCore's developer guide. All of a gateway's limits must have room. Within one, the entry
with the most dimensions named applies, of several the one with the lower rate. A `*` stands for each value there is,
counted for itself. A limit one of whose dimensions a call does not have (a claim, for a caller without a token) is not
applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import Any, Final

from agentkeep.core.call import Caller
from agentkeep.gateway.catalogue.entries import CatalogueEntry
from agentkeep.gateway.records import RateLimitRecord
from agentkeep.storage.counters import Counter, CounterStore

__all__ = ["LimitReached", "RateLimits"]

_SECOND_MS: Final = 1000
_PERIODS_MS: Final = {"second": _SECOND_MS, "minute": 60 * _SECOND_MS}
_CLAIM: Final = "$.context.jwt."
_SESSION_KEPT: Final = timedelta(days=8) // timedelta(milliseconds=1)  # sessions live eight hours at the most


@dataclass(frozen=True, slots=True)
class LimitReached:
    """A limit without room. `key` names it: `rl-1/targetName=orders`, `catalogue/callsPerMinute`. `modelled`: whether
    it is a rate limit of the gateway. `retry_after`: seconds; None where waiting does not help."""

    key: str
    limit: str
    modelled: bool
    retry_after: int | None


class RateLimits:
    def __init__(self, counters: CounterStore) -> None:
        self._counters = counters

    async def take(
        self, limits: Sequence[RateLimitRecord], entry: CatalogueEntry, caller: Caller, gateway_id: str, name: str
    ) -> LimitReached | None:
        """Counts one call of the tool `name` (with its target's), or says why not. Raises StoreUnavailable."""
        counted = [*_of_catalogue(entry, caller, gateway_id, name)]
        for record in limits:
            counted += _of_record(record, _dimensions(record.dimension_keys, caller, name), gateway_id)
        exceeded = await self._counters.take([counter for counter, _ in counted])
        if exceeded is None:
            return None
        reached = counted[exceeded.index][1]
        wait = exceeded.retry_after_ms
        return LimitReached(
            reached.key, reached.limit, reached.modelled, None if wait is None else max(1, -(-wait // _SECOND_MS))
        )


def _of_catalogue(
    entry: CatalogueEntry, caller: Caller, gateway_id: str, name: str
) -> Sequence[tuple[Counter, LimitReached]]:
    session = caller.session
    # An agent is counted as one, whoever its user; a caller from outside of sessions by what it is known by.
    who = ("agent", session.runtime_id) if session is not None else ("principal", caller.principal)
    counted = [
        (
            Counter(_key("minute", gateway_id, name, *who), 1, entry.calls_per_minute, _PERIODS_MS["minute"]),
            LimitReached("catalogue/callsPerMinute", f"{entry.calls_per_minute} calls per minute", False, None),
        )
    ]
    if session is not None:
        key = _key("session", gateway_id, name, session.runtime_id, session.session_id)
        reached = LimitReached("catalogue/callsPerSession", f"{entry.calls_per_session} calls per session", False, None)
        counted.insert(0, (Counter(key, 1, entry.calls_per_session, None, _SESSION_KEPT), reached))
    return counted


def _of_record(
    record: RateLimitRecord, values: Mapping[str, str] | None, gateway_id: str
) -> Sequence[tuple[Counter, LimitReached]]:
    if values is None:
        return ()
    fitting = [entry for entry in record.entries if entry.get("requests") and _fits(entry, values)]
    if not fitting:
        return ()
    chosen = min(fitting, key=_order)
    said = ",".join(f"{name}={value}" for name, value in values.items())
    counted = []
    for request in chosen["requests"]:
        rate, window_ms = _whole(request["rate"], _PERIODS_MS[request["period"]])
        key = _key("rate", gateway_id, record.id, request["period"], *values.values())
        words = f"{request['rate']:g} requests per {request['period']}"
        counted.append((Counter(key, 1, rate, window_ms), LimitReached(f"{record.id}/{said}", words, True, None)))
    return counted


def _fits(entry: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    return all(wanted in ("*", values.get(key)) for key, wanted in entry.get("dimensions", {}).items())


def _order(entry: Mapping[str, Any]) -> tuple[int, float]:
    named = sum(value != "*" for value in entry.get("dimensions", {}).values())
    slowest = min(request["rate"] * _SECOND_MS / _PERIODS_MS[request["period"]] for request in entry["requests"])
    return -named, slowest


def _whole(rate: float, period_ms: int) -> tuple[int, int]:
    """A rate as a whole number in a longer window: 0.5 in a second is 1 in two."""
    fraction = Fraction(rate).limit_denominator(1000)
    return fraction.numerator, period_ms * fraction.denominator


def _dimensions(keys: Sequence[str], caller: Caller, name: str) -> dict[str, str] | None:
    """Each dimension's value for this call, None where one has none."""
    values = {}
    for key in keys:
        value: str | None = None
        if key == "targetName":
            value = name.partition("___")[0]
        elif key == "toolName":
            value = name
        elif key == "$.context.iam.principal":
            value = caller.principal if caller.access_key_id is not None else None
        elif key.startswith(_CLAIM) and caller.user is not None:
            claim = key.removeprefix(_CLAIM)
            value = caller.user.id if claim == "sub" else caller.user.claims.get(claim)
        if value is None:
            return None
        values[key] = value
    return values


def _key(*parts: str) -> str:
    """No part can reach into another: a length goes before each."""
    return "gateway:" + "".join(f"{len(part)}:{part}" for part in parts)
