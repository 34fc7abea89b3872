"""STS's two operations for people and applications, on AWS's query protocol:

    AssumeRoleWithWebIdentity   keys of a role for a token of a trusted issuer's; unsigned
    GetCallerIdentity           whose a key is; signed with any key of the platform's, where that key is good

so that `aws sts ... --endpoint-url http://.../sts`, and profiles with web_identity_token_file, are what they are with
AWS. Shapes and codes: botocore's model of `sts`. Sessions may ask who they are, and nothing else: their keys come by
other ways, and an agent that holds a user's token shall get no more from it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from agentkeep.core.call import CallerKind
from agentkeep.core.clock import Clock
from agentkeep.core.errors import ServiceError, StoreUnavailable, UnauthorizedException, ValidationException
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import AccessKey
from agentkeep.identity.roles.roles import LONGEST, SHORTEST, unique_id
from agentkeep.identity.roles.sessions import AssumeRequest, RoleSessions, StsFault
from agentkeep.service.asgi import Receive, Scope, Send, pieces, respond
from agentkeep.service.authentication import Authenticator
from agentkeep.service.request_id import new_request_id
from agentkeep.wire.query import CONTENT_TYPE, parse_form, write_answer, write_error

__all__ = ["LARGEST_REQUEST", "PATH", "StsApp"]

logger = logging.getLogger(__name__)

PATH: Final = "/sts"
LARGEST_REQUEST: Final = 65_536
_VERSION: Final = "2011-06-15"
_NAMESPACE: Final = "https://sts.amazonaws.com/doc/2011-06-15/"
#: Lengths of what is sent, by the service model.
_LENGTHS: Final = {
    "RoleArn": (20, 2048),
    "RoleSessionName": (2, 64),
    "WebIdentityToken": (4, 20_000),
    "Policy": (1, 2048),
}
_REQUIRED: Final = ("RoleArn", "RoleSessionName", "WebIdentityToken")
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_SESSION_NAME: Final = re.compile(r"[\w+=,.@-]*", re.ASCII)


class StsApp:
    """An ASGI application, for a public mount and one on sessions' listeners. `authenticator`: of signatures for the
    service `sts`. `rate`: exchanges a second, of everybody together; twice as many at once."""

    def __init__(
        self, sessions: RoleSessions, authenticator: Authenticator, deployment: Deployment, clock: Clock, rate: float
    ) -> None:
        self._sessions = sessions
        self._authenticator = authenticator
        self._deployment = deployment
        self._clock = clock
        self._rate = rate
        self._left = 2 * rate
        self._counted = clock.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_request_id()
        try:
            status, answer = 200, await self._answer(scope, receive, request_id)
        except StsFault as fault:
            status = fault.status
            answer = write_error(fault.code, fault.message, status, _NAMESPACE, request_id)
        except ServiceError as error:  # what was sent cannot be taken in, or not now
            status, answer = error.status, write_error(error.code, error.message, error.status, _NAMESPACE, request_id)
        except StoreUnavailable as error:
            logger.error("request %s (STS) met a store that is not available: %s", request_id, error)
            status, message = 503, "A store that this needs is not available now: try again"
            answer = write_error("ServiceUnavailable", message, status, _NAMESPACE, request_id)
        headers = [(b"x-amzn-requestid", request_id.encode()), (b"cache-control", b"no-store")]
        await respond(send, status, answer, headers, CONTENT_TYPE)

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> bytes:
        if scope["method"] not in ("GET", "POST") or scope["path"].rstrip("/") != PATH:
            raise StsFault("InvalidAction", f"GET or POST {PATH}", 404)
        body = b"".join([piece async for piece in pieces(receive)])
        try:
            fields = parse_form(body if scope["method"] == "POST" else scope["query_string"])
        except ValidationException as error:
            raise StsFault("MalformedQueryString", error.message) from None
        operation = fields.get("Action")
        if operation is None:
            raise StsFault("MissingAction", "The request names no Action")
        result: Mapping[str, Any]
        if operation == "GetCallerIdentity" and fields.get("Version") == _VERSION:
            result = await self._identity(scope, body)
        elif operation == "AssumeRoleWithWebIdentity" and fields.get("Version") == _VERSION:
            result = await self._assume(scope, fields)
        else:
            raise StsFault(
                "InvalidAction",
                f"Could not find operation {operation[:64]} for version {fields.get('Version', '')[:16]}. There are "
                f"AssumeRoleWithWebIdentity and GetCallerIdentity, of {_VERSION}",
            )
        return write_answer(operation, _NAMESPACE, result, request_id)

    # AssumeRoleWithWebIdentity.

    async def _assume(self, scope: Scope, fields: Mapping[str, str]) -> Mapping[str, Any]:
        if scope.get("agentkeep.session") is not None:
            raise StsFault("AccessDenied", "Agents' sessions assume no roles: their keys are the session's own", 403)
        request = _parsed(fields)
        self._take()
        assumed = await self._sessions.assume(request)
        key, session = assumed.key, assumed.session
        assert key.session_token is not None and key.expires is not None, "a role's key has both"
        return {
            "Credentials": {
                "AccessKeyId": key.id,
                "SecretAccessKey": key.secret,
                "SessionToken": key.session_token,
                "Expiration": key.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
            "SubjectFromWebIdentityToken": session.subject,
            "AssumedRoleUser": {"AssumedRoleId": _user_id(key), "Arn": key.caller.principal},
            "Provider": session.issuer,
            "Audience": assumed.audience,
        }

    def _take(self) -> None:
        now = self._clock.monotonic()
        self._left = min(2 * self._rate, self._left + (now - self._counted) * self._rate)
        self._counted = now
        if self._left < 1:
            raise StsFault("Throttling", "Rate exceeded")
        self._left -= 1

    # GetCallerIdentity.

    async def _identity(self, scope: Scope, body: bytes) -> Mapping[str, Any]:
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            headers[name] = value if name not in headers else headers[name] + b"," + value
        query = scope["query_string"]
        if b"authorization" not in headers and b"X-Amz-" not in query:
            raise StsFault("MissingAuthenticationToken", "Request is missing Authentication Token", 403)
        try:
            key, claim = await self._authenticator.identify(
                scope["method"].encode(), scope["raw_path"], query, headers, scope.get("agentkeep.session")
            )
            self._authenticator.prove(claim, key, hashlib.sha256(body).hexdigest())
        except UnauthorizedException as error:
            code = "InvalidClientTokenId" if "security token" in error.message else "SignatureDoesNotMatch"
            raise StsFault(code, error.message, 403) from None
        return {"Arn": key.caller.principal, "UserId": _user_id(key), "Account": self._deployment.account}


def _parsed(fields: Mapping[str, str]) -> AssumeRequest:
    """Raises StsFault: ValidationError, in the words of AWS."""
    faults = [_fault(name, "Member must not be null", "null ") for name in _REQUIRED if name not in fields]
    for name, (low, high) in _LENGTHS.items():
        if name in fields and not low <= len(fields[name]) <= high:
            faults.append(_fault(name, f"Member must have length between {low} and {high}"))
    if not _SESSION_NAME.fullmatch(fields.get("RoleSessionName", "")):
        faults.append(
            _fault("RoleSessionName", f"Member must satisfy regular expression pattern: {_SESSION_NAME.pattern}")
        )
    seconds = fields.get("DurationSeconds", str(SHORTEST))
    if not (_SECONDS.fullmatch(seconds) and SHORTEST <= int(seconds) <= LONGEST):
        faults.append(_fault("DurationSeconds", f"Member must have value between {SHORTEST} and {LONGEST}"))
    if "ProviderId" in fields or any(name.startswith("PolicyArns.") for name in fields):
        faults.append(
            "ProviderId and PolicyArns are not supported here: tokens are OpenID Connect's; narrow a role by Policy"
        )
    if faults:
        count = f"{len(faults)} validation error{'s' if len(faults) > 1 else ''} detected: "
        raise StsFault("ValidationError", count + "; ".join(faults))
    return AssumeRequest(
        fields["RoleArn"],
        fields["RoleSessionName"],
        fields["WebIdentityToken"],
        int(seconds) if "DurationSeconds" in fields else None,
        fields.get("Policy"),
    )


def _fault(name: str, constraint: str, value: str = "") -> str:
    return f"Value {value}at '{name[0].lower()}{name[1:]}' failed to satisfy constraint: {constraint}"


def _user_id(key: AccessKey) -> str:
    """In IAM's form: `AIDA...` of an operator, `AROA...:<session>` of a role's or an agent's session."""
    principal, caller = key.caller.principal, key.caller
    if caller.kind is CallerKind.OPERATOR:
        return unique_id("AIDA", principal)
    role, _, name = principal.rpartition("/")
    return f"{unique_id('AROA', role)}:{name}"
