"""Whether a caller may call a tool: denied unless a policy permits it and none forbids it.

Nothing is allowed by default and nothing by error: without an engine, without policies, without a user, with arguments
that no policy can judge, or where evaluating a single policy fails, the answer is no.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import cedarpy
import orjson

from agentkeep.core.call import Caller
from agentkeep.core.clock import Clock
from agentkeep.gateway.policy.arguments import Undecidable, values
from agentkeep.gateway.policy.language import ACTION, GATEWAY, parse
from agentkeep.gateway.policy.prepared import Applicable, PreparedPolicies
from agentkeep.gateway.policy.principals import entity, is_known_in_full
from agentkeep.gateway.policy.schema import SEPARATOR, action_groups
from agentkeep.gateway.records import GatewayRecord, Resources

__all__ = ["Decision", "PolicyDecisions"]

logger = logging.getLogger(__name__)

_ENGINES: Final = 1000
_PARSED_AT_ONCE: Final = 25
_ENTITIES: Final = 2048
_LARGEST_ENTITY: Final = 8192  # that is kept, bytes

_NO_POLICY: Final = "No policy applies to the request (denied by default)."
_NO_ENGINE: Final = (
    "No policy engine is attached to the gateway (denied by default). Attach one with UpdateGateway's "
    "policyEngineConfiguration."
)
_NO_POLICIES: Final = "The gateway's policy engine has no active policy (denied by default)."
_NO_USER: Final = "The call is made for no user, and no tool is called without one."
_INCOMPLETE: Final = (
    "The user's token says more than is kept for policies, and a policy forbids the call by what tokens say. Have the "
    "token issued with fewer or shorter claims."
)
_FAILED: Final = "The policies could not be evaluated (denied)."


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` may be shown to the caller. `determining`: ids of the policies that decided. `log_only`: the engine is
    attached to observe, so a denial by its policies is recorded and the call goes on. `observed`: what the decision
    would be if policies whose own enforcement is LOG_ONLY counted; None where there are none."""

    allowed: bool
    reason: str
    determining: tuple[str, ...] = ()
    log_only: bool = False
    observed: bool | None = None

    @property
    def blocks(self) -> bool:
        """Whether the call must not be made."""
        return not self.allowed and not self.log_only


class PolicyDecisions:
    def __init__(self, resources: Resources, clock: Clock) -> None:
        self._resources = resources
        self._clock = clock
        self._prepared: dict[str, tuple[str, PreparedPolicies]] = {}
        self._entities: dict[tuple[bytes, str, str], cedarpy.Entities] = {}

    async def decide(
        self,
        gateway: GatewayRecord,
        caller: Caller,
        target: str,
        tool: str,
        arguments: Mapping[str, Any],
        now: datetime | None = None,
    ) -> Decision:
        """For one call. `now`: the time policies see, the clock's by default. Raises StoreUnavailable."""
        principal = entity(caller)
        if principal is None:
            return Decision(False, _NO_USER)
        engine = await self._engine(gateway)
        if isinstance(engine, Decision):
            return engine
        log_only = gateway.policy_mode == "LOG_ONLY"
        if engine.empty:
            return Decision(False, _NO_POLICIES, log_only=log_only)
        try:
            applicable = engine.of(gateway.arn, target, tool)
            schema = await self._schema(gateway, target, tool) if applicable.uses_arguments else {}
            if schema is None:
                return Decision(False, f"The gateway has no tool {target}{SEPARATOR}{tool}.")
            if applicable.forbids_by_tags and not is_known_in_full(caller):
                return Decision(False, _INCOMPLETE, log_only=log_only)
            request = self._request(principal, gateway, target, tool, applicable, now)
            if applicable.uses_arguments:
                request["context"]["input"] = values(arguments, schema)
            entities = self._entities_for(principal, target, tool)
            allowed, reason, determining = _evaluate(request, applicable.enforced, entities)
            observed = None
            if applicable.observed is not None:
                observed = _evaluate(request, applicable.observed, entities)[0]
            return Decision(allowed, reason, determining, log_only, observed)
        except Undecidable as error:
            return Decision(False, f"The call cannot be judged by policy: {error}.", log_only=log_only)
        except Exception:
            # Whatever went wrong, and whoever made it go wrong: it must not become an answer of yes, or a crash.
            name = f"{target}{SEPARATOR}{tool}"
            logger.exception("a policy decision failed: gateway %s, tool %r", gateway.id, name)
            return Decision(False, _FAILED)

    async def visible(self, gateway: GatewayRecord, caller: Caller, tools: Iterable[str]) -> set[str]:
        """Of these tools (`target___tool`) those that the caller could call with some arguments, now. Raises
        StoreUnavailable."""
        principal = entity(caller)
        engine = await self._engine(gateway)
        if principal is None or isinstance(engine, Decision):
            return set()
        if gateway.policy_mode == "LOG_ONLY":
            return set(tools)
        if engine.empty:
            return set()
        in_full = is_known_in_full(caller)
        return {name for name in tools if self._possible(engine, gateway, principal, in_full, name)}

    def _possible(
        self, engine: PreparedPolicies, gateway: GatewayRecord, principal: Mapping[str, Any], in_full: bool, name: str
    ) -> bool:
        target, separator, tool = name.partition(SEPARATOR)
        if not separator:
            return False
        try:
            applicable = engine.of(gateway.arn, target, tool)
            if applicable.forbids_by_tags and not in_full:
                return False
            request = self._request(principal, gateway, target, tool, applicable, None)
            return _evaluate(request, applicable.possible, self._entities_for(principal, target, tool))[0]
        except Exception:
            logger.exception("a tool could not be judged and is not listed: gateway %s, tool %r", gateway.id, name)
            return False

    async def _engine(self, gateway: GatewayRecord) -> PreparedPolicies | Decision:
        """The gateway's engine, prepared; or why there is none."""
        if gateway.policy_engine_id is None:
            return Decision(False, _NO_ENGINE)
        id = gateway.policy_engine_id
        revision, policies = await self._resources.policies(id)
        known = self._prepared.get(id)
        if known is not None and known[0] == revision:
            return known[1]
        if not revision:
            return Decision(False, f"The gateway's policy engine {id} does not exist (denied by default).")
        try:
            for index, policy in enumerate(policies, 1):
                parse(policy.statement)  # remembered
                if not index % _PARSED_AT_ONCE:
                    await asyncio.sleep(0)  # others' calls go on meanwhile
            engine = PreparedPolicies(policies)
        except Exception:
            logger.exception("the policies of engine %s cannot be prepared: every call is denied", id)
            return Decision(False, _FAILED)
        if len(self._prepared) >= _ENGINES:
            self._prepared.clear()
        self._prepared[id] = (revision, engine)
        return engine

    async def _schema(self, gateway: GatewayRecord, target: str, tool: str) -> Mapping[str, Any] | None:
        for one in await self._resources.targets(gateway.id):
            if one.name == target:
                return next((known.input_schema for known in one.tools if known.name == tool), None)
        return None

    def _request(
        self,
        principal: Mapping[str, Any],
        gateway: GatewayRecord,
        target: str,
        tool: str,
        applicable: Applicable,
        now: datetime | None,
    ) -> dict[str, Any]:
        context: dict[str, Any] = {}
        if applicable.uses_time:
            moment = (now or self._clock.now()).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            context["system"] = {"now": {"__extn": {"fn": "datetime", "arg": moment}}}
        return {
            "principal": principal["uid"],
            "action": {"type": ACTION, "id": target + SEPARATOR + tool},
            "resource": {"type": GATEWAY, "id": gateway.arn},
            "context": context,
        }

    def _entities_for(self, principal: Mapping[str, Any], target: str, tool: str) -> cedarpy.Entities:
        who = orjson.dumps(principal)
        key = (who, target, tool)
        found = self._entities.get(key)
        if found is None:
            action = {
                "uid": {"type": ACTION, "id": target + SEPARATOR + tool},
                "attrs": {},
                "parents": [{"type": ACTION, "id": group} for group in action_groups(target)],
            }
            found = cedarpy.Entities.from_json_str(orjson.dumps([principal, action]).decode())
            if len(self._entities) >= _ENTITIES:
                self._entities.clear()
            if len(who) <= _LARGEST_ENTITY:
                self._entities[key] = found
        return found


def _evaluate(
    request: Mapping[str, Any], policies: cedarpy.PolicySet, entities: cedarpy.Entities
) -> tuple[bool, str, tuple[str, ...]]:
    """Allowed, why, by which policies. A policy that fails to evaluate denies: Cedar would leave it out, and a forbid
    left out is a permit."""
    told = {**request, "context": orjson.dumps(request["context"]).decode()}
    answer = cedarpy.is_authorized(told, policies, entities)
    if answer.diagnostics.errors:
        return False, _FAILED, ()
    determining = tuple(sorted(answer.diagnostics.reasons))
    if answer.allowed:
        return True, f"Permitted by {', '.join(determining)}", determining
    if determining:
        return False, f"Policy evaluation denied due to {', '.join(determining)}", determining
    return False, _NO_POLICY, ()
