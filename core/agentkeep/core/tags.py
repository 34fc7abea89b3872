"""Tags of resources: AWS's rules for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agentkeep.core.errors import FieldError, ServiceQuotaExceededException, ValidationException

__all__ = ["merged", "refuse_reserved", "without"]

_MOST = 50


def refuse_reserved(tags: Mapping[str, str]) -> None:
    """Raises ValidationException for the prefix AWS keeps for itself."""
    message = "is reserved, as all keys that begin with aws:"
    if faults := [FieldError(f"tags.{key}", message) for key in tags if key[:4].lower() == "aws:"]:
        raise ValidationException(f"Tag {faults[0].name.partition('.')[2]} {message}", fields=faults)


def merged(tags: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Raises ValidationException, or ServiceQuotaExceededException beyond 50 tags."""
    refuse_reserved(added)
    together = {**tags, **added}
    if len(together) > _MOST:
        raise ServiceQuotaExceededException(f"A resource has at most {_MOST} tags")
    return together


def without(tags: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    gone = frozenset(keys)
    return {key: value for key, value in tags.items() if key not in gone}
