"""Tags of the plane's resources: AWS's rules for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentkeep.core.errors import ServiceQuotaExceededException, ValidationException

__all__ = ["merged", "refuse_reserved", "without"]

_MOST_TAGS = 50


def refuse_reserved(tags: Mapping[str, str]) -> None:
    """Raises ValidationException for the prefix AWS keeps for itself."""
    if any(key.lower().startswith("aws:") for key in tags):
        raise ValidationException("Tag keys beginning with aws: are reserved")


def merged(tags: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Raises ValidationException, or ServiceQuotaExceededException beyond 50 tags."""
    refuse_reserved(added)
    together = {**tags, **added}
    if len(together) > _MOST_TAGS:
        raise ServiceQuotaExceededException(f"A resource has at most {_MOST_TAGS} tags")
    return together


def without(tags: Mapping[str, str], keys: Sequence[str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key not in keys}
