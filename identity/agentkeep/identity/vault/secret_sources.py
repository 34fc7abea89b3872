"""Where a provider's secret comes from: given in the request and kept in the token vault, so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentkeep.core.errors import FieldError, ValidationException

__all__ = ["api_key", "managed_secret", "refuse"]


def managed_secret(
    document: Mapping[str, Any],
    member: str,
    prefix: str,
    path: str,
    faults: list[FieldError],
    needed: bool = True,
) -> str | None:
    """The secret in `member` of `document`; an empty one is none.

    The members `<prefix>Source` and `<prefix>Config` say where it is otherwise. That, and a missing secret that is
    `needed`, goes to `faults`, under `path`.
    """
    secret: str | None = document.get(member) or None
    if document.get(f"{prefix}Source") == "EXTERNAL" or document.get(f"{prefix}Config") is not None:
        faults.append(
            FieldError(
                f"{path}{prefix}Source",
                "EXTERNAL, a secret in AWS Secrets Manager, is not supported by agentkeep yet; "
                f"leave it and {prefix}Config out and give {member}, which is kept encrypted",
            )
        )
    elif needed and secret is None:
        faults.append(FieldError(path + member, "is needed"))
    return secret


def api_key(request: Mapping[str, Any]) -> str:
    """Of the requests to create and update API key credential providers. Raises ValidationException."""
    faults: list[FieldError] = []
    secret = managed_secret(request, "apiKey", "apiKeySecret", "", faults)
    refuse(faults)
    assert secret is not None
    return secret


def refuse(faults: list[FieldError]) -> None:
    """Raises ValidationException naming each fault, if there are any."""
    if faults:
        raise ValidationException("; ".join(f"{name}: {message}" for name, message in faults), fields=faults)
