"""Checks of a policy before it counts: that it is Cedar, that it fits the tools it speaks of, that it does not say
everything or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import cedarpy

from agentkeep.gateway.policy.approximation import at_least, depends_on_request
from agentkeep.gateway.policy.language import ACTION, GATEWAY, OAUTH_USER, Policy, parse, policy_set
from agentkeep.gateway.policy.schema import ALL_TOOLS, schema_of
from agentkeep.gateway.records import TargetRecord

__all__ = ["findings"]

_MOST: Final = 10  # findings that are told of
_PARSERS_NAME: Final = "for policy `policy0`, "  # nobody else knows the policy by it


async def findings(
    statement: str, gateways: Mapping[str, Sequence[TargetRecord]], attached: Sequence[str], semantic: bool
) -> list[str]:
    """What is wrong with a policy, empty where nothing is.

    `gateways`: the targets of every gateway there is, by ARN; `attached`: those the policy's engine decides for, for
    policies that name no gateway. `semantic`: also whether it permits or forbids everything. Raises
    ValidationException where the statement is not one Cedar policy.
    """
    policy = parse(statement)
    if faults := _scope(policy, gateways):
        return faults
    named = policy.entities("resource")
    schemas = [gateways[arn] for _, arn in named] if named is not None else [gateways[arn] for arn in attached]
    found: dict[str, None] = {}
    for targets in schemas or [()]:
        found |= dict.fromkeys(await asyncio.to_thread(_schema_errors, statement, targets))
    if not found and semantic:
        found |= dict.fromkeys(_semantic(policy))
    return list(found)[:_MOST]


def _scope(policy: Policy, gateways: Mapping[str, Sequence[TargetRecord]]) -> list[str]:
    named = policy.entities("resource")
    if named is None:
        actions = policy.entities("action") or []
        if specific := sorted(id for kind, id in actions if kind == ACTION and id not in ALL_TOOLS):
            return [
                f"The policy names {', '.join(specific)} without the gateway that has it: write "
                f'resource == {GATEWAY}::"<gateway ARN>"'
            ]
        return []
    return [
        f"The policy is about {kind}::{id!r}, which is no gateway of this deployment"
        for kind, id in named
        if kind != GATEWAY or id not in gateways
    ]


def _schema_errors(statement: str, targets: Sequence[TargetRecord]) -> list[str]:
    try:
        result = cedarpy.validate_policies(statement, schema_of(targets), release_gil=True)
    except ValueError as error:
        return [f"The tools of the gateway make no schema for Cedar: {error}"]
    if result.validation_passed:
        return []
    return [error.error.removeprefix(_PARSERS_NAME) for error in result.errors] or ["The policy is not valid"]


def _semantic(policy: Policy) -> list[str]:
    """Whether the policy applies to every request of a kind: Cedar is asked about one of which it knows nothing."""
    if (policy.entities("principal") is not None) or not _of_all_tools(policy):
        return []
    certain = {**at_least(policy, depends_on_request), "effect": "permit"}
    for scope in ("principal", "action", "resource"):
        certain[scope] = {"op": "All"}
    request = {
        "principal": {"type": OAUTH_USER, "id": ""},
        "action": {"type": ACTION, "id": ""},
        "resource": {"type": GATEWAY, "id": ""},
        "context": {},
    }
    if not cedarpy.is_authorized(request, policy_set({"certain": certain}), "[]").allowed:
        return []
    who = policy.node["principal"].get("entity_type", "any principal")
    kind, verb = ("Overly Permissive", "allow") if policy.permits else ("Overly Restrictive", "deny")
    return [
        f"{kind}: Policy Engine will {verb} every request for the specified principal ({who}), action (every tool) and "
        "resource combination if the policy is added or updated"
    ]


def _of_all_tools(policy: Policy) -> bool:
    actions = policy.entities("action")
    return actions is None or any(kind == ACTION and id in ALL_TOOLS for kind, id in actions)
