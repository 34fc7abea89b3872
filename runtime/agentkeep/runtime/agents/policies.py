"""Resource policies: who may invoke an agent runtime or one of its endpoints.

A policy that is stored is enforced. What cannot be evaluated here (conditions, negations) is refused when it is put,
never ignored. Rules: developer guide, "resource-based-policies".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from agentkeep.core.errors import ConditionFailed, ResourceNotFoundException, ValidationException
from agentkeep.core.json_documents import parse_json
from agentkeep.core.policies import Policy, Statement, statements, texts
from agentkeep.runtime.agents.catalogue import POLICIES
from agentkeep.storage.interface import PRESENT, Delete, KeyValueStore, Put

__all__ = ["Policies", "parse_policy"]

_MEMBERS: Final = frozenset({"Sid", "Effect", "Principal", "Action", "Resource"})
_PREFIX: Final = "bedrock-agentcore:"


def parse_policy(text: str, resource: str, *, jwt: bool) -> Policy:
    """`resource`: the ARN the policy is attached to; `jwt`: its callers prove themselves by tokens.

    Raises ValidationException saying what is wrong or cannot be enforced.
    """
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValidationException(f"The policy is not JSON: {error}") from None
    return Policy(tuple(_statement(s, index, resource, jwt) for index, s in enumerate(statements(document), 1)))


def _statement(statement: Any, index: int, resource: str, jwt: bool) -> Statement:
    def fault(text: str) -> ValidationException:
        return ValidationException(f"Statement {index} of the policy: {text}")

    if not isinstance(statement, dict):
        raise fault("is not an object.")
    if unknown := statement.keys() - _MEMBERS:
        raise fault(
            f"{', '.join(sorted(map(str, unknown)))} cannot be evaluated here, so the policy is refused rather than "
            "enforced in part."
        )
    if statement.get("Effect") not in ("Allow", "Deny"):
        raise fault('"Effect" must be "Allow" or "Deny".')
    actions = texts(statement.get("Action"))
    if not actions or not all(a == "*" or a.lower().startswith(_PREFIX) for a in actions):
        raise fault(f'"Action" must name actions of the service ({_PREFIX}InvokeAgentRuntime).')
    if any("[" in action for action in actions):
        raise fault('"Action" may hold the wildcards * and ? only.')
    resources = texts(statement.get("Resource"))
    if not resources or any(_plain(name) != resource for name in resources):
        raise fault(f'"Resource" must be exactly the resource\'s ARN, {resource}.')
    principals = _principals(statement.get("Principal"))
    if not principals:
        raise fault('"Principal" must be "*" or {"AWS": ...} with ARNs or account ids.')
    if jwt and principals != {"*"}:
        raise fault('"Principal" must be "*": callers of this resource prove themselves by tokens, not as principals.')
    lowered = tuple(action.lower() for action in actions)
    return Statement(statement["Effect"] == "Allow", lowered, principals=principals)


def _principals(principal: Any) -> frozenset[str]:
    if principal == "*":
        return frozenset({"*"})
    if not isinstance(principal, Mapping) or set(principal) != {"AWS"}:
        return frozenset()
    names = texts(principal["AWS"])
    usable = all(name == "*" or re.fullmatch(r"\d{12}|arn:[^*?]+", name) for name in names)
    return frozenset(names) if usable else frozenset()


def _plain(resource: str) -> str:
    """The ARN as the API forms it; the guide writes endpoints as `runtime/ID/endpoint/NAME`."""
    return re.sub(r"(:runtime/[^/]+)/endpoint/", r"\1/runtime-endpoint/", resource)


class Policies:
    """The stored policies, by the ARN of their resource."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    async def put(self, arn: str, text: str, *, jwt: bool) -> None:
        try:
            parse_json(text)
        except ValueError as error:
            raise ValidationException(f"The policy is not JSON as it must be: {error}") from None
        parse_policy(text, arn, jwt=jwt)
        await self._store.transact([Put(POLICIES, arn, text.encode())])

    async def get(self, arn: str) -> str | None:
        """None where the resource has no policy: the SDK's client reads an answer without `policy` as that."""
        raw = await self._store.get(POLICIES, arn)
        return None if raw is None else raw.decode()

    async def delete(self, arn: str) -> None:
        """Raises ResourceNotFoundException."""
        try:
            await self._store.transact([Delete(POLICIES, arn, PRESENT)])
        except ConditionFailed:
            raise ResourceNotFoundException(f"{arn} has no resource policy.") from None

    async def of(self, *arns: str) -> tuple[Policy, ...]:
        """The policies of a runtime and its endpoint, both of which count."""
        found = await self._store.get_many(POLICIES, arns)
        # Checked against `jwt` when they were put; a runtime that became one since is denied by what still applies.
        return tuple(
            parse_policy(raw.decode(), arn, jwt=False) for arn, raw in zip(arns, found, strict=True) if raw is not None
        )
