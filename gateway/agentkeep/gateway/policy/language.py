"""Cedar policies as nodes: one statement is one policy, read once, in Cedar's JSON format.

Source: the Cedar policy language's JSON policy format (docs.cedarpolicy.com/policies/json-format.html).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import cedarpy

from agentkeep.core.errors import FieldError, ValidationException

__all__ = ["ACTION", "GATEWAY", "IAM_ENTITY", "OAUTH_USER", "Policy", "mentions", "parse", "policy_set", "uses_tags"]

OAUTH_USER: Final = "AgentCore::OAuthUser"
IAM_ENTITY: Final = "AgentCore::IamEntity"
ACTION: Final = "AgentCore::Action"
GATEWAY: Final = "AgentCore::Gateway"

#: How deep a policy's expressions may nest; `a && b && c` nests by one for each `&&`.
_DEEPEST: Final = 100
_NODES_A_LEVEL: Final = 2  # of JSON: the operator's object and its operands'
_TEXT: Final = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n\r]*', re.DOTALL)  # string literals and comments
_BRACKET: Final = re.compile(r"[(\[{}\])]")

Node = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """`node` is its JSON form: effect, principal, action, resource, conditions."""

    node: Node

    @property
    def permits(self) -> bool:
        return bool(self.node["effect"] == "permit")

    def entities(self, scope: str) -> list[tuple[str, str]] | None:
        """(type, id) of what `scope` ("principal", "action", "resource") is limited to, by == or in; None where it is
        not limited to named ones."""
        constraint = self.node[scope]
        if constraint["op"] not in ("==", "in"):
            return None
        named = constraint["entities"] if "entities" in constraint else [constraint["entity"]]
        return [_uid(entity) for entity in named]

    @property
    def of_gateways(self) -> bool:
        """Whether its resource can be a gateway at all."""
        constraint = self.node["resource"]
        return bool(constraint["op"] != "is" or constraint["entity_type"] == GATEWAY)

    @property
    def conditions(self) -> list[Any]:
        """The expressions of its `when` clauses, and of its `unless` clauses negated: it applies where all are true."""
        return [
            clause["body"] if clause["kind"] == "when" else {"!": {"arg": clause["body"]}}
            for clause in self.node["conditions"]
        ]


@lru_cache(maxsize=4096)
def parse(statement: str) -> Policy:
    """Raises ValidationException: not Cedar, not exactly one policy, a template, nested too deeply."""
    if _brackets(statement) > _DEEPEST:
        raise _too_deep()
    try:
        document = json.loads(cedarpy.policies_to_json_str(statement))
    except ValueError as error:
        raise _refused(f"is not a Cedar policy: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    if document["templates"]:
        raise _refused("has slots (?principal, ?resource): templates are not supported; name the entity")
    policies = list(document["staticPolicies"].values())
    if len(policies) != 1:
        raise _refused(f"holds {len(policies)} policies; make each with a call of its own")
    if _depth(policies[0]["conditions"]) > _DEEPEST * _NODES_A_LEVEL:
        raise _too_deep()
    return Policy(policies[0])


def policy_set(policies: Mapping[str, Node]) -> cedarpy.PolicySet:
    """Prepared for evaluation, by policy id."""
    document = {"staticPolicies": dict(policies), "templates": {}, "templateLinks": []}
    return cedarpy.PolicySet.from_json_str(json.dumps(document))


def mentions(node: Any, variable: str, but: str | None = None) -> bool:
    """Whether the expression uses a variable (`context`) other than for its attribute `but`."""
    # An expression is an object with one member, its operator; so a record's attribute names are never taken for one.
    if isinstance(node, list):
        return any(mentions(child, variable, but) for child in node)
    if not isinstance(node, dict):
        return False
    ((operator, operand),) = node.items()
    if operator == "Value":
        return False
    if operator == "Var":
        return bool(operand == variable)
    if operator == "." and operand["attr"] == but and operand["left"] == {"Var": variable}:
        return False
    children = operand.values() if isinstance(operand, dict) else operand
    return not isinstance(children, str) and any(mentions(child, variable, but) for child in children)


def uses_tags(node: Any) -> bool:
    """Whether the expression looks at tags; said of one too many rather than too few."""
    if isinstance(node, dict):
        return any(name in ("hasTag", "getTag") or uses_tags(child) for name, child in node.items())
    return isinstance(node, list) and any(uses_tags(child) for child in node)


def _uid(entity: Mapping[str, Any]) -> tuple[str, str]:
    entity = entity.get("__entity", entity)
    return entity["type"], entity["id"]


def _depth(node: Any) -> int:
    """Without recursion: it decides whether recursion is safe."""
    deepest, level = 0, [node]
    while level:
        deepest += 1
        level = [child for one in level for child in _children(one)]
    return deepest


def _brackets(statement: str) -> int:
    """How deep its brackets nest. Asked before Cedar reads it: its parser recurses for each, and a thousand of them
    overflow the stack, which would end the process."""
    deepest = depth = 0
    for character in _BRACKET.findall(_TEXT.sub("", statement)):
        depth = depth + 1 if character in "([{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.values()
    elif isinstance(node, list):
        yield from node


def _too_deep() -> ValidationException:
    return _refused(f"nests more than {_DEEPEST} expressions; split it into several policies")


def _refused(message: str) -> ValidationException:
    return ValidationException(
        f"The policy statement {message}", fields=[FieldError("definition.cedar.statement", message)]
    )
