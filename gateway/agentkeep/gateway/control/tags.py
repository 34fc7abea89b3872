"""Tags of gateways and policy engines, by ARN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import orjson

from agentkeep.core.errors import ConditionFailed, ResourceNotFoundException
from agentkeep.core.identifiers import Arn, Deployment
from agentkeep.core.tags import merged, without
from agentkeep.gateway.control import layout
from agentkeep.storage.interface import ABSENT, PRESENT, Check, KeyValueStore, Put

__all__ = ["Tags"]

_OWNERS: Final = {"gateway": layout.GATEWAYS, "policy-engine": layout.ENGINES}


class Tags:
    def __init__(self, store: KeyValueStore, deployment: Deployment) -> None:
        self._store = store
        self._deployment = deployment

    async def of(self, arn: str) -> dict[str, str]:
        """Raises ResourceNotFoundException."""
        where, id = self._owner(arn)
        if await self._store.get(where, id) is None:
            raise _missing(arn)
        return (await self._read(arn))[0]

    async def add(self, arn: str, tags: Mapping[str, str]) -> None:
        """Raises ServiceQuotaExceededException beyond 50 tags."""
        await self._change(arn, lambda found: merged(found, tags))

    async def remove(self, arn: str, keys: Iterable[str]) -> None:
        await self._change(arn, lambda found: without(found, keys))

    async def _change(self, arn: str, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        where, id = self._owner(arn)
        while True:
            found, raw = await self._read(arn)
            changed = orjson.dumps(change(found))
            try:
                await self._store.transact(
                    [Check(where, id, PRESENT), Put(layout.TAGS, arn, changed, raw if raw is not None else ABSENT)]
                )
                return
            except ConditionFailed as failed:
                if failed.index == 0:
                    raise _missing(arn) from None
                continue  # somebody else changed them; look again

    async def _read(self, arn: str) -> tuple[dict[str, str], bytes | None]:
        raw = await self._store.get(layout.TAGS, arn)
        return ({} if raw is None else orjson.loads(raw)), raw

    def _owner(self, arn: str) -> tuple[str, str]:
        """Where the resource of an ARN lies."""
        parsed = Arn.parse(arn)
        where = _OWNERS.get(parsed.kind) if parsed else None
        if parsed is None or where is None or arn != self._deployment.arn(f"{parsed.kind}/{parsed.id}"):
            raise _missing(arn)
        return where, parsed.id


def _missing(arn: str) -> ResourceNotFoundException:
    return ResourceNotFoundException(f"There is no gateway or policy engine with the ARN {arn}")
