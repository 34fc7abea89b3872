"""Conditions with parts left open: what they can be at most, and at least, whatever those parts turn out to be.

For listing tools, a tool's arguments are not known yet: a permit that could apply to some arguments counts, a forbid
that need not apply to all of them does not. For findings, nothing of the request is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from agentkeep.gateway.policy.language import Policy, mentions

__all__ = ["at_least", "at_most", "depends_on_arguments", "depends_on_request"]

Open = Callable[[Any], bool]

_TRUE: Final = {"Value": True}
_FALSE: Final = {"Value": False}


def at_most(policy: Policy, is_open: Open) -> Mapping[str, Any]:
    """A policy that applies wherever `policy` applies for any values of the open parts."""
    return _rewritten(policy, is_open, True)


def at_least(policy: Policy, is_open: Open) -> Mapping[str, Any]:
    """A policy that applies only where `policy` applies whatever the open parts are."""
    return _rewritten(policy, is_open, False)


def depends_on_arguments(node: Any) -> bool:
    """Open until a tool is called: everything of the context but the time."""
    return mentions(node, "context", but="system")


def depends_on_request(node: Any) -> bool:
    return any(mentions(node, variable) for variable in ("principal", "action", "resource", "context"))


def _rewritten(policy: Policy, is_open: Open, most: bool) -> Mapping[str, Any]:
    conditions = [{"kind": "when", "body": _bound(body, is_open, most)} for body in policy.conditions]
    return {**policy.node, "conditions": conditions}


def _bound(node: Any, is_open: Open, most: bool) -> Any:
    """The condition's upper bound (`most`) or lower bound."""
    if not is_open(node):
        return node
    match node:
        case {"&&": {"left": left, "right": right}}:
            return {"&&": {"left": _bound(left, is_open, most), "right": _bound(right, is_open, most)}}
        case {"||": {"left": left, "right": right}}:
            return {"||": {"left": _bound(left, is_open, most), "right": _bound(right, is_open, most)}}
        case {"!": {"arg": arg}}:
            return {"!": {"arg": _bound(arg, is_open, not most)}}
        case {"if-then-else": {"if": test, "then": then, "else": otherwise}} if not is_open(test):
            yes, no = _bound(then, is_open, most), _bound(otherwise, is_open, most)
            return {"if-then-else": {"if": test, "then": yes, "else": no}}
    return _TRUE if most else _FALSE
