"""Client tokens: what names a request so that doing it twice does it once."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import orjson

from agentkeep.core.call import Caller, Idempotency
from agentkeep.wire import Operation

__all__ = ["idempotency"]

#: What a client makes anew for a request that it sends again: the SDK's memory store for Strands tells the time of the
#: second attempt (bedrock_agentcore 1.25, memorystore/sender.py), and AgentCore takes it for the same event.
_OF_THE_ATTEMPT: Final = {"CreateEvent": frozenset({"eventTimestamp"})}


def idempotency(operation: Operation, request: Mapping[str, Any], caller: Caller, key: bytes) -> Idempotency | None:
    """None where the operation has no token or the caller gave none. Tokens of two callers, or of two operations, are
    two tokens. `key`: for the request's fingerprint, which is kept: without it, whoever has the store could find out a
    secret of few possibilities in a request of which he knows the rest."""
    member = operation.idempotency_member
    token = request.get(member) if member is not None else None
    if token is None:
        return None
    scoped = "/".join(quote(part, safe="") for part in (caller.principal, operation.service, operation.name, token))
    of_the_attempt = _OF_THE_ATTEMPT.get(operation.name, ())
    rest = {name: value for name, value in request.items() if name != member and name not in of_the_attempt}
    return Idempotency(scoped, hmac.digest(key, _canonical(rest), "sha256"))


def _canonical(request: dict[str, Any]) -> bytes:
    return orjson.dumps(request, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": base64.b64encode(value).decode()}
    raise TypeError(type(value).__name__)
