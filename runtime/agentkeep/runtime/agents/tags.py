"""Tags of runtimes and endpoints, by ARN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import orjson

from agentkeep.core.errors import ConditionFailed, FieldError, ResourceNotFoundException
from agentkeep.core.identifiers import Arn
from agentkeep.core.tags import merged, refuse_reserved, without
from agentkeep.runtime.agents.budgets import BUDGET_TAG, token_budget
from agentkeep.runtime.agents.catalogue import TAGS, Catalogue
from agentkeep.runtime.agents.rules import invalid
from agentkeep.runtime.environments.warm_pool_sizes import WARM_POOL_TAG, pool_size
from agentkeep.storage.interface import ABSENT, Put

__all__ = ["Tags"]


class Tags:
    """`changed` is told the id of a runtime of which a tag has changed, its own or an endpoint's."""

    def __init__(self, catalogue: Catalogue, changed: Callable[[str], None]) -> None:
        self._catalogue = catalogue
        self._changed = changed
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
        runtime_id, _ = await self.resource(arn)
        while True:
            found, raw = await self._read(arn)
            changed = change(found)
            try:
                await self._store.transact([Put(TAGS, arn, orjson.dumps(changed), raw if raw is not None else ABSENT)])
                self._changed(runtime_id)
                return
            except ConditionFailed:
                continue  # somebody else changed them; look again

    async def _read(self, arn: str) -> tuple[dict[str, str], bytes | None]:
        raw = await self._store.get(TAGS, arn)
        return ({} if raw is None else orjson.loads(raw)), raw


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises ValidationException for keys AWS keeps for itself, and for values of ours that say nothing."""
    refuse_reserved(tags)
    for name, read in ((BUDGET_TAG, token_budget), (WARM_POOL_TAG, pool_size)):
        if name in tags:
            try:
                read(tags[name])
            except ValueError as error:
                raise invalid(FieldError(f"tags.{name}", str(error))) from None
