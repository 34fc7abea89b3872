"""The policies of an engine, prepared for decisions.

A decision looks only at the policies whose scope can match its action and gateway: a set of its own for each, made
when it is first asked for. Leaving out a policy that cannot match changes no decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cedarpy

from agentkeep.gateway.policy.approximation import at_least, at_most, depends_on_arguments
from agentkeep.gateway.policy.language import ACTION, GATEWAY, Policy, mentions, parse, policy_set, uses_tags
from agentkeep.gateway.policy.schema import SEPARATOR, action_groups
from agentkeep.gateway.records import PolicyRecord

__all__ = ["Applicable", "PreparedPolicies"]

_ENFORCED: Final = "ACTIVE"
_KEPT: Final = 4096  # sets of one engine


@dataclass(frozen=True, slots=True)
class Applicable:
    """The policies that can apply to one action at one gateway. `observed`: with those whose enforcement is LOG_ONLY;
    None where there are none. `possible` says what some arguments would make of `enforced`. The flags say what of the
    context they look at, and whether a forbid among the enforced looks at tags."""

    enforced: cedarpy.PolicySet
    observed: cedarpy.PolicySet | None
    possible: cedarpy.PolicySet
    uses_arguments: bool
    uses_time: bool
    forbids_by_tags: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Counted:
    id: str
    enforced: bool
    policy: Policy


class PreparedPolicies:
    """Of one engine at one revision. Raises ValidationException where a stored statement can no longer be read."""

    def __init__(self, policies: Sequence[PolicyRecord]) -> None:
        self._of_any_action: list[_Counted] = []
        self._by_action: dict[tuple[str, str], list[_Counted]] = {}
        self._by_tool: dict[tuple[str, str, str], Applicable] = {}
        self._by_policies: dict[tuple[str, ...], Applicable] = {}
        self.empty = True
        """Whether nothing is enforced: every call is denied, whatever is observed."""
        for record in policies:
            if not record.counts:
                continue
            one = _Counted(record.id, record.enforcement == _ENFORCED, parse(record.statement))
            self.empty = self.empty and not one.enforced
            actions = one.policy.entities("action")
            if actions is None:
                self._of_any_action.append(one)
            for action in set(actions or ()):
                self._by_action.setdefault(action, []).append(one)

    def of(self, gateway_arn: str, target: str, tool: str) -> Applicable:
        key = (gateway_arn, target, tool)
        found = self._by_tool.get(key)
        if found is None:
            if len(self._by_tool) >= _KEPT:
                self._by_tool.clear()
            found = self._by_tool[key] = self._matching(*key)
        return found

    def _matching(self, gateway_arn: str, target: str, tool: str) -> Applicable:
        gateway = (GATEWAY, gateway_arn)
        candidates = {one.id: one for one in self._of_any_action}
        for name in (target + SEPARATOR + tool, *action_groups(target)):
            candidates |= {one.id: one for one in self._by_action.get((ACTION, name), ())}
        matching = {id: one for id, one in sorted(candidates.items()) if _of(one.policy, gateway)}
        key = tuple(matching)
        found = self._by_policies.get(key)
        if found is None:
            if len(self._by_policies) >= _KEPT:
                self._by_policies.clear()
            found = self._by_policies[key] = _prepared(matching)
        return found


def _prepared(matching: Mapping[str, _Counted]) -> Applicable:
    enforced = {id: one.policy for id, one in matching.items() if one.enforced}
    conditions = [condition for one in matching.values() for condition in one.policy.conditions]
    return Applicable(
        policy_set({id: policy.node for id, policy in enforced.items()}),
        policy_set({id: one.policy.node for id, one in matching.items()}) if len(enforced) < len(matching) else None,
        policy_set({id: _possible(policy) for id, policy in enforced.items()}),
        uses_arguments=depends_on_arguments(conditions),
        uses_time=mentions(conditions, "context", but="input"),
        forbids_by_tags=any(not policy.permits and uses_tags(policy.conditions) for policy in enforced.values()),
    )


def _of(policy: Policy, gateway: tuple[str, str]) -> bool:
    named = policy.entities("resource")
    return policy.of_gateways if named is None else gateway in named


def _possible(policy: Policy) -> Mapping[str, Any]:
    approximate = at_most if policy.permits else at_least
    return approximate(policy, depends_on_arguments)
