"""The Cedar schema of a gateway: who may ask for what, and what its tools' arguments look like.

Source: AgentCore's policy scope and schema constraints. Action groups: `Mcp` holds `CallTool`, that every target, that
its tools.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import cedarpy

from agentkeep.gateway.policy.arguments import NULL, declared
from agentkeep.gateway.records import TargetRecord, Tool

__all__ = ["ALL_TOOLS", "RESERVED_TARGET_NAMES", "SEPARATOR", "action_groups", "schema_of"]

SEPARATOR: Final = "___"
ALL_TOOLS: Final = ("CallTool", "Mcp")
#: A target of such a name would be the group of all tools.
RESERVED_TARGET_NAMES: Final = frozenset(ALL_TOOLS)

#: Stands for any tool where a gateway has none yet, so that policies about all tools can be checked.
_ANY_TOOL: Final = ("any", Tool("tool", "", {"type": "object"}))


def action_groups(target: str) -> tuple[str, ...]:
    """The groups a target's tools are in."""
    return (target, *ALL_TOOLS)


def schema_of(targets: Sequence[TargetRecord]) -> cedarpy.Schema:
    """Raises ValueError where Cedar cannot hold it (it is larger than anything Cedar takes, say)."""
    tools = [(target.name, tool) for target in targets for tool in target.tools] or [_ANY_TOOL]
    return cedarpy.Schema.from_json_str(json.dumps(_document(tools)))


def _document(tools: Iterable[tuple[str, Tool]]) -> Mapping[str, Any]:
    actions: dict[str, Any] = {"Mcp": {}, "CallTool": {"memberOf": [{"id": "Mcp"}]}}
    for target, tool in tools:
        actions[target] = {"memberOf": [{"id": "CallTool"}]}
        actions[f"{target}{SEPARATOR}{tool.name}"] = {
            "memberOf": [{"id": target}],
            "appliesTo": {
                "principalTypes": ["OAuthUser", "IamEntity"],
                "resourceTypes": ["Gateway"],
                "context": {"type": "Record", "attributes": _context(tool)},
            },
        }
    identified = {"type": "Record", "attributes": {"id": {"type": "String"}}}
    return {
        "AgentCore": {
            "entityTypes": {
                "OAuthUser": {"shape": identified, "tags": {"type": "String"}},
                "IamEntity": {"shape": identified},
                "Gateway": {},
                NULL.rpartition("::")[2]: {},
            },
            "actions": actions,
        }
    }


def _context(tool: Tool) -> Mapping[str, Any]:
    arguments = declared({**tool.input_schema, "type": "object"})
    now = {"now": {"type": "Extension", "name": "datetime"}}
    return {"input": arguments, "system": {"type": "Record", "attributes": now}}
