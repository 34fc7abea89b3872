"""AWS's Security Token Service, asked for a role's keys in a user's name: AssumeRoleWithWebIdentity, query protocol.

The call is not signed. What it proves it proves by the user's token, so that the platform needs no credentials of AWS's
and has none to fall back on. Source: STS API reference; the service model `sts` of 2011-06-15.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode
from xml.parsers import expat

from agentkeep.core.errors import ProviderError
from agentkeep.identity.inbound.provider_documents import DocumentFetcher

__all__ = ["DURATION", "AssumedRole", "RoleRequest", "SecurityTokenService", "StsRefused"]

#: Seconds. The shortest that STS gives: AWS honours its keys until they expire, whatever becomes of the session.
DURATION: Final = 900

_HEADERS: Final = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8", "Accept": "text/xml"}
_ANSWER: Final = ("AssumeRoleWithWebIdentityResponse", "AssumeRoleWithWebIdentityResult")
_KEY_ID: Final = re.compile(r"ASIA[A-Z0-9]{16}")
_SECRET: Final = re.compile(r"[\x21-\x7e]{16,128}")
_TOKEN: Final = re.compile(r"[\x21-\x7e]{16,8192}")
_CODE: Final = re.compile(r"[A-Za-z.]{1,64}")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
#: STS's words for "not now". IDPCommunicationError: it could not reach the token's issuer.
_PASSING: Final = frozenset(
    {"IDPCommunicationError", "Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded"}
    | {"ServiceUnavailable", "ServiceUnavailableException", "InternalFailure", "InternalError", "RequestTimeout"}
    | {"RequestTimeoutException", "SlowDown", "PriorRequestNotComplete", "BandwidthLimitExceeded"}
)


@dataclass(frozen=True, slots=True)
class RoleRequest:
    """`policy`: a session policy as JSON, `policy_arns` managed ones: what the role may do besides is taken away."""

    role_arn: str
    session_name: str
    token: str = field(repr=False)
    policy: str | None = None
    policy_arns: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class AssumedRole:
    """A role's keys; `repr` hides them. `arn` names the role's session (`...:assumed-role/<role>/<session name>`),
    `subject` and `audience` are those AWS found in the token."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(repr=False)
    expiration: datetime
    arn: str
    subject: str
    audience: str


class StsRefused(ProviderError):
    """STS answered that it will not. `code` is its own; `passing`: it may at another time. `request_id` finds the call
    in CloudTrail. Its message is not repeated: servers repeat what they were sent."""

    def __init__(self, code: str, status: int, request_id: str) -> None:
        super().__init__(f"STS answered {code} ({status}, request {request_id})")
        self.code = code
        self.passing = status >= 500 or status == 429 or code in _PASSING


class SecurityTokenService:
    """STS at `endpoint`: a region's, a VPC endpoint's, or a stand-in's."""

    def __init__(self, endpoint: str, fetcher: DocumentFetcher) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._fetcher = fetcher

    async def assume(self, request: RoleRequest) -> AssumedRole:
        """Raises StsRefused, or ProviderError where there was no answer that can be believed."""
        form = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", request.role_arn),
            ("RoleSessionName", request.session_name),
            ("WebIdentityToken", request.token),
            ("DurationSeconds", str(DURATION)),
        ]
        if request.policy is not None:
            form.append(("Policy", request.policy))
        form += [(f"PolicyArns.member.{number}.arn", arn) for number, arn in enumerate(request.policy_arns, 1)]
        status, answer = await self._fetcher.post(f"{self.endpoint}/", urlencode(form), _HEADERS)
        try:
            texts = _texts(answer)
        except (expat.ExpatError, ValueError):
            texts = {}
        if status != 200:
            raise _refusal(status, texts)
        return _assumed(request, texts)

    async def close(self) -> None:
        await self._fetcher.close()


_Path = tuple[str, ...]


def _texts(document: bytes) -> dict[_Path, str]:
    """The text of each element by its path. Raises ExpatError, and ValueError for a document with a DTD: entities are
    how small documents become large ones."""
    found: dict[_Path, str] = {}
    path: list[str] = []

    def begin(name: str, _: dict[str, str]) -> None:
        path.append(name)

    def end(_: str) -> None:
        path.pop()

    def text(data: str) -> None:
        place = tuple(path)
        found[place] = found.get(place, "") + data

    def doctype(*_: object) -> None:
        raise ValueError("a DTD")

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = doctype
    parser.Parse(document, True)
    return {place: data.strip() for place, data in found.items()}


def _refusal(status: int, texts: dict[_Path, str]) -> StsRefused:
    code = texts.get(("ErrorResponse", "Error", "Code"), "")
    request_id = texts.get(("ErrorResponse", "RequestId"), "")
    return StsRefused(
        code if _CODE.fullmatch(code) else "an error without a code",
        status,
        request_id if _REQUEST_ID.fullmatch(request_id) else "without an id",
    )


def _assumed(request: RoleRequest, texts: dict[_Path, str]) -> AssumedRole:
    def found(*path: str) -> str:
        return texts.get((*_ANSWER, *path), "")

    key_id, secret = found("Credentials", "AccessKeyId"), found("Credentials", "SecretAccessKey")
    token, arn = found("Credentials", "SessionToken"), found("AssumedRoleUser", "Arn")
    subject, audience = found("SubjectFromWebIdentityToken"), found("Audience")
    if not (_KEY_ID.fullmatch(key_id) and _SECRET.fullmatch(secret) and _TOKEN.fullmatch(token)):
        raise ProviderError("STS answered without credentials of the form that AWS's have")
    try:
        expiration = datetime.fromisoformat(found("Credentials", "Expiration"))
    except ValueError:
        raise ProviderError("STS answered without an expiration") from None
    if expiration.tzinfo is None:
        raise ProviderError("STS answered an expiration without a time zone")
    # Of `arn:aws:iam::111122223333:role/path/name` the session says account and name.
    _, partition, _, _, account, role = request.role_arn.split(":", 5)
    expected = f"arn:{partition}:sts::{account}:assumed-role/{role.rsplit('/', 1)[-1]}/{request.session_name}"
    if arn != expected:
        raise ProviderError("STS answered another role or session than it was asked for")
    return AssumedRole(key_id, secret, token, expiration.astimezone(UTC), arn, subject, audience)
