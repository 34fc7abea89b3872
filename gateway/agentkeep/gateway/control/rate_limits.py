"""Rate limits of a gateway: kept here, counted where tools are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from agentkeep.core.identifiers import LOWER_ALPHANUMERIC, suffix
from agentkeep.gateway.control import layout
from agentkeep.gateway.control.layout import gateway_revision, revise
from agentkeep.gateway.control.rules import invalid
from agentkeep.gateway.records import RateLimitRecord
from agentkeep.storage.interface import ABSENT, PRESENT, Check, Delete, KeyValueStore, Once, Put, Write
from agentkeep.storage.records import Stored, encode, find, page_of, replayed

__all__ = ["GatewayRateLimits"]

_MOST: Final = 50  # of a gateway, as many as one BatchPut
#: Dimensions that tool calls have; the others are of requests that gateways here do not serve.
_DIMENSIONS: Final = re.compile(r"targetName|toolName|\$\.context\.iam\.principal|\$\.context\.jwt\..+")
_WILDCARD: Final = "*"


class GatewayRateLimits:
    def __init__(self, store: KeyValueStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(self, gateway_id: str, request: Mapping[str, Any], token: Idempotency | None) -> RateLimitRecord:
        """From a CreateGatewayRateLimitRequest. Raises ValidationException, ResourceNotFoundException (the gateway),
        ConflictException (the id or the dimension keys are used), ServiceQuotaExceededException."""
        _check(request, "")
        await self._require(gateway_id)
        limit = self._record(gateway_id, request, None)
        once = Once.of(token, limit.id.encode(), epoch_ms(self._clock.now()))
        if (made := await replayed(self._store, once)) is not None:
            return (await self.stored(gateway_id, made.decode())).record
        await self._room(gateway_id, 1)
        done = await self._put(gateway_id, [(limit, None)], once)
        return limit if done is None else (await self.stored(gateway_id, done.decode())).record

    async def update(self, gateway_id: str, limit_id: str, request: Mapping[str, Any]) -> RateLimitRecord:
        """From an UpdateGatewayRateLimitRequest; the dimension keys stay."""
        stored = await self.stored(gateway_id, limit_id)
        _check({**request, "dimensionKeys": stored.record.dimension_keys}, "")
        description = request.get("description", stored.record.document.get("description"))
        limit = replace(
            stored.record,
            entries=request["entries"],
            updated_at=self._clock.now(),
            document={} if description is None else {"description": description},
        )
        await self._put(gateway_id, [(limit, stored)], None)
        return limit

    async def put_all(
        self, gateway_id: str, requests: Sequence[Mapping[str, Any]], token: Idempotency | None
    ) -> list[RateLimitRecord]:
        """From a BatchPutGatewayRateLimitsRequest: each is made, or replaces the limit of its id or dimension keys; all
        or none. Others stay."""
        for index, request in enumerate(requests, 1):
            _check(request, f"rateLimits.{index}.member.")
        keys = [_keys(request["dimensionKeys"]) for request in requests]
        ids = [request["rateLimitId"] for request in requests if request.get("rateLimitId")]
        if len(set(keys)) < len(keys) or len(set(ids)) < len(ids):
            raise invalid(FieldError("rateLimits", "name the same id or dimension keys twice"))
        await self._require(gateway_id)
        planned = [await self._planned(gateway_id, request) for request in requests]
        once = Once.of(token, orjson.dumps([limit.id for limit, _ in planned]), epoch_ms(self._clock.now()))
        if (made := await replayed(self._store, once)) is None:
            await self._room(gateway_id, sum(stored is None for _, stored in planned))
            made = await self._put(gateway_id, planned, once)
        if made is None:
            return [limit for limit, _ in planned]
        return [(await self.stored(gateway_id, id)).record for id in orjson.loads(made)]

    async def delete(self, gateway_id: str, limit_id: str) -> None:
        """Raises ResourceNotFoundException."""
        stored = await self.stored(gateway_id, limit_id)
        try:
            await self._store.transact(
                [
                    Delete(layout.rate_limits(gateway_id), limit_id, stored.raw),
                    Delete(layout.rate_limit_keys(gateway_id), _keys(stored.record.dimension_keys)),
                    revise(gateway_revision(gateway_id)),
                ]
            )
        except ConditionFailed:
            raise _raced() from None

    async def stored(self, gateway_id: str, limit_id: str) -> Stored[RateLimitRecord]:
        """Raises ResourceNotFoundException."""
        found = await find(self._store, RateLimitRecord, layout.rate_limits(gateway_id), limit_id)
        if found is None:
            await self._require(gateway_id)
            raise ResourceNotFoundException(f"Gateway {gateway_id} has no rate limit {limit_id}")
        return found

    async def page(self, gateway_id: str, after: str | None, limit: int) -> list[RateLimitRecord]:
        await self._require(gateway_id)
        return [
            found.record
            for found in await page_of(self._store, RateLimitRecord, layout.rate_limits(gateway_id), after, limit)
        ]

    # Inside.

    def _record(self, gateway_id: str, request: Mapping[str, Any], old: RateLimitRecord | None) -> RateLimitRecord:
        now = self._clock.now()
        description = request.get("description")
        return RateLimitRecord(
            gateway_id,
            old.id if old else request.get("rateLimitId") or f"rl-{suffix(LOWER_ALPHANUMERIC)}",
            request["dimensionKeys"],
            request["entries"],
            old.created_at if old else now,
            now,
            {} if description is None else {"description": description},
        )

    async def _planned(
        self, gateway_id: str, request: Mapping[str, Any]
    ) -> tuple[RateLimitRecord, Stored[RateLimitRecord] | None]:
        """What a request becomes, and what it replaces."""
        limit_id = request.get("rateLimitId")
        if not limit_id:
            known = await self._store.get(layout.rate_limit_keys(gateway_id), _keys(request["dimensionKeys"]))
            limit_id = known.decode() if known is not None else None
        stored = (
            await find(self._store, RateLimitRecord, layout.rate_limits(gateway_id), limit_id) if limit_id else None
        )
        if stored is not None and list(stored.record.dimension_keys) != list(request["dimensionKeys"]):
            raise invalid(FieldError("dimensionKeys", f"of rate limit {limit_id} cannot be changed; make another"))
        return self._record(gateway_id, request, stored.record if stored else None), stored

    async def _put(
        self,
        gateway_id: str,
        limits: Sequence[tuple[RateLimitRecord, Stored[RateLimitRecord] | None]],
        once: Once | None,
    ) -> bytes | None:
        """Returns what a spent token made."""
        writes: list[Write] = [
            Check(layout.GATEWAYS, gateway_id, PRESENT),
            revise(gateway_revision(gateway_id)),
        ]
        for limit, stored in limits:
            where = layout.rate_limits(gateway_id)
            writes.append(Put(where, limit.id, encode(limit), ABSENT if stored is None else stored.raw))
            if stored is None:
                keys = layout.rate_limit_keys(gateway_id)
                writes.append(Put(keys, _keys(limit.dimension_keys), limit.id.encode(), ABSENT))
        try:
            done = await self._store.transact(writes, once)
        except ConditionFailed as failed:
            if failed.index == 0:
                raise _no_gateway(gateway_id) from None
            write = writes[failed.index]
            if isinstance(write, Put) and write.partition == layout.rate_limit_keys(gateway_id):
                raise ConflictException(
                    f"Gateway {gateway_id} has a rate limit with these dimension keys "
                    f"({(failed.current or b'').decode()}). Update that one."
                ) from None
            if isinstance(write, Put) and write.expect is ABSENT:
                raise ConflictException(
                    f"Gateway {gateway_id} has a rate limit {write.sort}. Update that one, or choose another id."
                ) from None
            raise _raced() from None
        return done.reference if done is not None else None

    async def _room(self, gateway_id: str, wanted: int) -> None:
        there = len(await self._store.query(layout.rate_limits(gateway_id), limit=_MOST))
        if there + wanted > _MOST:
            raise ServiceQuotaExceededException(f"Gateway {gateway_id} may have {_MOST} rate limits.")

    async def _require(self, gateway_id: str) -> None:
        if await self._store.get(layout.GATEWAYS, gateway_id) is None:
            raise _no_gateway(gateway_id)


def _check(request: Mapping[str, Any], place: str) -> None:
    faults: list[FieldError] = []
    keys = list(request["dimensionKeys"])
    if len(set(keys)) < len(keys):
        faults.append(FieldError(f"{place}dimensionKeys", "name a key twice"))
    faults += [
        FieldError(
            f"{place}dimensionKeys",
            f"{key} is not supported by agentkeep yet; use targetName, toolName, $.context.iam.principal or "
            "$.context.jwt.<claim>",
        )
        for key in keys
        if not _DIMENSIONS.fullmatch(key)
    ]
    for index, entry in enumerate(request["entries"], 1):
        where = f"{place}entries.{index}.member"
        faults += [
            FieldError(f"{where}.{metric}", "is not supported by agentkeep yet: tools are limited by requests")
            for metric in ("tokens", "connections")
            if entry.get(metric)
        ]
        if not entry.get("requests") and not entry.get("tokens") and not entry.get("connections"):
            faults.append(FieldError(f"{where}.requests", "is required: an entry limits something"))
        named = entry["dimensions"]
        if set(named) != set(keys):
            faults.append(FieldError(f"{where}.dimensions", f"must have a value for each of {', '.join(keys)}"))
            continue
        values = [named[key] for key in keys]
        open_from = values.index(_WILDCARD) if _WILDCARD in values else len(values)
        if any(value != _WILDCARD for value in values[open_from:]):
            faults.append(FieldError(f"{where}.dimensions", "may have * only as the last values, in the keys' order"))
    if faults:
        raise invalid(*faults)


def _keys(keys: Sequence[str]) -> str:
    return "\n".join(keys)


def _no_gateway(gateway_id: str) -> ResourceNotFoundException:
    return ResourceNotFoundException(f"There is no gateway {gateway_id}")


def _raced() -> ConflictException:
    return ConflictException("The rate limit was changed at the same time. Read it and try again.")
