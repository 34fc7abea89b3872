"""AWS's Security Token Service with its wire: AssumeRoleWithWebIdentity and GetCallerIdentity, query protocol, XML.

It refuses what AWS refuses: tokens that are not signed by their issuer's published keys, have expired or are of another
audience; issuers that are no identity provider of the account; roles whose trust policy does not hold for the token;
lifetimes, session names and policies out of range. Its keys sign: GetCallerIdentity checks the signature by botocore's
own code. Tests break it (`failure`, `delay`, `up`) and read what it was asked (`requests`).
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import re
import secrets
import string
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import aiohttp
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

ACCOUNT = "111122223333"
NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
TAGS = "https://aws.amazon.com/tags"
_SESSION_NAME = re.compile(r"[\w+=,.@-]{2,64}", re.ASCII)
_ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"]


class Refusal(Exception):
    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code)
        self.code, self.message, self.status = code, message, status


@dataclass
class Role:
    name: str
    trust: dict[str, Any]
    longest: int = 3600

    @property
    def arn(self) -> str:
        return f"arn:aws:iam::{ACCOUNT}:role/{self.name}"


@dataclass(frozen=True)
class Given:
    """What one key that was given out is good for."""

    secret: str
    token: str
    expires: datetime
    arn: str
    user_id: str
    policy: dict[str, Any] | None
    policy_arns: tuple[str, ...]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Asked:
    form: Mapping[str, str]
    headers: Mapping[str, str]
    method: str = "POST"


@dataclass
class StsStandIn:
    """`now`: its clock. `packed_limit`: characters that session policies and tags may have together."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    packed_limit: int = 4000
    roles: dict[str, Role] = field(default_factory=dict)
    given: dict[str, Given] = field(default_factory=dict)
    requests: list[Asked] = field(default_factory=list)
    delay: float = 0.0
    failure: Callable[[Asked], web.Response] | None = None
    url: str = ""

    def __post_init__(self) -> None:
        self._providers: dict[str, tuple[str, frozenset[str]]] = {}
        self._runner: web.AppRunner | None = None

    # What its administrator configures.

    def trust(self, issuer: str, *audiences: str) -> None:
        """An OIDC identity provider of the account (IAM knows it by its URL without the scheme)."""
        self._providers[issuer] = (issuer.split("://", 1)[1], frozenset(audiences))

    def role(self, name: str, issuer: str, conditions: Mapping[str, Any] | None = None, longest: int = 3600) -> str:
        """The ARN of a role that `issuer`'s users may assume where `conditions` hold; `{idp}` stands for its URL."""
        idp = issuer.split("://", 1)[1]
        document = json.loads(json.dumps(conditions or {}).replace("{idp}", idp))
        statement = {
            "Effect": "Allow",
            "Principal": {"Federated": f"arn:aws:iam::{ACCOUNT}:oidc-provider/{idp}"},
            "Action": ["sts:AssumeRoleWithWebIdentity", "sts:TagSession"],
            "Condition": document,
        }
        role = Role(name, {"Version": "2012-10-17", "Statement": [statement]}, longest)
        self.roles[role.arn] = role
        return role.arn

    def fails(self, code: str, status: int = 400, message: str = "why") -> None:
        self.failure = lambda _: _error(code, message, status)

    def fails_repeating(self, code: str = "InvalidIdentityToken") -> None:
        """As servers do that repeat what they were sent."""
        self.failure = lambda asked: _error(code, json.dumps(dict(asked.form)), 400)

    @property
    def exchanges(self) -> int:
        return sum(asked.form.get("Action") == "AssumeRoleWithWebIdentity" for asked in self.requests)

    # Its life.

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_route("*", "/", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # Its wire.

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        form = dict(parse_qsl(body.decode() or request.query_string, keep_blank_values=True))
        asked = Asked(form, {name.lower(): value for name, value in request.headers.items()}, request.method)
        self.requests.append(asked)
        await asyncio.sleep(self.delay)
        if self.failure is not None:
            return self.failure(asked)
        actions: dict[str, Callable[[], Awaitable[str]]] = {
            "AssumeRoleWithWebIdentity": lambda: self._assume(form),
            "GetCallerIdentity": lambda: self._identity(asked, str(request.url), body),
        }
        action = form.get("Action", "")
        try:
            if action not in actions or form.get("Version") != "2011-06-15":
                raise Refusal("InvalidAction", f"Could not find operation {action}")
            result = await actions[action]()
        except Refusal as refusal:
            return _error(refusal.code, refusal.message, refusal.status)
        return web.Response(
            text=f'<{action}Response xmlns="{NAMESPACE}"><{action}Result>{result}</{action}Result>'
            f"<ResponseMetadata><RequestId>{secrets.token_hex(8)}</RequestId></ResponseMetadata></{action}Response>",
            content_type="text/xml",
        )

    async def _assume(self, form: dict[str, str]) -> str:
        seconds, name = form.get("DurationSeconds", "3600"), form.get("RoleSessionName", "")
        if not _SESSION_NAME.fullmatch(name):
            raise Refusal("ValidationError", "Value at 'roleSessionName' failed to satisfy constraint")
        if not 4 <= len(form.get("WebIdentityToken", "")) <= 20_000:
            raise Refusal("ValidationError", "Value at 'webIdentityToken' failed to satisfy constraint")
        idp, audience, claims = await self._verified(form["WebIdentityToken"])
        role = self.roles.get(form.get("RoleArn", ""))
        tags = claims.get(TAGS, {}).get("principal_tags", {})
        tags = {key: value[0] if isinstance(value, list) else value for key, value in tags.items()}
        if role is None or not _trusts(role.trust, idp, audience, claims, name, tags):
            raise Refusal("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity", 403)
        if not seconds.isdecimal() or not 900 <= int(seconds) <= role.longest:
            raise Refusal("ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration of the role")
        policy = self._policy(form.get("Policy"), tags)
        arns = tuple(value for key, value in sorted(form.items()) if key.startswith("PolicyArns.member."))
        key_id = "ASIA" + "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(16))
        role_id = "AROA" + role.name.upper().encode().hex().upper()[:17].ljust(17, "0")
        given = Given(
            secrets.token_urlsafe(30),
            secrets.token_urlsafe(700),
            (self.now() + timedelta(seconds=int(seconds))).replace(microsecond=0),
            f"arn:aws:sts::{ACCOUNT}:assumed-role/{role.name.rsplit('/', 1)[-1]}/{name}",
            f"{role_id}:{name}",
            policy,
            arns,
            tags,
        )
        self.given[key_id] = given
        return _xml(
            {
                "SubjectFromWebIdentityToken": claims["sub"],
                "Audience": audience,
                "AssumedRoleUser": {"Arn": given.arn, "AssumedRoleId": given.user_id},
                "Credentials": {
                    "SessionToken": given.token,
                    "SecretAccessKey": given.secret,
                    "Expiration": given.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "AccessKeyId": key_id,
                },
                "Provider": f"arn:aws:iam::{ACCOUNT}:oidc-provider/{idp}",
            }
        )

    async def _verified(self, token: str) -> tuple[str, str, dict[str, Any]]:
        """The identity provider, the audience and the claims of a token."""
        try:
            claims = json.loads(jws.extract_compact(token.encode()).payload)
            issuer = claims["iss"]
        except (JoseError, ValueError, KeyError, TypeError):
            raise Refusal("InvalidIdentityToken", "The ID Token provided is not a valid JWT") from None
        if issuer not in self._providers:
            raise Refusal("InvalidIdentityToken", f"No OpenIDConnect provider found in your account for {issuer}")
        idp, audiences = self._providers[issuer]
        keys = await _published(issuer)
        try:
            jws.deserialize_compact(token, keys, algorithms=_ALGORITHMS)
        except (JoseError, ValueError):
            raise Refusal("InvalidIdentityToken", "The token's signature is not its issuer's") from None
        if not isinstance(claims.get("exp"), int) or claims["exp"] <= self.now().timestamp():
            raise Refusal("ExpiredTokenException", "Token expired: current date/time must be before the expiration")
        # Where both are there, AWS takes azp for the audience.
        said = claims.get("azp") or claims.get("aud")
        found = sorted(audiences.intersection([said] if isinstance(said, str) else said or []))
        if not found:
            raise Refusal("InvalidIdentityToken", "Incorrect token audience")
        return idp, found[0], claims

    def _policy(self, text: str | None, tags: Mapping[str, str]) -> dict[str, Any] | None:
        if text is None:
            return None
        if len(text) > 2048:
            raise Refusal("ValidationError", "Value at 'policy' failed to satisfy constraint: length at most 2048")
        try:
            policy = json.loads(text)
            if policy["Version"] not in ("2012-10-17", "2008-10-17") or not policy["Statement"]:
                raise ValueError
            for statement in policy["Statement"]:
                if statement["Effect"] not in ("Allow", "Deny") or not statement["Action"]:
                    raise ValueError
        except (ValueError, KeyError, TypeError):
            raise Refusal("MalformedPolicyDocument", "Syntax errors in policy.") from None
        if len(text) + sum(len(key) + len(value) for key, value in tags.items()) > self.packed_limit:
            raise Refusal("PackedPolicyTooLarge", "Packed size of session tags and policies is 120%.")
        found: dict[str, Any] = policy
        return found

    async def _identity(self, asked: Asked, url: str, body: bytes) -> str:
        scope = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=(\w+)/(\d{8})/([\w-]+)/sts/aws4_request, "
            r"SignedHeaders=([\w;-]+), Signature=([0-9a-f]{64})",
            asked.headers.get("authorization", ""),
        )
        if scope is None:
            raise Refusal("MissingAuthenticationToken", "Request is missing Authentication Token", 403)
        key_id, _, region, names, signature = scope.groups()
        given = self.given.get(key_id)
        if given is None or asked.headers.get("x-amz-security-token") != given.token:
            raise Refusal("InvalidClientTokenId", "The security token included in the request is invalid", 403)
        if given.expires <= self.now():
            raise Refusal("ExpiredToken", "The security token included in the request is expired", 403)
        signer = SigV4Auth(Credentials(key_id, given.secret, given.token), "sts", region)
        headers = {name: asked.headers[name] for name in names.split(";")}
        request = AWSRequest(asked.method, url, data=body, headers=headers)
        request.context["timestamp"] = asked.headers["x-amz-date"]
        ours = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
        if not secrets.compare_digest(ours, signature):
            raise Refusal("SignatureDoesNotMatch", "The request signature we calculated does not match", 403)
        return _xml({"Arn": given.arn, "UserId": given.user_id, "Account": ACCOUNT})


def _trusts(
    policy: dict[str, Any], idp: str, audience: str, claims: dict[str, Any], name: str, tags: Mapping[str, str]
) -> bool:
    """Whether a statement allows it: principal, actions and every condition."""
    context: dict[str, Any] = {
        f"{idp}:aud": audience,
        f"{idp}:sub": claims["sub"],
        f"{idp}:amr": claims.get("amr", []),
        "sts:RoleSessionName": name,
        **{f"aws:RequestTag/{key}": value for key, value in tags.items()},
    }
    needed = {"sts:AssumeRoleWithWebIdentity", *({"sts:TagSession"} if tags else ())}
    for statement in policy["Statement"]:
        principal = statement["Principal"].get("Federated")
        if (
            statement["Effect"] == "Allow"
            and principal == f"arn:aws:iam::{ACCOUNT}:oidc-provider/{idp}"
            and needed <= set(statement["Action"])
            and all(
                _holds(operator, context.get(key), wanted)
                for operator, conditions in statement["Condition"].items()
                for key, wanted in conditions.items()
            )
        ):
            return True
    return False


def _holds(operator: str, value: Any, wanted: Any) -> bool:
    values = [wanted] if isinstance(wanted, str) else wanted
    if value is None:
        return False
    match operator:
        case "StringEquals":
            return value in values
        case "StringLike":
            return any(fnmatch.fnmatchcase(value, pattern.replace("[", "[[]")) for pattern in values)
        case "ForAnyValue:StringEquals":
            return bool(set(value).intersection(values))
    raise AssertionError(f"this stand-in does not know the condition {operator}")


async def _published(issuer: str) -> KeySet:
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as client:
            async with client.get(f"{issuer}/.well-known/openid-configuration") as response:
                metadata = await response.json()
            async with client.get(metadata["jwks_uri"]) as response:
                return KeySet.import_key_set(await response.json())
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TimeoutError):
        message = "Couldn't retrieve verification key from your identity provider"
        raise Refusal("IDPCommunicationError", message) from None


def _xml(document: Mapping[str, Any]) -> str:
    return "".join(
        f"<{name}>{_xml(value) if isinstance(value, Mapping) else escape(str(value))}</{name}>"
        for name, value in document.items()
    )


def _error(code: str, message: str, status: int) -> web.Response:
    error = _xml({"Type": "Sender", "Code": code, "Message": message})
    return web.Response(
        status=status,
        text=f'<ErrorResponse xmlns="{NAMESPACE}"><Error>{error}</Error>'
        f"<RequestId>{secrets.token_hex(8)}</RequestId></ErrorResponse>",
        content_type="text/xml",
    )


@contextmanager
def running_sts(**options: Any) -> Iterator[StsStandIn]:
    """In a thread of its own, for tests that have no event loop."""
    sts = StsStandIn(**options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(sts.start(), loop).result(10)
        yield sts
    finally:
        asyncio.run_coroutine_threadsafe(sts.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
