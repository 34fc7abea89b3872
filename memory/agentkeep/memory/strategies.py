"""Memory strategies: what is to be extracted from events into long-term records, as declared.

Their steps (prompts, models, schemas, triggers) are kept in the shape GetMemory shows them in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from agentkeep.core.errors import FieldError, ResourceNotFoundException, ValidationException
from agentkeep.core.identifiers import resource_id

__all__ = ["Strategy", "StrategyType", "change", "declare"]

Shape = dict[str, Any]


class StrategyType(StrEnum):
    SEMANTIC = "SEMANTIC"
    SUMMARIZATION = "SUMMARIZATION"
    USER_PREFERENCE = "USER_PREFERENCE"
    EPISODIC = "EPISODIC"
    CUSTOM = "CUSTOM"


_TYPES: Final = {
    "semanticMemoryStrategy": StrategyType.SEMANTIC,
    "summaryMemoryStrategy": StrategyType.SUMMARIZATION,
    "userPreferenceMemoryStrategy": StrategyType.USER_PREFERENCE,
    "episodicMemoryStrategy": StrategyType.EPISODIC,
    "customMemoryStrategy": StrategyType.CUSTOM,
}

_BY_ACTOR: Final = "/strategies/{memoryStrategyId}/actors/{actorId}/"
_BY_SESSION: Final = _BY_ACTOR + "sessions/{sessionId}/"
#: Source: the SDK's memory/constants.py.
_DEFAULT_NAMESPACES: Final = {
    StrategyType.SEMANTIC: _BY_ACTOR,
    StrategyType.SUMMARIZATION: _BY_SESSION,
    StrategyType.USER_PREFERENCE: _BY_ACTOR,
    StrategyType.EPISODIC: _BY_SESSION,
    StrategyType.CUSTOM: "/custom/{actorId}/{sessionId}/",
}
_BUILT_IN_VARIABLES: Final = frozenset({"actorId", "sessionId", "memoryStrategyId"})

#: A custom strategy's override in the request -> its type, and the stem of its steps' names in the answer.
_OVERRIDES: Final = {
    "semanticOverride": ("SEMANTIC_OVERRIDE", "semantic"),
    "summaryOverride": ("SUMMARY_OVERRIDE", "summary"),
    "userPreferenceOverride": ("USER_PREFERENCE_OVERRIDE", "userPreference"),
    "episodicOverride": ("EPISODIC_OVERRIDE", "episodic"),
}
_STEPS: Final = ("extraction", "consolidation", "reflection")

#: What applies where a self-managed strategy says nothing. The service documents that there are defaults, and of the
#: history that it is 4; the triggers' values are our choice.
_DEFAULT_TRIGGERS: Final = (
    {"messageBasedTrigger": {"messageCount": 6}},
    {"tokenBasedTrigger": {"tokenCount": 5000}},
    {"timeBasedTrigger": {"idleSessionTimeout": 20}},
)
_DEFAULT_HISTORY: Final = 4


@dataclass(frozen=True, slots=True)
class Strategy:
    """`namespaces`: templates, normalised to begin and end with a slash. `configuration` and `record_schema`: the
    service model's StrategyConfiguration and MemoryRecordSchema."""

    id: str
    name: str
    type: StrategyType
    namespaces: tuple[str, ...]
    created_ms: int
    updated_ms: int
    description: str | None = None
    configuration: Mapping[str, Any] | None = None
    record_schema: Mapping[str, Any] | None = None
    record_expiry_days: int | None = None


def declare(
    declared: Mapping[str, Any], field: str, existing: Iterable[Strategy], variables: Iterable[str], now_ms: int
) -> Strategy:
    """A new strategy from a request's MemoryStrategyInput. `variables`: the memory's own namespace keys."""
    ((kind, given),) = declared.items()
    name = given["name"]
    if any(strategy.name == name for strategy in existing):
        raise _invalid(f"{field}.{kind}.name", f"strategy {name} already exists in this memory")
    type_ = _TYPES[kind]
    namespaces = _namespaces(given, f"{field}.{kind}", variables) or (_DEFAULT_NAMESPACES[type_],)
    configuration: Shape | None = None
    if type_ is StrategyType.CUSTOM:
        configuration = _custom(given.get("configuration"), f"{field}.{kind}.configuration", variables)
    elif type_ is StrategyType.EPISODIC:
        reflection = given.get("reflectionConfiguration", {})
        configuration = {
            "reflection": {
                "episodicReflectionConfiguration": _with_namespaces(
                    reflection, f"{field}.{kind}.reflectionConfiguration", variables, default=_BY_ACTOR
                )
            }
        }
    return Strategy(
        resource_id(name),
        name,
        type_,
        namespaces,
        now_ms,
        now_ms,
        given.get("description"),
        configuration,
        given.get("memoryRecordSchema"),
        given.get("recordExpirySpecification", {}).get("recordExpiryDurationDays"),
    )


def change(
    strategies: Sequence[Strategy], modified: Mapping[str, Any], field: str, variables: Iterable[str], now_ms: int
) -> list[Strategy]:
    """The strategies with one changed as a request's ModifyMemoryStrategyInput says."""
    index = next((i for i, one in enumerate(strategies) if one.id == modified["memoryStrategyId"]), None)
    if index is None:
        raise ResourceNotFoundException(f"Strategy {modified['memoryStrategyId']} not found in this memory")
    strategy = strategies[index]
    expiry = strategy.record_expiry_days
    if "recordExpirySpecification" in modified:
        expiry = modified["recordExpirySpecification"].get("recordExpiryDurationDays")  # action REMOVE: none
    configuration = strategy.configuration
    if "configuration" in modified:
        configuration = _changed(strategy, modified["configuration"], f"{field}.configuration", variables)
    changed = replace(
        strategy,
        description=modified.get("description", strategy.description),
        namespaces=_namespaces(modified, field, variables) or strategy.namespaces,
        configuration=configuration,
        record_schema=modified.get("memoryRecordSchema", strategy.record_schema),
        record_expiry_days=expiry,
        updated_ms=now_ms,
    )
    return [*strategies[:index], changed, *strategies[index + 1 :]]


def _custom(given: Mapping[str, Any] | None, field: str, variables: Iterable[str]) -> Shape | None:
    if given is None:
        return None
    ((kind, override),) = given.items()
    if kind == "selfManagedConfiguration":
        return {
            "type": "SELF_MANAGED",
            "selfManagedConfiguration": {
                "triggerConditions": list(_DEFAULT_TRIGGERS),
                "historicalContextWindowSize": _DEFAULT_HISTORY,
                **override,
            },
        }
    type_, stem = _OVERRIDES[kind]
    configuration: Shape = {"type": type_}
    for step in _STEPS:
        if step in override:
            settings = override[step]
            if step == "reflection":
                settings = _with_namespaces(settings, f"{field}.{kind}.{step}", variables, default=_BY_ACTOR)
            configuration[step] = {
                f"custom{step.capitalize()}Configuration": {f"{stem}{step.capitalize()}Override": settings}
            }
    return configuration


def _changed(strategy: Strategy, given: Mapping[str, Any], field: str, variables: Iterable[str]) -> Shape:
    """Each step given replaces that step; the rest stays."""
    configuration = dict(strategy.configuration or {})
    managed = given.get("selfManagedConfiguration")
    if managed is not None:
        if configuration.get("type") != "SELF_MANAGED":
            raise _invalid(f"{field}.selfManagedConfiguration", f"strategy {strategy.id} is not self-managed")
        before = configuration["selfManagedConfiguration"]
        invocation = {**before["invocationConfiguration"], **managed.get("invocationConfiguration", {})}
        configuration["selfManagedConfiguration"] = {**before, **managed, "invocationConfiguration": invocation}
    for step in _STEPS:
        if step not in given:
            continue
        ((wrapper, inner),) = given[step].items()
        if wrapper == "episodicReflectionConfiguration":
            if strategy.type is not StrategyType.EPISODIC:
                raise _invalid(f"{field}.{step}.{wrapper}", f"strategy {strategy.id} is not episodic")
            inner = _with_namespaces(inner, f"{field}.{step}.{wrapper}", variables, default=_BY_ACTOR)
        else:
            ((override, settings),) = inner.items()
            stem = next((stem for type_, stem in _OVERRIDES.values() if type_ == configuration.get("type")), None)
            if override != f"{stem}{step.capitalize()}Override":
                raise _invalid(
                    f"{field}.{step}.{wrapper}.{override}",
                    f"does not fit strategy {strategy.id}, whose configuration is "
                    f"{configuration.get('type', 'built in')}",
                )
            if step == "reflection":
                settings = _with_namespaces(settings, f"{field}.{step}.{wrapper}", variables, default=_BY_ACTOR)
            inner = {override: settings}
        configuration[step] = {wrapper: inner}
    return configuration


def _with_namespaces(given: Mapping[str, Any], field: str, variables: Iterable[str], default: str) -> Shape:
    """A reflection's settings with its namespaces under both names, as they are answered."""
    namespaces = list(_namespaces(given, field, variables) or (default,))
    return {**given, "namespaces": namespaces, "namespaceTemplates": namespaces}


def _namespaces(given: Mapping[str, Any], field: str, variables: Iterable[str]) -> tuple[str, ...] | None:
    """Either member's templates, normalised; None where neither is given."""
    name = "namespaceTemplates" if "namespaceTemplates" in given else "namespaces"
    templates = given.get(name)
    if templates is None:
        return None
    if "namespaces" in given and given["namespaces"] != templates:
        raise _invalid(f"{field}.namespaces", "differs from namespaceTemplates: give one of them")
    known = _BUILT_IN_VARIABLES.union(variables)
    for index, template in enumerate(templates):
        for variable in re.findall(r"\{([^}]*)\}", template):
            if variable not in known:
                raise _invalid(
                    f"{field}.{name}.{index}",
                    f"unknown variable {{{variable}}}: there are {', '.join(sorted(known))}",
                )
    return tuple(f"/{template.strip('/')}/" if template.strip("/") else "/" for template in templates)


def _invalid(field: str, message: str) -> ValidationException:
    return ValidationException(f"{field}: {message}", fields=[FieldError(field, message)])
