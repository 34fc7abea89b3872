"""What the head of an invocation says: which runtime, whose session, which attempt.

The operation is `InvokeAgentRuntime` of the `bedrock-agentcore` model; its members travel in path, query and headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import FieldError, UnauthorizedException, ValidationException
from agentkeep.runtime.invocations.headers import CUSTOM_PREFIX, SESSION_HEADER, USER_HEADER
from agentkeep.runtime.records import DEFAULT_ENDPOINT

__all__ = ["Attempt", "Target", "attempt", "bearer_token", "parse_target", "query_headers", "text_headers"]

#: Member, least and greatest length, by header, as the model says.
_LENGTHS: Final[Mapping[str, tuple[str, int, int]]] = {
    "content-type": ("contentType", 1, 256),
    "accept": ("accept", 1, 256),
    "mcp-session-id": ("mcpSessionId", 1, 1024),
    SESSION_HEADER: ("runtimeSessionId", 33, 256),
    "mcp-protocol-version": ("mcpProtocolVersion", 1, 1024),
    "mcp-method": ("mcpMethod", 1, 1024),
    "mcp-name": ("mcpName", 1, 1024),
    USER_HEADER: ("runtimeUserId", 1, 1024),
    "x-amzn-trace-id": ("traceId", 0, 128),
    "traceparent": ("traceParent", 0, 128),
    "tracestate": ("traceState", 0, 512),
    "baggage": ("baggage", 0, 8192),
}
#: Not in the model, which leaves session ids open; here they travel in headers and name log files.
_VISIBLE: Final = re.compile(r"[!-~]+")
_ACCOUNT: Final = re.compile(r"[0-9]{12}")
#: Nobody has proved anything yet: what is kept of requests must not be large.
_LONGEST_REMEMBERED: Final = 1024
_FIELD_NAME: Final = re.compile(r"[a-z0-9_-]+")
#: As in a head: a value ends no line.
_FIELD_VALUE: Final = re.compile(r"[\t -~]*")


class Target(NamedTuple):
    """`query` are all parameters: a presigned WebSocket carries there what others send as headers."""

    runtime: str
    qualifier: str
    account_id: str | None
    query: Mapping[str, str]


def parse_target(path: bytes, query: bytes) -> Target:
    """`path` is raw, `/runtimes/{label}/...`. Raises ValidationException."""
    return _short_target(path, query) if len(path) + len(query) <= _LONGEST_REMEMBERED else _parse_target(path, query)


def _parse_target(path: bytes, query: bytes) -> Target:
    try:
        runtime = unquote_to_bytes(path.split(b"/", 3)[2]).decode()
        # A plus sign is a plus sign, as it is when signed.
        plain = query.decode("ascii").replace("+", "%2B")
        pairs = parse_qsl(plain, keep_blank_values=True, errors="strict")
    except ValueError:
        raise ValidationException("The request's path or query is not UTF-8", "CannotParse") from None
    given = dict(pairs)
    if len(given) != len(pairs):
        raise ValidationException("A parameter of the query is given more than once", "CannotParse")
    account_id = given.get("accountId")
    if account_id is not None and not _ACCOUNT.fullmatch(account_id):
        raise _invalid([FieldError("accountId", "must be 12 digits")])
    return Target(runtime, given.get("qualifier") or DEFAULT_ENDPOINT, account_id, given)


_short_target = lru_cache(4096)(_parse_target)


def text_headers(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """The headers as text, those of the model checked. Without Upgrade: whether a request is a WebSocket's is for the
    front to say, not for a header that any request may have. Raises ValidationException naming every wrong one."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw.items() if name != b"upgrade"}
    faults = None
    for name in headers.keys() & _LENGTHS.keys():
        member, low, high = _LENGTHS[name]
        if not low <= len(headers[name]) <= high:
            faults = faults or []
            faults.append(FieldError(member, f"must have a length of {low} to {high}"))
    session_id = headers.get(SESSION_HEADER)
    if session_id and not _VISIBLE.fullmatch(session_id):
        faults = faults or []
        faults.append(FieldError("runtimeSessionId", "must be visible ASCII characters"))
    if faults:
        raise _invalid(sorted(faults))
    return headers


def query_headers(query: Mapping[str, str]) -> dict[str, str]:
    """What a WebSocket's query says in place of headers, by lower-case name: browsers can set none, and who is given a
    presigned URL must not. The session's id, the user's, and custom headers (developer guide,
    "runtime-get-started-websocket"). Raises ValidationException where a value could not be a header's."""
    found: dict[str, str] = {}
    faults = []
    for name, value in query.items():
        name = name.lower()
        if name not in (SESSION_HEADER, USER_HEADER) and not name.startswith(CUSTOM_PREFIX):
            continue
        plain = name == USER_HEADER or (_FIELD_VALUE.fullmatch(value) and _FIELD_NAME.fullmatch(name))
        if name in found:
            faults.append(FieldError(name[:256], "must be given once"))
        elif not plain:
            faults.append(FieldError(name[:256], "must be made of visible ASCII characters, spaces and tabs"))
        found[name] = value
    if faults:
        raise _invalid(sorted(faults))
    return found


def bearer_token(headers: Mapping[str, str], session: SessionRef | None) -> str | None:
    """The token of a caller who does not sign. Raises UnauthorizedException inside a session (`session`: the
    listener's), whose callers have keys of their own."""
    authorization = headers.get("authorization", "")
    if authorization[:7].lower() != "bearer " and authorization.lower() != "bearer":
        return None
    if session is not None:
        raise UnauthorizedException("Inside a session, calls are signed with the session's own credentials")
    return authorization[7:].strip()


def _invalid(faults: list[FieldError]) -> ValidationException:
    return ValidationException("; ".join(f"{name} {message}" for name, message in faults), fields=faults)


class Attempt(NamedTuple):
    """Of one invocation, as SDKs count it (`amz-sdk-request: attempt=2; max=3`)."""

    number: int
    last: bool


@lru_cache(256)
def attempt(field: str) -> Attempt:
    """Anything unreadable is a first attempt."""
    parts = dict(part.strip().partition("=")[::2] for part in field.split(";"))
    number, greatest = parts.get("attempt", ""), parts.get("max", "")
    if not (number.isascii() and number.isdigit()):
        return Attempt(1, False)
    last = greatest.isascii() and greatest.isdigit() and int(number) >= int(greatest)
    return Attempt(int(number), last)
