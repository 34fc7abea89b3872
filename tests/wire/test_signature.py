"""Signature Version 4, verified against botocore's signers: what they sign is accepted, what is changed is not."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from agentkeep.core.errors import UnauthorizedException
from agentkeep.wire import canonical
from agentkeep.wire.signature import EMPTY_SHA256, Claim, parse

KEY, SECRET, TOKEN = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "session/token+=="
ARN = "arn%3Aaws%3Abedrock-agentcore%3Aus-east-1%3A000000000000%3Aruntime%2Fagent-0123456789"


@dataclass
class Sent:
    method: bytes
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    now: float = field(default_factory=time.time)

    def claim(self, **options: Any) -> Claim:
        return parse(self.method, self.path, self.query, self.headers, self.now, **options)

    def check(self, secret: str = SECRET, token: str | None = None, **options: Any) -> Claim:
        claim = self.claim(**options)
        claim.verify(secret, token, sha256(self.body).hexdigest())
        return claim

    def header(self, name: bytes, value: bytes | None) -> "Sent":
        """With one header replaced, or without it."""
        kept = [(n, v) for n, v in self.headers if n.lower() != name.lower()]
        return replace(self, headers=kept if value is None else [*kept, (name, value)])

    def get(self, name: bytes) -> bytes:
        return next(v for n, v in self.headers if n.lower() == name)

    def refused(self, *args: Any, **kwargs: Any) -> str:
        with pytest.raises(UnauthorizedException) as caught:
            self.check(*args, **kwargs)
        return caught.value.message


def signed(
    method: str = "POST",
    path: str = f"/runtimes/{ARN}/invocations",
    query: str = "qualifier=DEFAULT",
    headers: dict[str, str] | None = None,
    body: bytes = b'{"prompt": "hello"}',
    token: str | None = None,
    presigned: int | None = None,
    service: str = "bedrock-agentcore",
    region: str = "us-east-1",
    host: str = "127.0.0.1:4780",
) -> Sent:
    request = AWSRequest(
        method, f"http://{host}{path}" + (f"?{query}" if query else ""), headers=dict(headers or {}), data=body
    )
    credentials = Credentials(KEY, SECRET, token)
    if presigned is None:
        SigV4Auth(credentials, service, region).add_auth(request)
    else:
        SigV4QueryAuth(credentials, service, region, presigned).add_auth(request)
    url = urlsplit(request.url)
    sent = [(b"Host", host.encode()), (b"User-Agent", b"Boto3/1.44.5"), (b"Content-Length", b"%d" % len(body))]
    sent += [(name.encode(), value.encode()) for name, value in request.headers.items()]
    return Sent(method.encode(), url.path.encode(), url.query.encode(), sent, body)


REQUESTS = {
    "runtime": lambda: signed(headers={"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": "s" * 33}),
    "no body": lambda: signed("GET", f"/tags/{ARN}", "", body=b""),
    "actor": lambda: signed("POST", "/memories/m-0123456789/actor/user%2F1%3Aa/sessions/s", ""),
    "event": lambda: signed("GET", "/memories/m/actor/a/sessions/s/events/0001%23ff", "", body=b""),
    "list": lambda: signed("POST", "/runtimes/", "nextToken=a%2Bb%2Fc%3D%3D&maxResults=7", body=b""),
    "tags": lambda: signed("DELETE", f"/tags/{ARN}", "tagKeys=b%20c&tagKeys=a&tagKeys=%C3%A9", body=b""),
    "unreserved": lambda: signed("GET", "/memories/a-b_c.d~e/details", "view=~-_.", body=b""),
    "card": lambda: signed("GET", f"/runtimes/{ARN}/invocations/.well-known/agent-card.json", "", body=b""),
    "blanks": lambda: signed(headers={"X-Amzn-Custom": "  a   b \t c ", "Content-Type": "text/plain"}),
    "bedrock": lambda: signed("POST", "/model/qwen3%3A8b/converse", "", service="bedrock"),
    "region": lambda: signed(region="eu-central-1"),
    "host": lambda: signed(host="agents.example.com"),
    "ipv6": lambda: signed(host="[::1]:4780"),
    "stated hash": lambda: signed(headers={"X-Amz-Content-SHA256": sha256(b'{"prompt": "hello"}').hexdigest()}),
    "binary": lambda: signed(body=bytes(range(256))),
    "root": lambda: signed("GET", "/", "", body=b""),
    "dots": lambda: signed("GET", "/a/../b/./c//d/", "", body=b""),
}


@pytest.mark.parametrize("request_of", REQUESTS.values(), ids=REQUESTS)
def test_what_botocore_signs_is_accepted(request_of: Callable[[], Sent]) -> None:
    claim = request_of().check()
    assert claim.access_key_id == KEY
    assert not claim.presigned


def test_a_folded_mapping_of_headers_is_the_same() -> None:
    sent = signed()
    folded = {name.lower(): value for name, value in sent.headers}
    claim = parse(sent.method, sent.path, sent.query, folded, sent.now)
    claim.verify(SECRET, None, sha256(sent.body).hexdigest().encode())
    assert (claim.service, claim.region) == (b"bedrock-agentcore", b"us-east-1")


def test_repeated_headers_are_joined_in_order() -> None:
    sent = signed(headers={"X-Amzn-Custom": "a,b"})
    kept = [(n, v) for n, v in sent.headers if n != b"X-Amzn-Custom"]
    replace(sent, headers=[*kept, (b"x-amzn-custom", b" a "), (b"X-AMZN-CUSTOM", b"b")]).check()
    replace(sent, headers=[*kept, (b"x-amzn-custom", b"b"), (b"x-amzn-custom", b"a")]).refused()


MISMATCH = "The request signature we calculated does not match the signature you provided"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, method=b"PUT"), MISMATCH),
        (lambda s: replace(s, path=s.path + b"x"), MISMATCH),
        (lambda s: replace(s, path=s.path.replace(b"%3A", b":")), MISMATCH),
        (lambda s: replace(s, path=s.path.replace(b"%3A", b"%3a")), MISMATCH),
        (lambda s: replace(s, query=b"qualifier=OTHER"), MISMATCH),
        (lambda s: replace(s, query=s.query + b"&accountId=1"), MISMATCH),
        (lambda s: replace(s, query=b""), MISMATCH),
        (lambda s: replace(s, body=s.body + b" "), MISMATCH),
        (lambda s: replace(s, body=b""), MISMATCH),
        (lambda s: s.header(b"Host", b"evil.example.com"), MISMATCH),
        (lambda s: s.header(b"Host", None), "A header named in SignedHeaders was not sent"),
        (lambda s: s.header(b"X-Amzn-Custom", b"other"), MISMATCH),
        (lambda s: s.header(b"X-Amz-Added", b"1"), "'x-amz-added' must be a 'SignedHeader'"),
        (lambda s: s.header(b"X-Amz-Security-Token", b"t"), "'x-amz-security-token' must be a 'SignedHeader'"),
        (lambda s: s.header(b"X-Amz-Content-Sha256", EMPTY_SHA256.encode()), "must be a 'SignedHeader'"),
        (lambda s: s.header(b"X-Amz-Date", None), "requires existence of an 'X-Amz-Date' header"),
        (lambda s: s.header(b"Content-Encoding", b"aws-chunked"), "aws-chunked bodies are not supported"),
        (lambda s: s.header(b"Authorization", None), "Missing Authentication Token"),
    ],
)
def test_what_was_changed_after_signing_is_refused(change: Callable[[Sent], Sent], message: str) -> None:
    sent = signed(headers={"X-Amzn-Custom": "value"})
    sent.check()
    assert message in change(sent).refused()


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (rb"AWS4-HMAC-SHA256 ", b"AWS4-HMAC-SHA512 ", "Authorization scheme 'AWS4-HMAC-SHA512'"),
        (rb"AWS4-HMAC-SHA256 .*", b"Bearer abc", "Authorization scheme 'Bearer'"),
        (rb"AWS4-HMAC-SHA256 .*", b"AWS4-HMAC-SHA256 ", "requires 'Signature'"),
        (rb"Credential=[^,]*, ", b"", "requires 'Credential' parameter"),
        (rb"SignedHeaders=[^,]*, ", b"", "requires 'SignedHeaders' parameter"),
        (rb", Signature=.*", b"", "requires 'Signature' parameter"),
        (rb"Signature=.{4}", b"Signature=zzzz", "64 hexadecimal digits"),
        (rb"Signature=.{4}", b"Signature=", "64 hexadecimal digits"),
        (rb"Signature=.{4}", b"Signature=0000", MISMATCH),
        (rb"Credential=AKIDEXAMPLE", b"Credential=AK!D", "valid access key id"),
        (rb"Credential=AKIDEXAMPLE", b"Credential=", "valid access key id"),
        (rb"/us-east-1/", b"/eu-west-1/", MISMATCH),
        (rb"/us-east-1/", b"/US EAST/", "valid access key id, date and region"),
        (rb"/bedrock-agentcore/", b"/s3/", "correct service: 'bedrock' or 'bedrock-agentcore'"),
        (rb"/bedrock-agentcore/", b"/bedrock/", MISMATCH),
        (rb"aws4_request", b"aws3_request", "Credential must be of the form"),
        (rb"AKIDEXAMPLE/\d{8}", b"AKIDEXAMPLE/20200101", "Date in Credential scope does not match"),
        (rb"AKIDEXAMPLE/\d{8}", b"AKIDEXAMPLE/today", "valid access key id, date and region"),
        (rb"host;", b"", "'Host' must be a 'SignedHeader'"),
        (rb"host;", b"Host;", "must be lower-case"),
        (rb"host;", b"host;host;", "must be lower-case"),
        (rb"host;", b"zzz;host;", "must be lower-case"),
        (rb"host;", b"host;missing;", "A header named in SignedHeaders was not sent"),
        (rb"x-amz-date", b"x-amz-dates", "'x-amz-date' must be a 'SignedHeader'"),
        (rb"SignedHeaders=", b"Credential=a,SignedHeaders=", "malformed"),
        (rb"SignedHeaders=", b"nothing,SignedHeaders=", "malformed"),
    ],
)
def test_bad_authorization_headers_are_told_what_is_wrong(pattern: bytes, replacement: bytes, message: str) -> None:
    sent = signed("GET", "/memories/m/details", "", body=b"")
    authorization, changes = re.subn(pattern, replacement, sent.get(b"authorization"), count=1)
    assert changes
    assert message in sent.header(b"Authorization", authorization).refused()


def test_the_secret_decides() -> None:
    assert MISMATCH in signed().refused("another secret")


@pytest.mark.parametrize("offset", [-299, 299])
def test_clocks_may_differ_a_little(offset: float) -> None:
    sent = signed()
    replace(sent, now=sent.now + offset).check()


@pytest.mark.parametrize(("offset", "message"), [(-302, "Signature not yet current"), (302, "Signature expired")])
def test_clocks_may_not_differ_much(offset: float, message: str) -> None:
    sent = signed()
    assert message in replace(sent, now=sent.now + offset).refused()


@pytest.mark.parametrize(
    "stamp", [b"", b"now", b"20261122", b"20261322T101010Z", b"20261122T101010Zx", b"2026-11-22T10:10:10Z", b"9" * 9999]
)
def test_dates_that_are_none(stamp: bytes) -> None:
    assert "X-Amz-Date must be in ISO-8601" in signed().header(b"X-Amz-Date", stamp).refused()


def test_session_tokens_must_be_the_keys_own() -> None:
    sent = signed(token=TOKEN)
    assert sent.check(token=TOKEN).security_token == TOKEN.encode()
    assert "security token" in sent.refused(token="another")
    assert "security token" in sent.refused(token=None)  # an operator key has none
    assert "security token" in signed().refused(token=TOKEN)  # a session key without its token
    assert MISMATCH in sent.header(b"X-Amz-Security-Token", b"another").refused(token="another")
    presigned = signed("GET", "/runtimes/a/ws", "", body=b"", token=TOKEN, presigned=60)
    assert presigned.check(token=TOKEN).presigned
    assert "security token" in presigned.refused(token=None)


def test_a_stated_hash_must_be_the_bodys() -> None:
    body_hash = sha256(b"other").hexdigest()
    sent = signed(headers={"X-Amz-Content-SHA256": body_hash})
    assert "does not match what was computed" in sent.refused()
    replace(sent, body=b"other").check()


def test_unsigned_payloads_are_for_tls_only() -> None:
    sent = signed(headers={"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"})
    assert "UNSIGNED-PAYLOAD is accepted over TLS only" in sent.refused()
    sent.check(allow_unsigned_payload=True)
    replace(sent, body=b"any").check(allow_unsigned_payload=True)


@pytest.mark.parametrize("stated", ["STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"])
def test_aws_chunked_is_refused(stated: str) -> None:
    sent = signed(headers={"X-Amz-Content-SHA256": stated})
    assert "aws-chunked bodies are not supported" in sent.refused(allow_unsigned_payload=True)


# Presigned.


def presigned(expires: int = 300, **more: Any) -> Sent:
    return signed("GET", f"/runtimes/{ARN}/ws", "qualifier=DEFAULT", body=b"", presigned=expires, **more)


def test_presigned_urls_are_accepted_until_they_expire() -> None:
    sent = presigned(60)
    claim = sent.check()
    assert claim.presigned
    assert claim.signed_headers == (b"host",)
    replace(sent, now=sent.now + 58).check()
    assert "too old" in replace(sent, now=sent.now + 62).refused()
    assert "not yet current" in replace(sent, now=sent.now - 302).refused()


@pytest.mark.parametrize("expires", [301, 604800])
def test_presigned_urls_do_not_live_long(expires: int) -> None:
    assert "X-Amz-Expires must be between 1 and 300" in presigned(expires).refused()
    presigned(expires).check(max_presigned=604800)


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (rb"X-Amz-Expires=300", b"X-Amz-Expires=299", MISMATCH),
        (rb"X-Amz-Expires=300", b"X-Amz-Expires=-1", "X-Amz-Expires must be"),
        (rb"X-Amz-Expires=300", b"X-Amz-Expires=3e2", "X-Amz-Expires must be"),
        (rb"X-Amz-Expires=300", b"X-Amz-Expires=%s" % (b"1" * 5000), "X-Amz-Expires must be"),
        (rb"X-Amz-Expires=300", b"X-Amz-Expires=%D9%A1", "X-Amz-Expires must be"),
        (rb"X-Amz-Expires=300&?", b"", "must include 'X-Amz-Expires'"),
        (rb"X-Amz-Credential=[^&]*&?", b"", "must include 'X-Amz-Credential'"),
        (rb"X-Amz-SignedHeaders=[^&]*&?", b"", "must include 'X-Amz-SignedHeaders'"),
        (rb"X-Amz-SignedHeaders=host", b"X-Amz-SignedHeaders=", "must be lower-case"),
        (rb"X-Amz-SignedHeaders=host", b"X-Amz-SignedHeaders=accept", "'Host' must be"),
        (rb"X-Amz-Date=[^&]*", b"X-Amz-Date=now", "X-Amz-Date must be in ISO-8601"),
        (rb"X-Amz-Algorithm=[^&]*", b"X-Amz-Algorithm=none", "X-Amz-Algorithm must be"),
        (rb"X-Amz-Algorithm=[^&]*&?", b"", "must include 'X-Amz-Algorithm'"),
        (rb"X-Amz-Signature=.*", b"X-Amz-Signature=", "X-Amz-Signature must be"),
        (rb"&X-Amz-Signature=.*", b"", "must include 'X-Amz-Signature'"),
        (rb"$", b"&X-Amz-Date=20200101T000000Z", "must be given once"),
        (rb"$", b"&%58-Amz-Expires=9", "must be given once"),
        (rb"$", b"&extra=1", MISMATCH),
        (rb"qualifier=DEFAULT", b"qualifier=OTHER", MISMATCH),
        (rb".*", b"", "Missing Authentication Token"),
    ],
)
def test_changed_presigned_urls_are_refused(pattern: bytes, replacement: bytes, message: str) -> None:
    sent = presigned()
    query, changes = re.subn(pattern, replacement, sent.query, count=1)
    assert changes
    assert message in replace(sent, query=query).refused()


def test_presigned_urls_bind_method_path_host_and_body() -> None:
    sent = presigned()
    for change in (
        replace(sent, method=b"POST"),
        replace(sent, path=b"/runtimes/other/ws"),
        replace(sent, body=b"x"),
        sent.header(b"Host", b"evil"),
        sent.header(b"X-Amz-Bedrock-AgentCore-Identity-WAT", b"token"),
    ):
        change.refused()


def test_one_proof_at_a_time() -> None:
    sent = presigned()
    both = sent.header(b"Authorization", signed().get(b"authorization"))
    assert "Only one auth mechanism" in both.refused()


def test_nothing_secret_is_shown() -> None:
    claim = signed(token=TOKEN).check(token=TOKEN)
    assert repr(claim) == "Claim('AKIDEXAMPLE')"


def test_caches_do_not_keep_long_inputs() -> None:
    before = canonical._short_path.cache_info().currsize
    canonical.canonical_path(b"/" + b"a" * 30_000)
    assert canonical._short_path.cache_info().currsize == before
    maxsize = canonical._short_path.cache_info().maxsize
    assert maxsize is not None
    assert maxsize <= 4096


AGENTCORE = b"X-Amzn-Bedrock-AgentCore-"


def test_a_user_is_named_under_the_signature() -> None:
    """IDN-5: a request that was signed for nobody, or for one user, is not sent again for another."""
    sent = signed()
    assert "must be a 'SignedHeader'" in sent.header(AGENTCORE + b"Runtime-User-Id", b"alice").refused()
    # As the SDK's `generate_ws_connection` sends it.
    sent.header(AGENTCORE + b"Runtime-Session-Id", b"s" * 33).check()


@pytest.mark.parametrize("name", [b"Runtime-User-Id", b"Runtime-Session-Id", b"Runtime-Custom-Role"])
def test_nothing_is_added_to_a_presigned_url(name: bytes) -> None:
    """IDN-5: whoever it was given to says nothing more than was signed."""
    assert "must be a 'SignedHeader'" in presigned().header(AGENTCORE + name, b"x" * 33).refused()
    presigned().header(b"X-Amzn-Trace-Id", b"Root=1").check()  # load balancers add it
