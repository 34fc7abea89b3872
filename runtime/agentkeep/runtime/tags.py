"""Tags of runtimes and endpoints, by ARN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import orjson

from agentkeep.core.errors import ConditionFailed, FieldError, ResourceNotFoundException
from agentkeep.core.identifiers import Arn
from agentkeep.core.tags import merged, refuse_reserved, without
from agentkeep.runtime.budgets import BUDGET_TAG, token_budget
from agentkeep.runtime.catalogue import TAGS, Catalogue
from agentkeep.runtime.rules import invalid
from agentkeep.storage.interface import ABSENT, Put

__all__ = ["Tags"]


class Tags:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._store = catalogue.store

    async def resource(self, arn: str) -> tuple[str, str | None]:
        """The runtime's id and the endpoint's name (None for a runtime) of an ARN. Raises ResourceNotFoundException."""
        parsed = Arn.parse(arn)
        parts = parsed.resource.split("/") if parsed else []
        match parts:
            case ["runtime", runtime_id] if arn == self._catalogue.runtime_arn(runtime_id):
                await self._catalogue.runtime(runtime_id)
                return runtime_id, None
            case ["runtime", runtime_id, "runtime-endpoint", name] if arn == self._catalogue.endpoint_arn(
                runtime_id, name
            ):
                await self._catalogue.endpoint(runtime_id, name)
                return runtime_id, name
        raise ResourceNotFoundException(f"There is no agent runtime or endpoint with the ARN {arn}.")

    async def of(self, arn: str) -> dict[str, str]:
        await self.resource(arn)
        return (await self._read(arn))[0]

    async def add(self, arn: str, tags: Mapping[str, str]) -> None:
        """Raises ServiceQuotaExceededException beyond 50 tags."""
        check_tags(tags)

        await self._change(arn, lambda found: merged(found, tags))

    async def remove(self, arn: str, keys: Iterable[str]) -> None:
        await self._change(arn, lambda found: without(found, keys))

    async def _change(self, arn: str, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        await self.resource(arn)
        while True:
            found, raw = await self._read(arn)
            changed = change(found)
            try:
                await self._store.transact([Put(TAGS, arn, orjson.dumps(changed), raw if raw is not None else ABSENT)])
                return
            except ConditionFailed:
                continue  # somebody else changed them; look again

    async def _read(self, arn: str) -> tuple[dict[str, str], bytes | None]:
        raw = await self._store.get(TAGS, arn)
        return ({} if raw is None else orjson.loads(raw)), raw


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises ValidationException for keys AWS keeps for itself, and for a budget that is none."""
    refuse_reserved(tags)
    if BUDGET_TAG in tags:
        try:
            token_budget(tags[BUDGET_TAG])
        except ValueError as error:
            raise invalid(FieldError(f"tags.{BUDGET_TAG}", str(error))) from None
