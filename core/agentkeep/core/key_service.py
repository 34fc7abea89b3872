"""Key services: where the keys are that data keys are wrapped under.

What is stored is sealed under a data key (`SealingKey`), which lies beside it, wrapped. Only a key service can unwrap
it, and only for the same encryption context, so that a wrapped key moved to another place does not open there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from agentkeep.core.errors import KeyRefused, ValidationException

__all__ = ["Context", "DataKey", "KeyService", "KeyServices"]

#: What a data key is for; no secret, as a key service may write it into its log.
Context = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DataKey:
    """`plain`: 32 bytes, never to be stored. `wrapped`: to be stored; its first byte says which service wrapped it."""

    plain: bytes = field(repr=False)
    wrapped: bytes


class KeyService(Protocol):
    """Raises KeyServiceUnavailable while it does not answer (nothing is sealed or opened then; ask again), KeyRefused
    where it does not let the platform use the key, or the key did not wrap this for this context."""

    async def generate(self, context: Context, arn: str | None = None) -> DataKey:
        """A new data key, wrapped under the key `arn`; None: the deployment's own. Raises ValidationException for an
        ARN that names no key of a service there is."""
        ...

    async def unwrap(self, wrapped: bytes, context: Context) -> bytes: ...

    async def erase(self, wrapped: bytes) -> None:
        """Forgets for good what the service itself keeps for this data key, if it keeps anything: then no copy of
        `wrapped` opens any more. May be repeated."""
        ...

    async def close(self) -> None: ...


#: First bytes of wrapped keys.
LOCAL: Final = b"\x01"
LOCAL_IN_HALVES: Final = b"\x02"
KMS: Final = b"\x03"


class KeyServices:
    """Local keys and AWS KMS's as one service. `default`: the ARN of the deployment's own key; None: the local one."""

    def __init__(self, local: KeyService, kms: KeyService, default: str | None = None) -> None:
        self._local = local
        self._kms = kms
        self._default = default

    async def generate(self, context: Context, arn: str | None = None) -> DataKey:
        arn = arn if arn is not None else self._default
        return await (self._local.generate(context) if arn is None else self._kms.generate(context, arn))

    async def unwrap(self, wrapped: bytes, context: Context) -> bytes:
        return await self._of(wrapped).unwrap(wrapped, context)

    async def erase(self, wrapped: bytes) -> None:
        await self._of(wrapped).erase(wrapped)

    async def close(self) -> None:
        await self._local.close()
        await self._kms.close()

    def _of(self, wrapped: bytes) -> KeyService:
        return self._kms if wrapped[:1] == KMS else self._local


def unknown_wrapping() -> KeyRefused:
    return KeyRefused("This data key was wrapped by no key service that is configured here")


def not_a_key(arn: str) -> ValidationException:
    return ValidationException(
        f"{arn} is not the ARN of a key of AWS KMS, such as arn:aws:kms:eu-west-1:123456789012:key/..."
    )
