"""Tags of gateways and policy engines, by ARN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import orjson

from agentkeep.core.errors import (
    ConditionFailed,
    FieldError,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
)
from agentkeep.core.identifiers import Arn, Deployment
from agentkeep.gateway.control import layout
from agentkeep.gateway.control.rules import invalid
from agentkeep.storage.interface import ABSENT, PRESENT, Check, KeyValueStore, Put

__all__ = ["Tags", "check_tags"]

_MOST: Final = 50
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
        check_tags(tags)

        def change(found: dict[str, str]) -> dict[str, str]:
            changed = found | dict(tags)
            if len(changed) > _MOST:
                raise ServiceQuotaExceededException(f"A resource has at most {_MOST} tags.")
            return changed

        await self._change(arn, change)

    async def remove(self, arn: str, keys: Iterable[str]) -> None:
        gone = frozenset(keys)
        await self._change(arn, lambda found: {key: value for key, value in found.items() if key not in gone})

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


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises ValidationException for keys AWS keeps for itself."""
    faults = [
        FieldError(f"tags.{key}", "is reserved, as all keys beginning with aws:")
        for key in tags
        if key[:4].lower() == "aws:"
    ]
    if faults:
        raise invalid(*faults)


def _missing(arn: str) -> ResourceNotFoundException:
    return ResourceNotFoundException(f"There is no gateway or policy engine with the ARN {arn}")
