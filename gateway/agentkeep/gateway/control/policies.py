"""Policies of an engine: written in Cedar, checked against the tools they speak of, and only then counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentkeep.core.call import Idempotency
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    FieldError,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
)
from agentkeep.core.identifiers import LOWER_ALPHANUMERIC, Deployment, resource_id
from agentkeep.gateway.control import layout
from agentkeep.gateway.control.layout import engine_revision, revise
from agentkeep.gateway.control.rules import invalid
from agentkeep.gateway.policy.language import parse
from agentkeep.gateway.policy.validation import findings
from agentkeep.gateway.records import PolicyRecord, TargetRecord
from agentkeep.storage.interface import ABSENT, PRESENT, Check, Delete, KeyValueStore, Once, Put, Write
from agentkeep.storage.records import Stored, all_of, encode, find, page_of, replayed

__all__ = ["Policies"]

_MOST: Final = 1000  # of an engine, the service's quota
_PAGE: Final = 100


class Policies:
    def __init__(self, store: KeyValueStore, deployment: Deployment, clock: Clock) -> None:
        self._store = store
        self._deployment = deployment
        self._clock = clock

    def arn(self, policy: PolicyRecord) -> str:
        return self._deployment.arn(f"policy-engine/{policy.engine_id}/policy/{policy.id}")

    async def create(self, engine_id: str, request: Mapping[str, Any], token: Idempotency | None) -> PolicyRecord:
        """From a CreatePolicyRequest. One that fails its checks is kept, CREATE_FAILED with the reasons, and never
        counts. Raises ValidationException (not a Cedar policy), ResourceNotFoundException (the engine),
        ConflictException (the name is used), ServiceQuotaExceededException."""
        statement = _statement(request["definition"])
        name, now = request["name"], self._clock.now()
        policy_id = resource_id(name, LOWER_ALPHANUMERIC)
        once = Once.of(token, policy_id.encode(), epoch_ms(now))
        if (made := await replayed(self._store, once)) is not None:
            return (await self.stored(engine_id, made.decode())).record
        await self._require(engine_id)
        if len(await self._store.query(layout.policies(engine_id), limit=_MOST)) == _MOST:
            raise ServiceQuotaExceededException(f"Policy engine {engine_id} has {_MOST} policies, the most allowed.")
        reasons = await self._findings(engine_id, statement, request.get("validationMode"))
        policy = PolicyRecord(
            engine_id,
            policy_id,
            name,
            statement,
            request.get("enforcementMode", "ACTIVE"),
            "CREATE_FAILED" if reasons else "ACTIVE",
            now,
            now,
            _document(request["definition"], request.get("description"), reasons),
        )
        writes: list[Write] = [
            Check(layout.ENGINES, engine_id, PRESENT),
            Put(layout.policy_names(engine_id), name, policy_id.encode(), ABSENT),
            Put(layout.policies(engine_id), policy_id, encode(policy), ABSENT),
            revise(engine_revision(engine_id)),
        ]
        try:
            done = await self._store.transact(writes, once)
        except ConditionFailed as failed:
            if failed.index == 0:
                raise _no_engine(engine_id) from None
            raise ConflictException(
                f"Policy engine {engine_id} has a policy named {name} ({(failed.current or b'').decode()}). Update "
                "that one, or choose another name."
            ) from None
        return policy if done is None else (await self.stored(engine_id, done.reference.decode())).record

    async def update(self, engine_id: str, policy_id: str, request: Mapping[str, Any]) -> PolicyRecord:
        """From an UpdatePolicyRequest; what is absent stays. Where a new definition fails its checks, the policy that
        was ACTIVE keeps counting as it was, and its status says UPDATE_FAILED with the reasons."""
        stored = await self.stored(engine_id, policy_id)
        old = stored.record
        definition = request.get("definition", old.document["definition"])
        statement = _statement(definition)
        description = old.document.get("description")
        if "description" in request:
            description = request["description"].get("optionalValue")
        reasons = await self._findings(engine_id, statement, request.get("validationMode"))
        now = self._clock.now()
        if reasons:
            # What decides is never taken away by a change that failed; what never counted stays as it failed.
            failed_status = "UPDATE_FAILED" if old.counts else old.status
            policy: PolicyRecord = stored.but(
                status=failed_status, updated_at=now, document={**old.document, "statusReasons": reasons}
            )
        else:
            policy = stored.but(
                statement=statement,
                enforcement=request.get("enforcementMode", old.enforcement),
                status="ACTIVE",
                updated_at=now,
                document=_document(definition, description, ()),
            )
        try:
            await self._store.transact(
                [
                    Put(layout.policies(engine_id), policy_id, encode(policy), stored.raw),
                    revise(engine_revision(engine_id)),
                ]
            )
        except ConditionFailed:
            raise _busy(policy_id) from None
        return policy

    async def delete(self, engine_id: str, policy_id: str) -> PolicyRecord:
        """Raises ResourceNotFoundException."""
        stored = await self.stored(engine_id, policy_id)
        try:
            await self._store.transact(
                [
                    Delete(layout.policies(engine_id), policy_id, stored.raw),
                    Delete(layout.policy_names(engine_id), stored.record.name),
                    revise(engine_revision(engine_id)),
                ]
            )
        except ConditionFailed:
            raise _busy(policy_id) from None
        return stored.record

    async def stored(self, engine_id: str, policy_id: str) -> Stored[PolicyRecord]:
        """Raises ResourceNotFoundException."""
        found = await find(self._store, PolicyRecord, layout.policies(engine_id), policy_id)
        if found is None:
            await self._require(engine_id)
            raise ResourceNotFoundException(f"Policy engine {engine_id} has no policy {policy_id}")
        return found

    async def page(self, engine_id: str, scope: str | None, after: str | None, limit: int) -> list[PolicyRecord]:
        """`scope`: only policies whose resource is this ARN."""
        await self._require(engine_id)
        found: list[PolicyRecord] = []
        while len(found) < limit:
            items = [
                one.record for one in await page_of(self._store, PolicyRecord, layout.policies(engine_id), after, _PAGE)
            ]
            found += [one for one in items if scope is None or _is_about(one, scope)]
            if len(items) < _PAGE:
                break
            after = items[-1].id
        return found[:limit]

    # Inside.

    async def _findings(self, engine_id: str, statement: str, mode: str | None) -> list[str]:
        parse(statement)  # before anything is read: raises what the caller did wrong
        gateways: dict[str, list[TargetRecord]] = {}
        attached: list[str] = []
        for item in await self._store.query(layout.attached(engine_id), limit=_MOST):
            attached.append(self._deployment.arn(f"gateway/{item.sort}"))
        wanted = {id for kind, id in parse(statement).entities("resource") or ()} | set(attached)
        for arn in sorted(wanted):
            gateway_id = arn.rpartition("/")[2]
            if arn != self._deployment.arn(f"gateway/{gateway_id}"):
                continue
            if await self._store.get(layout.GATEWAYS, gateway_id) is not None:
                targets = layout.targets(gateway_id)
                gateways[arn] = [one.record async for one in all_of(self._store, TargetRecord, targets)]
        attached = [arn for arn in attached if arn in gateways]
        return await findings(statement, gateways, attached, semantic=mode != "IGNORE_ALL_FINDINGS")

    async def _require(self, engine_id: str) -> None:
        if await self._store.get(layout.ENGINES, engine_id) is None:
            raise _no_engine(engine_id)


def _statement(definition: Mapping[str, Any]) -> str:
    """The Cedar text. Raises ValidationException for the other kinds of definitions."""
    if "cedar" not in definition:
        kind = next(iter(definition), "definition")
        raise invalid(
            FieldError(f"definition.{kind}", "is not supported by agentkeep yet; write the policy as definition.cedar")
        )
    statement: str = definition["cedar"]["statement"]
    return statement


def _document(definition: Mapping[str, Any], description: str | None, reasons: Any) -> dict[str, Any]:
    document: dict[str, Any] = {"definition": definition, "statusReasons": list(reasons)}
    if description is not None:
        document["description"] = description
    return document


def _is_about(policy: PolicyRecord, arn: str) -> bool:
    return any(id == arn for _, id in parse(policy.statement).entities("resource") or ())


def _no_engine(engine_id: str) -> ResourceNotFoundException:
    return ResourceNotFoundException(f"There is no policy engine {engine_id}")


def _busy(policy_id: str) -> ConflictException:
    return ConflictException(f"Policy {policy_id} was changed at the same time. Read it and try again.")
