"""References that a model provider would follow with the platform's own permissions.

Bedrock reads images, documents and videos from S3 on behalf of whoever signed the call. That is the platform, not the
agent or its user: with one such reference an agent could read whatever the platform's role can.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from agentkeep.core.errors import ValidationException

__all__ = ["refuse_references"]

_DEPTH: Final = 100


def refuse_references(request: Any) -> None:
    """`request`: of Converse, InvokeModel or CountTokens (native bodies are read as JSON). Raises ValidationException
    where something in it names an object in S3."""
    for name, value in _members(request, _DEPTH):
        if name.casefold().startswith("s3") and _names_an_object(value):
            raise ValidationException(
                f"The request names an object in S3 ({name}), which would be read with the platform's own permissions, "
                "not with the user's. Read it in the agent and send its bytes."
            )


def _names_an_object(value: Any) -> bool:
    texts = value.values() if isinstance(value, dict) else [value]
    return any(isinstance(text, str) and text.strip().casefold().startswith("s3:") for text in texts)


def _members(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Every member of every object, however deep, repeated ones too."""
    if depth == 0:
        raise ValidationException("The request is nested too deeply")
    match value:
        case dict():
            for name, member in value.items():
                yield name, member
                yield from _members(_native(member) if name == "body" else member, depth - 1)
        case _Pairs():
            for name, member in value:
                # What `_names_an_object` looks into is an object here, too.
                yield name, dict(member) if isinstance(member, _Pairs) else member
                yield from _members(member, depth - 1)
        case list():
            for item in value:
                yield from _members(item, depth - 1)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written: which of two equal names counts is the reader's choice."""


def _native(body: Any) -> Any:
    if not isinstance(body, bytes | bytearray):
        return body
    try:
        return json.loads(body, object_pairs_hook=_Pairs) if body else None
    except (ValueError, RecursionError):
        raise ValidationException("The body of the request is not JSON") from None
