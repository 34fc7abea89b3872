"""What an invocation names: an ARN or id and a qualifier, resolved to a version; kept for a few seconds, so that a warm
call asks no store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    ResourceNotFoundException,
    RetryableConflictException,
    ValidationException,
)
from agentkeep.core.identifiers import Arn
from agentkeep.core.policies import Policy
from agentkeep.runtime.agents.catalogue import Catalogue
from agentkeep.runtime.agents.policies import Policies
from agentkeep.runtime.agents.rules import Settings
from agentkeep.runtime.records import Status, Version

__all__ = ["Target", "Targets"]

#: How long another replica's change may go unnoticed. Changes made here are seen at once.
KEPT_SECONDS = 5.0
MOST = 10_000


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint and the version that serves its new sessions."""

    runtime_id: str
    runtime_arn: str
    endpoint: str
    endpoint_arn: str
    version: Version
    settings: Settings
    policies: tuple[Policy, ...]


class Targets:
    def __init__(self, catalogue: Catalogue, policies: Policies, clock: Clock) -> None:
        self._catalogue = catalogue
        self._policies = policies
        self._clock = clock
        self._kept: dict[tuple[str, str, str | None], tuple[float, Target]] = {}

    def cached(self, runtime: str, qualifier: str, account_id: str | None) -> Target | None:
        found = self._kept.get((runtime, qualifier, account_id))
        return found[1] if found is not None and found[0] > self._clock.monotonic() else None

    def changed(self, runtime_id: str) -> None:
        """Something about this runtime has changed here."""
        self._kept = {key: kept for key, kept in self._kept.items() if kept[1].runtime_id != runtime_id}

    def runtime_id(self, runtime: str, account_id: str | None) -> str:
        """The id in an ARN or id as a caller gave it. Raises ResourceNotFoundException if it is not of here."""
        missing = ResourceNotFoundException(f"Agent runtime {runtime} does not exist.")
        own = self._catalogue.deployment
        if account_id is not None and account_id != own.account:
            raise missing
        arn = Arn.parse(runtime)
        if arn is None:
            return runtime
        if str(arn) != self._catalogue.runtime_arn(arn.id):
            raise missing
        return arn.id

    async def policies(self, runtime_id: str, endpoints: Iterable[str]) -> tuple[str, tuple[Policy, ...]]:
        """A runtime's ARN, and its policies with those of these endpoints, whether they can be invoked or not."""
        arn = self._catalogue.runtime_arn(runtime_id)
        return arn, await self._policies.of(
            arn, *(self._catalogue.endpoint_arn(runtime_id, name) for name in endpoints)
        )

    async def resolve(self, runtime: str, qualifier: str, account_id: str | None) -> Target:
        """Raises ResourceNotFoundException; RetryableConflictException while the first version is being made;
        ValidationException where making it failed."""
        runtime_id = self.runtime_id(runtime, account_id)
        stored = await self._catalogue.runtime(runtime_id)
        endpoint = (await self._catalogue.endpoint(runtime_id, qualifier)).record
        if stored.record.status is Status.DELETING or endpoint.status is Status.DELETING:
            raise ResourceNotFoundException(f"Agent runtime {runtime_id} ({qualifier}) is being deleted.")
        if endpoint.live is None:
            if endpoint.status.in_transition:
                raise RetryableConflictException(
                    f"Agent runtime {runtime_id} ({qualifier}) is {endpoint.status}. Wait until it is READY."
                )
            raise ValidationException(
                f"Agent runtime {runtime_id} ({qualifier}) is {endpoint.status} and cannot be invoked. "
                f"{endpoint.failure_reason or ''}".rstrip()
            )
        version = (await self._catalogue.version(runtime_id, endpoint.live)).record
        runtime_arn = self._catalogue.runtime_arn(runtime_id)
        endpoint_arn = self._catalogue.endpoint_arn(runtime_id, endpoint.name)
        target = Target(
            runtime_id,
            runtime_arn,
            endpoint.name,
            endpoint_arn,
            version,
            Settings.of(version.settings),
            await self._policies.of(runtime_arn, endpoint_arn),
        )
        if len(self._kept) >= MOST:
            self._kept.clear()
        self._kept[runtime, qualifier, account_id] = (self._clock.monotonic() + KEPT_SECONDS, target)
        return target
