"""What a strategy asks for: which kind of records, and what it changes of the steps that make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from agentkeep.memory.strategies import Strategy, StrategyType

__all__ = ["Kind", "Step", "extracted", "kind_of", "step"]


class Kind(StrEnum):
    FACTS = "facts"
    PREFERENCES = "preferences"
    SUMMARY = "summary"


_BUILT_IN: Final = {
    StrategyType.SEMANTIC: Kind.FACTS,
    StrategyType.USER_PREFERENCE: Kind.PREFERENCES,
    StrategyType.SUMMARIZATION: Kind.SUMMARY,
}
_OVERRIDDEN: Final = {
    "SEMANTIC_OVERRIDE": Kind.FACTS,
    "USER_PREFERENCE_OVERRIDE": Kind.PREFERENCES,
    "SUMMARY_OVERRIDE": Kind.SUMMARY,
}


@dataclass(frozen=True, slots=True)
class Step:
    """What an override says of a step; nothing, where it is the built-in one."""

    append_to_prompt: str = ""
    model_id: str = ""


def kind_of(strategy: Strategy) -> Kind | None:
    """None: nothing is extracted for it. Episodic strategies are declared and kept, and not extracted yet; for
    self-managed ones, and custom ones without a configuration, records are their owner's business."""
    if strategy.type is StrategyType.CUSTOM:
        return _OVERRIDDEN.get((strategy.configuration or {}).get("type", ""))
    return _BUILT_IN.get(strategy.type)


def extracted(strategies: Sequence[Strategy]) -> Sequence[Strategy]:
    """Those for which records are made of events."""
    return [strategy for strategy in strategies if kind_of(strategy) is not None]


def step(strategy: Strategy, name: str) -> Step:
    """`name`: `extraction` or `consolidation`."""
    wrapped: dict[str, Any] = (strategy.configuration or {}).get(name, {})
    for inner in wrapped.values():
        for settings in inner.values():
            return Step(settings.get("appendToPrompt", ""), settings.get("modelId", ""))
    return Step()
