"""How long records of a category are kept. A category is a strategy's records, or those of a namespace and beneath.

Strategies say it with their recordExpirySpecification, which AgentCore lets begin at 31 days; the tag agentkeep:expiry:
of the memory says it for any category, and of any length. Nobody who writes a record can have it kept for longer.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentkeep.memory.strategies import Strategy
from agentkeep.memory.tags import expiries

__all__ = ["limited"]


def limited(days: int | None, tags: Mapping[str, str], strategy: Strategy | None, namespace: str | None) -> int | None:
    """The days a record is kept from when it is written: those that are asked for, or fewer. None: for ever."""
    limits = [most for category, most in expiries(tags).items() if _is_of(category, strategy, namespace)]
    return min([*limits, *((days,) if days is not None else ())], default=None)


def _is_of(category: str, strategy: Strategy | None, namespace: str | None) -> bool:
    if category.startswith("/"):
        return namespace is not None and namespace.startswith(category)
    return strategy is not None and strategy.name == category
