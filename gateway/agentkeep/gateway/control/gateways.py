"""Gateways: made, replaced, listed, deleted."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson

from agentkeep.core.call import Idempotency
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    FieldError,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
)
from agentkeep.core.identifiers import LOWER_ALPHANUMERIC, Arn, Deployment, resource_id
from agentkeep.core.ports import Authorizers, WorkloadTokens
from agentkeep.core.tags import refuse_reserved
from agentkeep.gateway.control import layout
from agentkeep.gateway.control.layout import engine_revision, gateway_revision, revise
from agentkeep.gateway.control.rules import check_gateway, invalid
from agentkeep.gateway.records import GatewayRecord
from agentkeep.storage.interface import ABSENT, PRESENT, Check, Delete, KeyValueStore, Once, Put, Write
from agentkeep.storage.records import Stored, encode, find, page_of

__all__ = ["Gateways"]

_MOST: Final = 1000  # the service's quota
_ATTEMPTS: Final = 5
#: Members of the request that have a place of their own in the record.
_OWN: Final = frozenset({"gatewayIdentifier", "clientToken", "name", "tags", "authorizerType"})


class Gateways:
    """Each has a service-linked workload identity of its id's name. `public_url`: where clients reach the platform."""

    def __init__(
        self,
        store: KeyValueStore,
        deployment: Deployment,
        clock: Clock,
        authorizers: Authorizers,
        workload_tokens: WorkloadTokens,
        public_url: str,
    ) -> None:
        self._store = store
        self._deployment = deployment
        self._clock = clock
        self._authorizers = authorizers
        self._workload_tokens = workload_tokens
        self._public_url = public_url.rstrip("/")

    def arn(self, gateway_id: str) -> str:
        return self._deployment.arn(f"gateway/{gateway_id}")

    def url(self, gateway_id: str) -> str:
        """Where its MCP server is."""
        return f"{self._public_url}/gateways/{gateway_id}/mcp"

    async def create(self, request: Mapping[str, Any], token: Idempotency | None) -> GatewayRecord:
        """From a CreateGatewayRequest. Raises ValidationException, ConflictException (the name is used),
        ServiceQuotaExceededException."""
        await check_gateway(request, self._authorizers)
        refuse_reserved(request.get("tags", {}))
        name = request["name"]
        gateway_id = resource_id(name.lower(), LOWER_ALPHANUMERIC)
        engine_id = await self._engine(request)
        if len(await self._store.query(layout.GATEWAYS, limit=_MOST)) == _MOST:
            raise ServiceQuotaExceededException(f"There are {_MOST} gateways already, the most allowed; delete one.")
        now = self._clock.now()
        identity = await self._workload_tokens.create_for_service(gateway_id)
        document = _document(request) | {"workloadIdentityDetails": {"workloadIdentityArn": identity}}
        gateway = self._record(gateway_id, request, engine_id, now, now, document)
        writes: list[Write] = [
            Put(layout.GATEWAY_NAMES, name, gateway_id.encode(), ABSENT),
            Put(layout.GATEWAYS, gateway_id, encode(gateway), ABSENT),
            revise(gateway_revision(gateway_id)),
            *_attach(gateway_id, engine_id),
        ]
        if tags := request.get("tags"):
            writes.append(Put(layout.TAGS, gateway.arn, orjson.dumps(tags), ABSENT))
        try:
            done = await self._store.transact(writes, self._once(token, gateway_id))
        except ConditionFailed as failed:
            await self._workload_tokens.delete_for_service(gateway_id)
            if failed.index and engine_id is not None:
                raise _no_engine(request["policyEngineConfiguration"]["arn"]) from None
            raise ConflictException(
                f"A gateway named {name} exists ({(failed.current or b'another').decode()}). Update that one, or "
                "choose another name."
            ) from None
        if done is not None:
            await self._workload_tokens.delete_for_service(gateway_id)
            return (await self.stored(done.reference.decode())).record
        return gateway

    async def update(self, gateway_id: str, request: Mapping[str, Any]) -> GatewayRecord:
        """From an UpdateGatewayRequest; everything is replaced but the name. Raises ValidationException,
        ResourceNotFoundException, ConflictException."""
        await check_gateway(request, self._authorizers)
        for _ in range(_ATTEMPTS):
            stored = await self.stored(gateway_id)
            old = stored.record
            if request["name"] != old.name:
                raise invalid(FieldError("name", f"of a gateway cannot be changed; it is {old.name}"))
            engine_id = await self._engine(request)
            document = _document(request) | {"workloadIdentityDetails": old.document["workloadIdentityDetails"]}
            gateway = self._record(gateway_id, request, engine_id, old.created_at, self._clock.now(), document)
            writes: list[Write] = [
                Put(layout.GATEWAYS, gateway_id, encode(gateway), stored.raw),
                revise(gateway_revision(gateway_id)),
            ]
            if old.policy_engine_id is not None and old.policy_engine_id != engine_id:
                writes.append(Delete(layout.attached(old.policy_engine_id), gateway_id))
                writes.append(revise(engine_revision(old.policy_engine_id)))
            try:
                await self._store.transact([*writes, *_attach(gateway_id, engine_id)])
            except ConditionFailed:
                continue
            return gateway
        raise _busy(gateway_id)

    async def delete(self, gateway_id: str) -> None:
        """Raises ResourceNotFoundException; ConflictException while it has targets. Its rate limits go with it."""
        for _ in range(_ATTEMPTS):
            revision = gateway_revision(gateway_id)
            found = await revision.read(self._store)
            stored = await self.stored(gateway_id)
            gateway = stored.record
            if left := await self._store.query(layout.targets(gateway_id), limit=1):
                raise ConflictException(
                    f"Gateway {gateway_id} has targets ({left[0].sort}, for one). Delete them first."
                )
            writes: list[Write] = [
                Delete(layout.GATEWAYS, gateway_id, stored.raw),
                # A target made since it was looked for has changed the revision.
                Delete(revision.partition, revision.sort, found if found is not None else ABSENT),
                Delete(layout.GATEWAY_NAMES, gateway.name),
                Delete(layout.TAGS, gateway.arn),
            ]
            if gateway.policy_engine_id is not None:
                writes.append(Delete(layout.attached(gateway.policy_engine_id), gateway_id))
                writes.append(revise(engine_revision(gateway.policy_engine_id)))
            try:
                await self._store.transact(writes)
            except ConditionFailed:
                continue
            await self._store.delete_partition(layout.rate_limits(gateway_id))
            await self._store.delete_partition(layout.rate_limit_keys(gateway_id))
            await self._workload_tokens.delete_for_service(gateway_id)
            return
        raise _busy(gateway_id)

    async def stored(self, gateway_id: str) -> Stored[GatewayRecord]:
        """Raises ResourceNotFoundException."""
        found = await find(self._store, GatewayRecord, layout.GATEWAYS, gateway_id)
        if found is None:
            raise ResourceNotFoundException(f"There is no gateway {gateway_id}")
        return found

    async def page(self, after: str | None, limit: int) -> list[GatewayRecord]:
        return [found.record for found in await page_of(self._store, GatewayRecord, layout.GATEWAYS, after, limit)]

    # Inside.

    def _record(
        self,
        gateway_id: str,
        request: Mapping[str, Any],
        engine_id: str | None,
        created_at: datetime,
        updated_at: datetime,
        document: Mapping[str, Any],
    ) -> GatewayRecord:
        engine = request.get("policyEngineConfiguration")
        return GatewayRecord(
            gateway_id,
            self.arn(gateway_id),
            request["name"],
            "READY",
            request["authorizerType"],
            (request.get("authorizerConfiguration") or {}).get("customJWTAuthorizer"),
            engine_id,
            engine["mode"] if engine else None,
            created_at,
            updated_at,
            document,
        )

    async def _engine(self, request: Mapping[str, Any]) -> str | None:
        """The id of the policy engine a request attaches. Raises ValidationException where there is none such."""
        engine = request.get("policyEngineConfiguration")
        if engine is None:
            return None
        arn = Arn.parse(engine["arn"])
        if arn is None or engine["arn"] != self._deployment.arn(f"policy-engine/{arn.id}"):
            raise _no_engine(engine["arn"])
        if await self._store.get(layout.ENGINES, arn.id) is None:
            raise _no_engine(engine["arn"])
        return arn.id

    def _once(self, token: Idempotency | None, gateway_id: str) -> Once | None:
        return Once.of(token, gateway_id.encode(), epoch_ms(self._clock.now()))


def _document(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name not in _OWN and value is not None}


def _attach(gateway_id: str, engine_id: str | None) -> list[Write]:
    """The engine knows its gateways, so that it is not deleted while it decides for one."""
    if engine_id is None:
        return []
    return [
        Check(layout.ENGINES, engine_id, PRESENT),
        Put(layout.attached(engine_id), gateway_id, b""),
        revise(engine_revision(engine_id)),
    ]


def _no_engine(arn: str) -> Exception:
    return invalid(FieldError("policyEngineConfiguration.arn", f"{arn} is no policy engine of this deployment"))


def _busy(gateway_id: str) -> ConflictException:
    return ConflictException(f"Gateway {gateway_id} is being changed by others; try again")
