"""AWS Signature Version 4, the server's half: in the Authorization header, or in the query (presigned).

In two steps, because boto3 signs the body without stating its hash: a signature can be proved only when the last byte
of the body was seen.

    claim = parse(method, raw_path, query, headers, now)      # who claims to call; all that needs no secret is checked
    claim.verify(key.secret, key.session_token, body_sha256)  # or UnauthorizedException

Whoever streams a body holds its end back until `verify` returned. Source: the "AWS Signature Version 4" chapter of the
IAM user guide; botocore's `auth.py` is what clients do.
"""

from __future__ import annotations

import calendar
import hmac
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple, NoReturn
from urllib.parse import unquote_to_bytes

from agentkeep.core.errors import UnauthorizedException
from agentkeep.wire.canonical import canonical_path, canonical_query, fold, header_lines

__all__ = ["EMPTY_SHA256", "MAX_PRESIGNED_SECONDS", "MAX_SKEW_SECONDS", "SIGNING_NAMES", "Claim", "parse"]

ALGORITHM: Final = b"AWS4-HMAC-SHA256"
SIGNING_NAMES: Final = frozenset({b"bedrock-agentcore", b"bedrock"})
MAX_SKEW_SECONDS: Final = 300
MAX_PRESIGNED_SECONDS: Final = 300
#: The hash of no body.
EMPTY_SHA256: Final = sha256().hexdigest()

_UNSIGNED: Final = b"UNSIGNED-PAYLOAD"
_LONGEST_REMEMBERED: Final = 512
_AGENTCORE: Final = b"x-amzn-bedrock-agentcore-"
_USER_ID: Final = _AGENTCORE + b"runtime-user-id"
_MISMATCH: Final = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method."
)

_is_key_id: Final = re.compile(rb"[A-Za-z0-9_]{4,128}").fullmatch
_is_region: Final = re.compile(rb"[a-z0-9-]{1,64}").fullmatch
_is_date: Final = re.compile(rb"[0-9]{8}").fullmatch
_is_stamp: Final = re.compile(rb"[0-9]{8}T[0-9]{6}Z").fullmatch
_is_hash: Final = re.compile(rb"[0-9a-f]{64}").fullmatch
_is_signed_header: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]{1,128}").fullmatch


class _Scope(NamedTuple):
    """What a client repeats word for word all day: the credential's scope and the names of signed headers."""

    access_key_id: str
    date: bytes
    region: bytes
    service: bytes
    names: tuple[bytes, ...]
    signed: bytes


def _refuse(message: str) -> NoReturn:
    raise UnauthorizedException(message)


def _text(data: bytes) -> str:
    return data[:64].decode("ascii", "replace")


@lru_cache(4096)
def _signing_key(secret: str, date: bytes, region: bytes, service: bytes) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in (date, region, service, b"aws4_request"):
        key = hmac.digest(key, part, "sha256")
    return key


@lru_cache(1024)
def _seconds(stamp: bytes) -> int:
    """Seconds since 1970 of `20261122T101112Z`. Raises ValueError."""
    if not _is_stamp(stamp):
        raise ValueError
    year, month, day = int(stamp[:4]), int(stamp[4:6]), int(stamp[6:8])
    hour, minute, second = int(stamp[9:11]), int(stamp[11:13]), int(stamp[13:15])
    if not (1 <= month <= 12 and hour < 24 and minute < 60 and second < 60):
        raise ValueError
    if year < 1970 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        raise ValueError
    return calendar.timegm((year, month, day, hour, minute, second))


def _make_scope(credential: bytes, signed: bytes) -> _Scope:
    parts = credential.split(b"/")
    if len(parts) != 5 or parts[4] != b"aws4_request":
        _refuse("Credential must be of the form <access key id>/<date>/<region>/<service>/aws4_request")
    key_id, date, region, service, _ = parts
    if not _is_key_id(key_id) or not _is_date(date) or not _is_region(region):
        _refuse("Credential should be scoped to a valid access key id, date and region")
    names = tuple(signed.split(b";"))
    if not all(_is_signed_header(name) for name in names) or list(names) != sorted(set(names)):
        _refuse("SignedHeaders must be lower-case header names, sorted, separated by semicolons")
    if b"host" not in names:
        _refuse("'Host' must be a 'SignedHeader' in the AWS Authorization")
    return _Scope(key_id.decode("ascii"), date, region, service, names, signed)


def _parse_authorization(head: bytes) -> _Scope:
    fields: dict[bytes, bytes] = {}
    for part in head.split(b","):
        name, equals, value = part.strip().partition(b"=")
        if not equals or name in fields:
            _refuse("Authorization header is malformed: it must be Credential=..., SignedHeaders=..., Signature=...")
        fields[name] = value
    for name in (b"Credential", b"SignedHeaders"):
        if name not in fields:
            _refuse(f"Authorization header requires '{_text(name)}' parameter")
    return _make_scope(fields[b"Credential"], fields[b"SignedHeaders"])


_short_authorization = lru_cache(4096)(_parse_authorization)


@dataclass(slots=True)  # not frozen: that would triple the time it takes to make one
class Claim:
    """Who a request says is calling, and what proves it. Nothing in it is proved before `verify` returned.

    `body_sha256`: the body's hash the client stated (hex), None where it signed the body without stating it.
    `security_token`: the session token sent with the request.
    """

    access_key_id: str
    signed_headers: tuple[bytes, ...]
    date: bytes
    region: bytes
    service: bytes
    body_sha256: bytes | None
    security_token: bytes | None
    presigned: bool
    _canonical: bytes
    _to_sign: bytes
    _signature: bytes

    def __repr__(self) -> str:
        return f"Claim({self.access_key_id!r})"

    def verify(self, secret: str, session_token: str | None, body_sha256: str | bytes) -> None:
        """Returns if the request was signed with `secret` over this body (`body_sha256`: hex of its SHA-256).

        `session_token`: what must have come with the key, None if none may. Raises UnauthorizedException.
        """
        sent = self.security_token
        if session_token is None:
            if sent is not None:
                _refuse("The security token included in the request is invalid")
        elif sent is None or not hmac.compare_digest(sent, session_token.encode()):
            _refuse("The security token included in the request is invalid")
        body = body_sha256.encode() if isinstance(body_sha256, str) else body_sha256
        stated = self.body_sha256
        if stated is not None and stated != _UNSIGNED:
            if stated != body:
                _refuse("The provided 'x-amz-content-sha256' header does not match what was computed")
        elif stated is not None:
            body = stated
        key = _signing_key(secret, self.date, self.region, self.service)
        digest = sha256(self._canonical + body).hexdigest().encode()
        ours = hmac.digest(key, self._to_sign + digest, "sha256").hex().encode()
        if not hmac.compare_digest(ours, self._signature):
            _refuse(_MISMATCH)


def parse(
    method: bytes,
    raw_path: bytes,
    query: bytes,
    headers: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]],
    now: float,
    *,
    signing_names: Collection[bytes] = SIGNING_NAMES,
    max_skew: float = MAX_SKEW_SECONDS,
    max_presigned: int = MAX_PRESIGNED_SECONDS,
    allow_unsigned_payload: bool = False,
) -> Claim:
    """The claim of a request. `raw_path` and `query` as sent; `headers` as sent, or already by lower-case name with
    repeated ones joined by a comma; `now`: seconds since 1970. The signature is made over the Host that was sent.

    `allow_unsigned_payload`: only behind TLS, where nobody on the way can change the body.
    Raises UnauthorizedException, saying what is wrong, where no signature of these headers could be right.
    """
    fields: Mapping[bytes, bytes] = headers if hasattr(headers, "get") else fold(headers)  # type: ignore[assignment]
    authorization = fields.get(b"authorization")
    presigned = b"X-Amz-" in query and _presigned(query)
    if presigned:
        if authorization is not None:
            _refuse("Only one auth mechanism allowed: Authorization header or X-Amz query parameters")
        scope, stamp, signature, token = _from_query(presigned, now, max_skew, max_presigned)
    elif authorization is None:
        _refuse("Missing Authentication Token")
    else:
        scope, stamp, signature, token = _from_header(authorization, fields, now, max_skew)

    if scope.service not in signing_names:
        names = "' or '".join(sorted(_text(name) for name in signing_names))
        _refuse(f"Credential should be scoped to correct service: '{names}'")
    if stamp[:8] != scope.date:
        _refuse(f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date: {_text(stamp)}")
    for name in fields:
        if name[:5] == b"x-amz" and name not in scope.names and _must_be_signed(name, bool(presigned)):
            _refuse(f"'{_text(name)}' must be a 'SignedHeader' in the AWS Authorization")
    lines = header_lines(scope.names, fields)
    if lines is None:
        _refuse("A header named in SignedHeaders was not sent")
    return Claim(
        scope.access_key_id,
        scope.names,
        scope.date,
        scope.region,
        scope.service,
        _stated_hash(fields, allow_unsigned_payload),
        token,
        bool(presigned),
        b"%b\n%b\n%b\n%b\n%b\n" % (method, canonical_path(raw_path), canonical_query(query), lines, scope.signed),
        b"%b\n%b\n%b/%b/%b/aws4_request\n" % (ALGORITHM, stamp, scope.date, scope.region, scope.service),
        signature,
    )


def _must_be_signed(name: bytes, presigned: bool) -> bool:
    """As AWS: every `x-amz-` header. And the user's id: who may name a user is whoever signed. A presigned URL is given
    to somebody else, who may add nothing of AgentCore's to it; what it holds of that is in the query, and signed. With
    a signature in the header the session's id may be unsigned, as the SDK sends it with a WebSocket."""
    if name[:6] == b"x-amz-" or name == _USER_ID:
        return True
    return presigned and name.startswith(_AGENTCORE)


def _stated_hash(fields: Mapping[bytes, bytes], allow_unsigned: bool) -> bytes | None:
    if b"aws-chunked" in fields.get(b"content-encoding", b"").lower():
        _refuse("aws-chunked bodies are not supported; send the body as it is")
    stated = fields.get(b"x-amz-content-sha256")
    if stated is None or _is_hash(stated):
        return stated
    if stated == _UNSIGNED:
        if not allow_unsigned:
            _refuse("UNSIGNED-PAYLOAD is accepted over TLS only; sign the body")
        return stated
    if stated.startswith(b"STREAMING-"):
        _refuse("aws-chunked bodies are not supported; send the body as it is")
    _refuse("x-amz-content-sha256 must be UNSIGNED-PAYLOAD or a valid SHA-256 value")


def _from_header(
    authorization: bytes, fields: Mapping[bytes, bytes], now: float, max_skew: float
) -> tuple[_Scope, bytes, bytes, bytes | None]:
    if not authorization.startswith(ALGORITHM + b" "):
        scheme = authorization.partition(b" ")[0]
        _refuse(f"Authorization scheme '{_text(scheme)}' is not supported here; sign with {_text(ALGORITHM)}")
    head, found, signature = authorization[len(ALGORITHM) + 1 :].rpartition(b"Signature=")
    if not found:
        _refuse("Authorization header requires 'Signature' parameter")
    if not _is_hash(signature):
        _refuse("Authorization header is malformed: Signature must be the last parameter, 64 hexadecimal digits")
    head = head.rstrip(b", ")
    scope = _short_authorization(head) if len(head) <= _LONGEST_REMEMBERED else _parse_authorization(head)
    stamp = fields.get(b"x-amz-date")
    if stamp is None:
        _refuse("Authorization header requires existence of an 'X-Amz-Date' header")
    signed_at = _time(stamp)
    _check_skew(stamp, signed_at, now, max_skew)
    if now - signed_at > max_skew:
        _refuse(
            f"Signature expired: {_text(stamp)} is more than {max_skew / 60:g} minutes ago here. "
            "Check the clocks of both machines."
        )
    return scope, stamp, signature, fields.get(b"x-amz-security-token")


def _time(stamp: bytes) -> int:
    try:
        return _seconds(stamp[:17])
    except ValueError:
        _refuse("X-Amz-Date must be in ISO-8601 'basic format': YYYYMMDD'T'HHMMSS'Z'")


def _check_skew(stamp: bytes, signed_at: int, now: float, max_skew: float) -> None:
    if signed_at - now > max_skew:
        _refuse(
            f"Signature not yet current: {_text(stamp)} is more than {max_skew / 60:g} minutes ahead here. "
            "Check the clocks of both machines."
        )


def _presigned(query: bytes) -> dict[bytes, bytes]:
    """The X-Amz-* parameters, decoded; empty if there are none."""
    found: dict[bytes, bytes] = {}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        name = unquote_to_bytes(name)
        if name.startswith(b"X-Amz-"):
            if name in found:
                _refuse(f"Query-string parameter '{_text(name)}' must be given once")
            found[name] = unquote_to_bytes(value)
    return found if b"X-Amz-Signature" in found or b"X-Amz-Algorithm" in found else {}


def _from_query(
    given: Mapping[bytes, bytes], now: float, max_skew: float, max_presigned: int
) -> tuple[_Scope, bytes, bytes, bytes | None]:
    for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature"):
        if f"X-Amz-{name}".encode() not in given:
            _refuse(f"AWS query-string parameters must include 'X-Amz-{name}'")
    if given[b"X-Amz-Algorithm"] != ALGORITHM:
        _refuse(f"X-Amz-Algorithm must be {_text(ALGORITHM)}")
    signature, stamp, expires = given[b"X-Amz-Signature"], given[b"X-Amz-Date"], given[b"X-Amz-Expires"]
    if not _is_hash(signature):
        _refuse("X-Amz-Signature must be 64 hexadecimal digits")
    if not expires.isdigit() or not 1 <= int(expires[:9]) <= max_presigned or len(expires) > 9:
        _refuse(f"X-Amz-Expires must be between 1 and {max_presigned} seconds")
    scope = _make_scope(given[b"X-Amz-Credential"], given[b"X-Amz-SignedHeaders"])
    signed_at = _time(stamp)
    _check_skew(stamp, signed_at, now, max_skew)
    if now > signed_at + int(expires):
        _refuse("Signature expired: the presigned URL is too old")
    return scope, stamp, signature, given.get(b"X-Amz-Security-Token")
