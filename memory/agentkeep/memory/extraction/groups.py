"""Which messages go into which namespace, and with which metadata.

The platform resolves namespaces, from what is proved of an event and from the variables it was written with; no model
has a say in it. Messages of different namespaces, or whose metadata must differ, are never extracted together.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentkeep.core.telemetry import step as span
from agentkeep.memory.extraction.material import Material, Message
from agentkeep.memory.memories import Memory
from agentkeep.memory.strategies import Strategy
from agentkeep.storage.search import Value

__all__ = ["Group", "groups"]

logger = logging.getLogger(__name__)

_VARIABLE: Final = re.compile(r"\{([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Group:
    """`metadata`: what the strategy's schema has from events unchanged."""

    strategy: Strategy
    namespace: str
    metadata: Mapping[str, Value]
    material: Sequence[Material]

    @property
    def messages(self) -> list[Message]:
        return [message for one in self.material for message in one.messages]


def groups(memory: Memory, strategy: Strategy, actor_id: str, material: Sequence[Material]) -> list[Group]:
    """Where a namespace cannot be resolved, the message is left out: logged, and counted on the trace as
    NamespaceResolutionFailure."""
    found: dict[tuple[str, str], tuple[Mapping[str, Value], list[Material]]] = {}
    unresolved = 0
    for one in material:
        namespace = _resolved(memory, strategy, actor_id, one)
        if namespace is None:
            unresolved += 1
            continue
        metadata = _consistent(strategy, one.metadata)
        found.setdefault((namespace, repr(sorted(metadata.items()))), (metadata, []))[1].append(one)
    if unresolved:
        logger.warning(
            "memory %s, strategy %s: %d events are not extracted: they have no value for a variable of its namespace",
            memory.id,
            strategy.id,
            unresolved,
        )
        attributes: dict[str, str | int] = {
            "memory.id": memory.id,
            "agentkeep.strategy.id": strategy.id,
            "agentkeep.events": unresolved,
        }
        with span("memory", "NamespaceResolutionFailure", None, actor_id, attributes):
            pass
    return [Group(strategy, namespace, metadata, held) for (namespace, _), (metadata, held) in found.items()]


def _resolved(memory: Memory, strategy: Strategy, actor_id: str, material: Material) -> str | None:
    values = {
        **{name: value for name, value in material.variables.items() if _is_allowed(memory, name, value)},
        "actorId": actor_id,
        "sessionId": material.session_id,
        "memoryStrategyId": strategy.id,
    }
    template = strategy.namespaces[0]
    if not values.keys() >= set(_VARIABLE.findall(template)):
        return None
    return _VARIABLE.sub(lambda found: values[found[1]], template)


def _is_allowed(memory: Memory, name: str, value: str) -> bool:
    """As the memory's namespaceKeys have it."""
    for key in memory.namespace_keys or ():
        if key["key"] == name:
            rules = key.get("validation", {})
            if "allowedValues" in rules and value not in rules["allowedValues"]:
                return False
            return "regexPattern" not in rules or re.fullmatch(rules["regexPattern"], value) is not None
    return False


def _consistent(strategy: Strategy, metadata: Mapping[str, str]) -> dict[str, Value]:
    """The event's values for keys that are STRICTLY_CONSISTENT, as their type has them."""
    found: dict[str, Value] = {}
    for entry in (strategy.record_schema or {}).get("metadataSchema", ()):
        value = metadata.get(entry["key"])
        if entry.get("extractionType") != "STRICTLY_CONSISTENT" or value is None:
            continue
        match entry.get("type", "STRING"):
            case "NUMBER":
                try:
                    found[entry["key"]] = float(value)
                except ValueError:
                    logger.info("strategy %s: the event's metadata %r is no number", strategy.id, entry["key"])
            case "STRINGLIST":
                found[entry["key"]] = [value]
            case _:
                found[entry["key"]] = value
    return found
