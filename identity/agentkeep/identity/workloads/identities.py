"""Workload identities: the names under which agents ask for access to what is theirs and their users'."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    ResourceNotFoundException,
    ValidationException,
)
from agentkeep.core.identifiers import Deployment
from agentkeep.core.pages import place
from agentkeep.core.pages import token as page_token
from agentkeep.core.tags import merged, refuse_reserved, without
from agentkeep.storage.interface import ABSENT, Delete, KeyValueStore, Put, partition

__all__ = ["WorkloadIdentities", "WorkloadIdentity"]

_IDENTITIES = partition("identity", "workload-identities")
_DIRECTORY = "workload-identity-directory/default/workload-identity/"
_PAGE = 20  # the model's largest
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class WorkloadIdentity:
    """`incarnation` tells it from an earlier identity of the same name: that one's tokens are not this one's.
    `service_linked`: made for a runtime or gateway, which lives and dies with it."""

    name: str
    arn: str
    return_urls: tuple[str, ...]
    created: datetime
    updated: datetime
    incarnation: str
    service_linked: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    def dump(self) -> bytes:
        return orjson.dumps(
            {
                "return_urls": self.return_urls,
                "created": epoch_ms(self.created),
                "updated": epoch_ms(self.updated),
                "incarnation": self.incarnation,
                "service_linked": self.service_linked,
                "tags": dict(self.tags),
            }
        )


class WorkloadIdentities:
    def __init__(self, store: KeyValueStore, deployment: Deployment, clock: Clock) -> None:
        self._store = store
        self._deployment = deployment
        self._clock = clock

    async def create(
        self,
        name: str,
        return_urls: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        service_linked: bool = False,
    ) -> WorkloadIdentity:
        """Raises ConflictException where the name is taken."""
        refuse_reserved(tags or {})
        now = self._now()
        identity = WorkloadIdentity(
            name, self.arn(name), tuple(return_urls), now, now, secrets.token_hex(8), service_linked, dict(tags or {})
        )
        try:
            await self._store.transact([Put(_IDENTITIES, name, identity.dump(), expect=ABSENT)])
        except ConditionFailed:
            raise ConflictException(f"A workload identity named {name} exists already") from None
        return identity

    async def get(self, name: str) -> WorkloadIdentity:
        """Raises ResourceNotFoundException."""
        value = await self._store.get(_IDENTITIES, name)
        if value is None:
            raise ResourceNotFoundException(f"There is no workload identity named {name}")
        return self._load(name, value)

    async def list(self, limit: int | None, token: str | None) -> tuple[list[WorkloadIdentity], str | None]:
        """A page by name, and the token of the next."""
        limit = limit or _PAGE
        items = await self._store.query(_IDENTITIES, after=place(token), limit=limit + 1)
        page = [self._load(item.sort, item.value) for item in items[:limit]]
        return page, page_token(page[-1].name) if len(items) > limit else None

    async def set_return_urls(self, name: str, return_urls: Sequence[str] | None) -> WorkloadIdentity:
        """None leaves them as they are."""

        def change(identity: WorkloadIdentity) -> WorkloadIdentity:
            kept = identity.return_urls if return_urls is None else tuple(return_urls)
            return replace(identity, return_urls=kept, updated=self._now())

        return await self._change(name, change)

    async def tag(self, arn: str, tags: Mapping[str, str]) -> None:
        """Raises ServiceQuotaExceededException beyond 50 tags."""
        await self._change(self._name(arn), lambda one: replace(one, tags=merged(one.tags, tags)))

    async def untag(self, arn: str, keys: Sequence[str]) -> None:
        await self._change(self._name(arn), lambda one: replace(one, tags=without(one.tags, keys)))

    async def tags(self, arn: str) -> Mapping[str, str]:
        return (await self.get(self._name(arn))).tags

    async def delete(self, name: str, service: bool = False) -> None:
        """Raises ResourceNotFoundException; ValidationException where it belongs to a runtime or gateway, unless
        `service` says that this is what asks."""
        identity = await self.get(name)
        if identity.service_linked and not service:
            raise ValidationException(
                f"WorkloadIdentity {name} is linked to a service and cannot be deleted by the caller; "
                "it goes with the runtime or gateway it belongs to"
            )
        if service and not identity.service_linked:
            return
        await self._store.transact([Delete(_IDENTITIES, name)])

    def arn(self, name: str) -> str:
        return self._deployment.arn(_DIRECTORY + name)

    def _name(self, arn: str) -> str:
        prefix = self.arn("")
        if not arn.startswith(prefix) or "/" in (name := arn.removeprefix(prefix)):
            raise ResourceNotFoundException(f"There is no workload identity with ARN {arn}")
        return name

    def _now(self) -> datetime:
        now = self._clock.now()
        return now.replace(microsecond=now.microsecond // 1000 * 1000)  # as it is stored

    def _load(self, name: str, value: bytes) -> WorkloadIdentity:
        document: dict[str, Any] = orjson.loads(value)
        return WorkloadIdentity(
            name,
            self.arn(name),
            tuple(document["return_urls"]),
            datetime.fromtimestamp(document["created"] / 1000, UTC),
            datetime.fromtimestamp(document["updated"] / 1000, UTC),
            document["incarnation"],
            document["service_linked"],
            document["tags"],
        )

    async def _change(self, name: str, change: Callable[[WorkloadIdentity], WorkloadIdentity]) -> WorkloadIdentity:
        for _ in range(_ATTEMPTS):
            value = await self._store.get(_IDENTITIES, name)
            if value is None:
                raise ResourceNotFoundException(f"There is no workload identity named {name}")
            changed = change(self._load(name, value))
            try:
                await self._store.transact([Put(_IDENTITIES, name, changed.dump(), expect=value)])
            except ConditionFailed:
                continue
            return changed
        raise ConflictException(f"Workload identity {name} is being changed by others; try again")
