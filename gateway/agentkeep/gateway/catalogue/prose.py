"""Cedar policies in plain English, for reviewers who read no code (GOV-6).

Nothing is guessed: an expression there are no words for is shown as it is written. Source: the Cedar policy language's
JSON policy format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from agentkeep.gateway.policy.language import ACTION, IAM_ENTITY, OAUTH_USER, Policy
from agentkeep.gateway.policy.principals import AGENT_TAG, ISSUER_TAG, SESSION_TAG
from agentkeep.gateway.policy.schema import action_groups

__all__ = ["applies", "sentence"]

_COMPARISONS: Final = {
    "==": "is", "!=": "is not", "<": "is less than", "<=": "is at most", ">": "is more than", ">=": "is at least",
    "in": "is in",
}  # fmt: skip
_CALLS: Final = {
    "lessThan": "is less than", "lessThanOrEqual": "is at most", "greaterThan": "is more than",
    "greaterThanOrEqual": "is at least",
}  # fmt: skip
_SETS: Final = {"contains": "contains", "containsAll": "contains all of", "containsAny": "contains any of"}
_TAGS: Final = {AGENT_TAG: "the agent", SESSION_TAG: "the session", ISSUER_TAG: "the user's identity provider"}
_VARIABLES: Final = {"principal": "the caller", "resource": "the gateway", "action": "the tool"}
_GROUPS: Final = frozenset({"CallTool", "Mcp"})


def applies(policy: Policy, gateway_arn: str, target: str, name: str) -> bool:
    """Whether the policy can have a say in calls of the tool `name` (with its target's)."""
    resources = policy.entities("resource")
    if not policy.of_gateways or (resources is not None and all(id != gateway_arn for _, id in resources)):
        return False
    actions = policy.entities("action")
    return actions is None or any(id in (name, *action_groups(target)) for _, id in actions)


def sentence(policy: Policy) -> str:
    """`Allows user alice to call Orders___refund, if the argument amount is at most 100.`"""
    effect = "Allows" if policy.permits else "Forbids"
    conditions = [_words(condition) for condition in policy.conditions]
    only = f", if {' and '.join(conditions)}" if conditions else ""
    return f"{effect} {_principal(policy.node['principal'])} to call {_actions(policy)}{only}."


def _principal(constraint: Mapping[str, Any]) -> str:
    match constraint["op"]:
        case "All":
            return "everybody"
        case "is":
            kinds = {OAUTH_USER: "every signed-in user", IAM_ENTITY: "every operator"}
            said = kinds.get(constraint["entity_type"], f"every {constraint['entity_type']}")
            return f"{said} in {_entity(constraint['in']['entity'])}" if "in" in constraint else said
        case "==":
            return _entity(constraint["entity"])
        case _:
            return f"members of {_entity(constraint['entity'])}"


def _actions(policy: Policy) -> str:
    actions = policy.entities("action")
    if actions is None:
        return "any tool"
    said = [
        "any tool" if id in _GROUPS else id if "___" in id else f"any tool of {id}"
        for kind, id in actions
        if kind == ACTION
    ]
    return " or ".join(said)


def _entity(entity: Mapping[str, Any]) -> str:
    entity = entity.get("__entity", entity)
    kinds = {OAUTH_USER: "user", IAM_ENTITY: "operator"}
    return f"{kinds.get(entity['type'], entity['type'])} {entity['id']}"


def _words(node: Mapping[str, Any]) -> str:
    ((operator, operand),) = node.items()
    match operator:
        case "&&" | "||":
            return f"{_operand(operand['left'], operator)} {_joint(operator)} {_operand(operand['right'], operator)}"
        case "!":
            return f"it is not so that {_operand(operand['arg'], '!')}"
        case "has":
            return f"{_term(operand['left'])} has {operand['attr']}"
        case "hasTag" if operand["right"].get("Value") in (AGENT_TAG, SESSION_TAG):
            return "an agent calls"
        case "hasTag":
            return f"the user's token has a claim {_term(operand['right'])}"
        case "like":
            pattern = "".join("*" if part == "Wildcard" else part["Literal"] for part in operand["pattern"])
            return f"{_term(operand['left'])} looks like {json.dumps(pattern)}"
        case "is":
            return f"{_term(operand['left'])} is a {operand['entity_type']}"
        case _ if operator in _COMPARISONS:
            return f"{_term(operand['left'])} {_COMPARISONS[operator]} {_term(operand['right'])}"
        case _ if operator in _SETS:
            if operator == "contains" and "Set" in operand["left"]:
                return f"{_term(operand['right'])} is one of {_term(operand['left'])}"
            return f"{_term(operand['left'])} {_SETS[operator]} {_term(operand['right'])}"
        case _ if operator in _CALLS and isinstance(operand, list) and len(operand) == 2:
            return f"{_term(operand[0])} {_CALLS[operator]} {_term(operand[1])}"
        case _:
            return _term(node)


def _joint(operator: str) -> str:
    return "and" if operator == "&&" else "or"


def _operand(node: Mapping[str, Any], within: str) -> str:
    """In brackets where leaving them out would change what is said."""
    (operator,) = node
    words = _words(node)
    return f"({words})" if operator in ("&&", "||", "if-then-else") and operator != within else words


def _term(node: Mapping[str, Any]) -> str:
    ((operator, operand),) = node.items()
    match operator:
        case "Var":
            return _VARIABLES.get(operand, str(operand))
        case "Value":
            return _value(operand)
        case "Set":
            return f"[{', '.join(_term(one) for one in operand)}]"
        case "decimal" | "datetime" | "duration" | "ip":
            return _term(operand[0])
        case "getTag":
            tag = operand["right"].get("Value")
            return _TAGS.get(tag, f"the user's claim {_term(operand['right'])}")
        case ".":
            return _attribute(operand)
        case _:
            return f"«{json.dumps(node)}»"


def _value(value: Any) -> str:
    if isinstance(value, dict) and ("__entity" in value or "type" in value):
        return _entity(value)
    return json.dumps(value, ensure_ascii=False)


def _attribute(operand: Mapping[str, Any]) -> str:
    path = [operand["attr"]]
    node = operand["left"]
    while "." in node:
        path.insert(0, node["."]["attr"])
        node = node["."]["left"]
    match node, path:
        case {"Var": "context"}, ["input", *rest]:
            return f"the argument {'.'.join(rest)}" if rest else "the call"
        case {"Var": "context"}, ["system", "now"]:
            return "the time"
        case {"Var": "principal"}, ["id"]:
            return "the user's id"
        case _:
            return f"{_term(node)}.{'.'.join(path)}"
