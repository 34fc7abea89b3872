"""The catalogue: how dangerous each tool is, how much of it is audited, how long and how often it may be called.

What an operator sets stands; the rest is a default, chosen from what the tool says of itself: one that only reads has
wider limits and leaves less in the trail. Whoever may not trust a target to say so sets the class himself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson

from agentkeep.core.errors import FieldError, ValidationException
from agentkeep.gateway.records import Tool
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.storage.interface import Delete, KeyValueStore, Put, partition

__all__ = ["AuditLevel", "Catalogue", "CatalogueEntry", "RiskClass", "full_name", "split_name"]

SEPARATOR: Final = "___"
_PAGE: Final = 1000
_LONGEST_SECONDS: Final = 900  # AgentCore's, of an invocation


class RiskClass(StrEnum):
    READ = "read"
    WRITE = "write"
    HIGH_IMPACT = "high-impact"


class AuditLevel(StrEnum):
    METADATA = "metadata"
    FULL = "full"


def full_name(target: str, tool: str) -> str:
    """As agents, policies and limits name a tool."""
    return f"{target}{SEPARATOR}{tool}"


def split_name(name: str) -> tuple[str, str]:
    """Target and tool; no target's name has an underscore, so the first separator is the one. Both empty: no name."""
    target, separator, tool = name.partition(SEPARATOR)
    return (target, tool) if separator else ("", "")


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """`chosen`: the members an operator set."""

    risk_class: RiskClass
    audit_level: AuditLevel
    seconds: float
    calls_per_session: int
    calls_per_minute: int
    chosen: frozenset[str] = frozenset()

    def document(self) -> dict[str, Any]:
        return {
            "riskClass": self.risk_class,
            "auditLevel": self.audit_level,
            "timeoutSeconds": self.seconds,
            "callsPerSession": self.calls_per_session,
            "callsPerMinute": self.calls_per_minute,
            "setByOperator": sorted(self.chosen),
        }


class Catalogue:
    def __init__(self, store: KeyValueStore, settings: GatewaySettings) -> None:
        self._store = store
        self._settings = settings

    async def entry(self, gateway_id: str, name: str, tool: Tool) -> CatalogueEntry:
        """`name`: with the target's."""
        value = await self._store.get(_partition(gateway_id), name)
        return self._entry(tool, orjson.loads(value) if value else {})

    async def entries(self, gateway_id: str, tools: Mapping[str, Tool]) -> dict[str, CatalogueEntry]:
        """Of all these tools, by full name."""
        names = list(tools)
        entries: dict[str, CatalogueEntry] = {}
        for begin in range(0, len(names), _PAGE):
            some = names[begin : begin + _PAGE]
            for name, value in zip(some, await self._store.get_many(_partition(gateway_id), some), strict=True):
                entries[name] = self._entry(tools[name], orjson.loads(value) if value else {})
        return entries

    async def set(self, gateway_id: str, name: str, tool: Tool, request: Any) -> CatalogueEntry:
        """Puts what an operator chose in the place of what he chose before; members left out, or null, are defaults.
        Raises ValidationException."""
        chosen = _checked(request)
        if chosen:
            await self._store.transact([Put(_partition(gateway_id), name, orjson.dumps(chosen))])
        else:
            await self._store.transact([Delete(_partition(gateway_id), name)])
        return self._entry(tool, chosen)

    def _entry(self, tool: Tool, chosen: Mapping[str, Any]) -> CatalogueEntry:
        settings = self._settings
        said = RiskClass.READ if tool.annotations.get("readOnlyHint") is True else RiskClass.WRITE
        risk = RiskClass(chosen.get("riskClass", said))
        reads = risk is RiskClass.READ
        return CatalogueEntry(
            risk,
            AuditLevel(chosen.get("auditLevel", AuditLevel.METADATA if reads else AuditLevel.FULL)),
            chosen.get("timeoutSeconds", settings.tool_seconds),
            chosen.get(
                "callsPerSession", settings.read_calls_per_session if reads else settings.write_calls_per_session
            ),
            chosen.get("callsPerMinute", settings.read_calls_per_minute if reads else settings.write_calls_per_minute),
            frozenset(chosen),
        )


def _checked(request: Any) -> dict[str, Any]:
    if not isinstance(request, dict):
        raise ValidationException("The catalogue entry must be a JSON object", "CannotParse")
    checks: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "riskClass": ("must be " + ", ".join(RiskClass), lambda value: value in tuple(RiskClass)),
        "auditLevel": ("must be " + " or ".join(AuditLevel), lambda value: value in tuple(AuditLevel)),
        "timeoutSeconds": (
            f"must be a number of seconds up to {_LONGEST_SECONDS}",
            lambda value: (
                isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LONGEST_SECONDS
            ),
        ),
        "callsPerSession": ("must be a whole number, 0 or more", _is_count),
        "callsPerMinute": ("must be a whole number, 0 or more", _is_count),
    }
    chosen = {name: value for name, value in request.items() if value is not None}
    faults = [FieldError(name, "is not a member of a catalogue entry") for name in chosen if name not in checks]
    faults += [
        FieldError(name, words)
        for name, (words, good) in checks.items()
        if name in chosen and not (isinstance(chosen[name], str | int | float) and good(chosen[name]))
    ]
    if faults:
        raise ValidationException("; ".join(f"{name} {message}" for name, message in faults), fields=faults)
    if chosen.get("riskClass") == RiskClass.HIGH_IMPACT and chosen.get("auditLevel") == AuditLevel.METADATA:
        raise ValidationException("A high-impact tool's calls are audited in full: leave auditLevel out, or full")
    return chosen


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10_000_000


def _partition(gateway_id: str) -> str:
    return partition("gateway", "catalogue", gateway_id)
