"""The attacks on identity that are known, in one list: each has a name, a test, and a control that succeeds.

    tokens        of users, forged or taken from elsewhere       TOKENS
    signatures    of requests, changed on their way               SIGNATURES, OLD_AND_NEW
    smuggling     past the edge, as what was not signed           TARGETS, FIELDS, FRAMES
    deputies      who are talked into another's rights            DEPUTIES, KEYS, WORKLOAD_TOKENS
    elsewhere     what other files of the tests have long proved  ELSEWHERE

To add one is to add a line. What an agent tries from inside its sandbox is tests/agents/intruder/intrusions.py.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attacked_service import NGINX, AttackedService, Request, attacked_service, edge_before, status_of, statuses
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from sts_stand_in import ACCOUNT, StsStandIn

from agentkeep.core.call import Call, SessionRef, User
from agentkeep.core.errors import AccessDeniedException, ServiceError, UnauthorizedException
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.sts.sessions import role_session_name
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.storage.valkey import ValkeyKeyValueStore

TESTS = Path(__file__).parents[1]

# Users' tokens.


def _b64(value: Any) -> str:
    data = json.dumps(value).encode() if isinstance(value, dict) else value
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _without_signature(provider: Any, algorithm: str) -> str:
    head, claims, _ = provider.token(header={"alg": algorithm}).split(".")
    return f"{head}.{claims}."


def _other_claims(provider: Any, **claims: Any) -> str:
    head, _, signature = provider.token().split(".")
    return f"{head}.{_b64(provider.claims(**claims))}.{signature}"


def _now(provider: Any) -> int:
    return int(provider.clock.now().timestamp())


#: What the attacker makes of `provider` and of a key of his own (`mine`, under the id of the provider's).
TOKENS: dict[str, Callable[[Any, Any], str]] = {
    # RFC 8725, 2.1 and 3.1: the algorithm is not the token's to choose.
    "alg none": lambda p, mine: _without_signature(p, "none"),
    "alg none in another case": lambda p, mine: _without_signature(p, "nOnE"),
    "no alg": lambda p, mine: _without_signature(p, ""),
    "alg none with the signature of another token": lambda p, mine: p.token(header={"alg": "none"}),
    "HS256 with the public key as PEM": lambda p, mine: p.hmac_token(p.keys[0].pem),
    "HS256 with the public key as JWK": lambda p, mine: p.hmac_token(json.dumps(p.keys[0].jwk).encode()),
    "HS256 with the modulus": lambda p, mine: p.hmac_token(p.keys[0].jwk["n"].encode()),
    "HS256 with nothing": lambda p, mine: p.hmac_token(b"\0"),
    "an algorithm of another key type": lambda p, mine: p.token(header={"alg": "ES256"}),
    "an algorithm of another curve": lambda p, mine: p.token(header={"alg": "EdDSA"}),
    "another padding": lambda p, mine: p.token(header={"alg": "PS256"}),
    "another hash": lambda p, mine: p.token(header={"alg": "RS512"}),
    # Which key is the provider's to say.
    "a key of his own under the same id": lambda p, mine: p.token(mine),
    "a key of his own without an id": lambda p, mine: p.token(mine, header={"kid": ""}),
    "a key id that is a path": lambda p, mine: p.token(mine, header={"kid": "../../../../dev/null"}),
    "a key id that is a query": lambda p, mine: p.token(mine, header={"kid": "' UNION SELECT 'x"}),
    "a key id that is a URL": lambda p, mine: p.token(mine, header={"kid": f"{p.url}/elsewhere"}),
    "a key id that is a list": lambda p, mine: p.token(mine, header={"kid": ["first"]}),
    "his key in the header": lambda p, mine: p.token(mine, header={"jwk": mine.jwk}),
    "his key in the header, and no id": lambda p, mine: p.token(mine, header={"jwk": mine.jwk, "kid": "mine"}),
    "where his keys are (jku)": lambda p, mine: p.token(mine, header={"jku": f"{p.url}/elsewhere", "kid": "mine"}),
    "where his certificate is (x5u)": lambda p, mine: p.token(mine, header={"x5u": f"{p.url}/elsewhere"}),
    "his certificate (x5c)": lambda p, mine: p.token(mine, header={"x5c": ["MIIB"], "x5t": "AAAA"}),
    # What is said must be what was signed.
    "another user's claims": lambda p, mine: _other_claims(p, sub="bob"),
    "a longer life": lambda p, mine: _other_claims(p, exp=_now(p) + 86_400),
    "a signature cut short": lambda p, mine: p.token()[:-4],
    "an extension that must be understood": lambda p, mine: p.token(header={"crit": ["b64"], "b64": False}),
    "an encrypted token": lambda p, mine: p.token() + ".AA.AA",
    # From whom, for whom, when, what for.
    "another issuer": lambda p, mine: p.token(iss="https://evil.example.com"),
    "the issuer with a slash": lambda p, mine: p.token(iss=p.url + "/"),
    "a list of issuers": lambda p, mine: p.token(iss=[p.url, "https://evil.example.com"]),
    "another audience": lambda p, mine: p.token(aud="another-service"),
    "an audience that begins alike": lambda p, mine: p.token(aud="support-2"),
    "no audience": lambda p, mine: p.token(aud=None),
    "another client": lambda p, mine: p.token(azp="another-client"),
    "no scope that is needed": lambda p, mine: p.token(scope="chats openid"),
    "no claim that is needed": lambda p, mine: p.token(team="blue"),
    "expired": lambda p, mine: p.token(exp=_now(p) - 61),
    "no expiry": lambda p, mine: p.token(exp=None),
    "an expiry that is no time": lambda p, mine: p.token(exp="2099-01-01"),
    "not yet valid": lambda p, mine: p.token(nbf=_now(p) + 62),
    "issued in the future": lambda p, mine: p.token(iat=_now(p) + 62),
    "for nobody": lambda p, mine: p.token(sub=""),
    "a logout token": lambda p, mine: p.token(header={"typ": "logout+jwt"}),
    "a security event": lambda p, mine: p.token(header={"typ": "secevent+jwt"}),
    "a proof of possession": lambda p, mine: p.token(header={"typ": "dpop+jwt"}),
    "a service's call token": lambda p, mine: p.token(header={"typ": "agentkeep-call+jwt"}),
}


@pytest.fixture(scope="session")
def mine() -> list[Any]:
    """The attacker's key, once it is made."""
    return []


@pytest.mark.parametrize("forge", TOKENS.values(), ids=TOKENS)
async def test_tokens(
    plane: IdentityPlane, provider: Any, new_signing_key: Any, mine: list[Any], forge: Callable[[Any, Any], str]
) -> None:
    """IDN-5: at an authorizer with every rule there is."""
    if not mine:
        mine.append(new_signing_key("RS256", "first"))
    team = {"claimMatchValue": {"matchValueString": "red"}, "claimMatchOperator": "EQUALS"}
    authorizer = {
        "discoveryUrl": provider.discovery_url, "allowedAudience": ["support"], "allowedClients": ["web"],
        "allowedScopes": ["chat"], "customClaims": [{"inboundTokenClaimName": "team",
            "inboundTokenClaimValueType": "STRING", "authorizingClaimMatchValue": team}],
    }  # fmt: skip
    claims, provider.claims = provider.claims, lambda **said: claims(**{"scope": "chat", "team": "red", **said})
    assert (await plane.authorizers.verify(authorizer, provider.token())).id == "alice", "the control"
    token = forge(provider, mine[0])
    with pytest.raises((UnauthorizedException, AccessDeniedException)):
        await plane.authorizers.verify(authorizer, token)
    assert plane.authorizers.cached(authorizer, token) is None
    assert provider.fetched_elsewhere == 0, "a token says nothing of where keys are"
    assert (await plane.authorizers.verify(authorizer, provider.token())).id == "alice", "and harmed nobody"


# Signatures: each part of a request of an agent's, changed after it was signed.

ALICES = SessionRef("helper-1234567890", "alices-session-" + "0" * 30)
BOBS = SessionRef("helper-1234567890", "bobs-session-" + "0" * 30)
EVENT = json.dumps({"actorId": "alice", "sessionId": "s", "eventTimestamp": 1_790_000_000, "payload": []}).encode()
PLACE = "/memories/notes-0123456789/events?first=1&second=2"
HEADERS = {"Content-Type": "application/json", "X-Amzn-Custom": "as signed", "X-Amz-Target": "as signed"}


@pytest.fixture
async def service(plane: IdentityPlane) -> AsyncIterator[AttackedService]:
    async with attacked_service(plane) as service:
        yield service


#: `r`: alice's request; `bob`: keys of another session's.
SIGNATURES: dict[str, Callable[[Request, Credentials], Request]] = {
    "method": lambda r, bob: r.sent(method="PUT"),
    "path": lambda r, bob: r.sent(target=r.target.replace("notes", "diary")),
    "path, encoded otherwise": lambda r, bob: r.sent(target=r.target.replace("notes", "%6Eotes")),
    "path, with what signatures leave out": lambda r, bob: r.sent(target=r.target.replace("/memories", "//memories")),
    "path, with dots": lambda r, bob: r.sent(target="/memories/x/.." + r.target.removeprefix("/memories")),
    "query: a value": lambda r, bob: r.sent(target=r.target.replace("first=1", "first=3")),
    "query: one more": lambda r, bob: r.sent(target=r.target + "&third=3"),
    "query: one less": lambda r, bob: r.sent(target=r.target.replace("&second=2", "")),
    "query: values exchanged": lambda r, bob: r.sent(target=r.target.replace("first=1&second=2", "first=2&second=1")),
    "a signed header's value": lambda r, bob: r.header("X-Amzn-Custom", "other"),
    "a signed header left out": lambda r, bob: r.header("X-Amzn-Custom", None),
    "a signed header twice": lambda r, bob: r.added(("X-Amzn-Custom", "other")),
    "content type": lambda r, bob: r.header("Content-Type", "text/plain"),
    "target": lambda r, bob: r.header("X-Amz-Target", "other"),
    "host": lambda r, bob: r.header("Host", "evil.example"),
    "body": lambda r, bob: r.sent(body=r.body.replace(b"alice", b"bobby")),
    "body, longer": lambda r, bob: r.sent(body=r.body + b" "),
    "body, none": lambda r, bob: r.sent(body=b""),
    "date": lambda r, bob: r.header("X-Amz-Date", r.value("X-Amz-Date")[:-3] + "59Z"),
    "date twice": lambda r, bob: r.added(("X-Amz-Date", r.value("X-Amz-Date"))),
    "no date": lambda r, bob: r.header("X-Amz-Date", None),
    "the scope's date": lambda r, bob: r.authorization(r"/\d{8}/", "/20200101/"),
    "the scope's region": lambda r, bob: r.authorization("/us-west-2/", "/eu-west-1/"),
    "the scope's service": lambda r, bob: r.authorization("/bedrock-agentcore/", "/bedrock/"),
    "a service that is none": lambda r, bob: r.authorization("/bedrock-agentcore/", "/s3/"),
    "the scope's end": lambda r, bob: r.authorization("aws4_request", "aws5_request"),
    "the algorithm": lambda r, bob: r.authorization("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
    "the signature": lambda r, bob: r.authorization(r"Signature=.{4}", "Signature=0000"),
    "the signature, empty": lambda r, bob: r.authorization(r"Signature=.*", "Signature="),
    "no signature": lambda r, bob: r.header("Authorization", None),
    "two signatures": lambda r, bob: r.added(("Authorization", r.value("Authorization"))),
    "fewer signed headers": lambda r, bob: r.authorization("x-amzn-custom", "accept"),
    "the host unsigned": lambda r, bob: r.authorization("host;", ""),
    "headers in another order": lambda r, bob: r.authorization("content-type;host", "host;content-type"),
    "another's key id": lambda r, bob: r.authorization(r"ASIA\w{16}", bob.access_key),
    "a key id that is none": lambda r, bob: r.authorization(r"ASIA\w{16}", "ASIA" + "A" * 16),
    "no security token": lambda r, bob: r.header("X-Amz-Security-Token", None),
    "another's security token": lambda r, bob: r.header("X-Amz-Security-Token", str(bob.token)),
    "another's key id and security token": lambda r, bob: r.authorization(r"ASIA\w{16}", bob.access_key).header(
        "X-Amz-Security-Token", str(bob.token)
    ),
    "an x-amz header more": lambda r, bob: r.added(("X-Amz-Added", "1")),
    "an x-amz header more, in capitals": lambda r, bob: r.added(("X-AMZ-ADDED", "1")),
    "a user more": lambda r, bob: r.added(("X-Amzn-Bedrock-AgentCore-Runtime-User-Id", "bob")),
    "the body's hash, of another body": lambda r, bob: r.header("X-Amz-Content-SHA256", "0" * 64),
    "a body that is not signed": lambda r, bob: r.header("X-Amz-Content-SHA256", "UNSIGNED-PAYLOAD"),
    "a body signed in pieces": lambda r, bob: r.header("Content-Encoding", "aws-chunked"),
    "signed in the query too": lambda r, bob: r.sent(target=r.target + "&X-Amz-Algorithm=AWS4-HMAC-SHA256"),
    "a bearer token instead": lambda r, bob: r.header("Authorization", "Bearer e30.e30.AA"),
    "a password instead": lambda r, bob: r.header("Authorization", "Basic YWxpY2U6eA=="),
}


@pytest.mark.parametrize("tamper", SIGNATURES.values(), ids=SIGNATURES)
async def test_signatures(service: AttackedService, tamper: Callable[[Request, Credentials], Request]) -> None:
    """IDN-5: nothing is done of what was not signed, for nobody."""
    port, alice = await service.listen(ALICES), User("alice")
    keys = await service.keys_of(ALICES, alice)
    bob = await service.keys_of(BOBS, User("bob"))
    signed = service.signed("POST", PLACE, EVENT, HEADERS, credentials=keys, port=port)
    answer = await service.ask(tamper(signed, bob), port=port)
    assert 400 <= status_of(answer) < 500, answer
    assert service.done == []
    assert status_of(await service.ask(signed, port=port)) == 201, "the control"
    [(principal, operation, request)] = service.done
    assert (principal.rpartition("/")[2], operation, request["actorId"]) == (ALICES.session_id, "CreateEvent", "alice")


#: Seconds from now, and whether a request that was signed then is still one.
OLD_AND_NEW = {"now": (0, True), "five minutes old": (-310, False), "of yesterday": (-86_400, False),
               "five minutes ahead": (310, False), "a bit old": (-200, True)}  # fmt: skip


@pytest.mark.parametrize(("seconds", "good"), OLD_AND_NEW.values(), ids=OLD_AND_NEW)
async def test_requests_kept_for_later(service: AttackedService, seconds: int, good: bool) -> None:
    """IDN-5: what was recorded on its way is of use for minutes."""
    signed = service.signed(
        "POST", "/memories/create", b'{"name":"m","eventExpiryDuration":7}',
        at=datetime.now(UTC) + timedelta(seconds=seconds),
    )  # fmt: skip
    status = status_of(await service.ask(signed))
    assert (status < 300, len(service.done)) == ((True, 1) if good else (False, 0))


# Past the edge: compose's nginx before the service. What is signed is one request, what is sent another; or one is
# hidden in the other.

CREATE = b'{"name":"planted","eventExpiryDuration":7}'
#: What is sent in place of the target that was signed, `/memories/create`.
TARGETS = [
    "//memories/create", "/memories//create", "/memories/./create", "/./memories/create", "/x/../memories/create",
    "/memories/create/..", "/memories/create/.", "/memories/x/../create", "/memories/%2e%2e/memories/create",
    "/memories%2Fcreate", "/memories%2fcreate", "/memories/create%2F", "/memories%5Ccreate", "\\memories\\create",
    "/%6demories/create", "/memories/%63reate", "/Memories/create", "/memories/create;x=y", "/memories/create%00",
    "/memories/create%0d%0aX: y", "/memories/create%20", "/memories/create%3F", "/memories/create#x",
    "/memories/create?", "http://127.0.0.1/memories/create", "https://evil.example/memories/create", "*",
    "/identities/../memories/create", "/healthz/../memories/create",
    "/identities/oauth2/callback/../../../memories/create",
    "/edge/../memories/create",
]  # fmt: skip
#: Accepted because it is the very same request: with an empty query; in a form of which the edge passes on the path,
#: with the Host that was signed.
THE_SAME = {"/memories/create?", "http://127.0.0.1/memories/create", "https://evil.example/memories/create"}


@pytest.fixture
async def edge(service: AttackedService, tmp_path: Path, free_tcp_port: int) -> AsyncIterator[int]:
    if NGINX is None:
        pytest.skip("nginx is not installed; the compose tests have it in its container")
    async with edge_before(service, tmp_path, free_tcp_port):
        yield free_tcp_port


def creating(service: AttackedService, edge: int, **more: Any) -> Request:
    return service.signed("POST", "/memories/create", CREATE, host=f"127.0.0.1:{edge}", **more)


async def unharmed(service: AttackedService, edge: int) -> None:
    """The control: the request as it was signed, through the same edge."""
    service.subject.calls.clear()
    assert status_of(await service.ask(creating(service, edge), port=edge)) == 202
    assert [operation for _, operation, _ in service.done] == ["CreateMemory"]


async def test_targets_past_the_edge(service: AttackedService, edge: int) -> None:
    """IDN-5: edge and service read one target; what is signed in one spelling is not done in another."""
    for target in TARGETS:
        service.subject.calls.clear()
        answer = await service.ask(creating(service, edge).sent(target=target), port=edge)
        if target in THE_SAME:
            assert (status_of(answer), len(service.done)) == (202, 1), target
            continue
        assert 400 <= status_of(answer) < 500 and service.done == [], (target, answer[:200])
    await unharmed(service, edge)


#: Fields put to a good request. The last column: whether it is refused, or served as though they were not there.
FIELDS: dict[str, tuple[Callable[[Request], Request], bool]] = {
    "another host": (lambda r: r.header("Host", "evil.example"), True),
    "another port of the host": (lambda r: r.header("Host", r.value("Host").rpartition(":")[0] + ":1"), True),
    "two hosts": (lambda r: r.added(("Host", "evil.example")), True),
    "no host": (lambda r: r.header("Host", None), True),
    "a host of a gateway": (lambda r: r.header("Host", "gw-0123456789.gateway.x"), True),
    "a forwarded host": (lambda r: r.added(("X-Forwarded-Host", "evil.example"), ("Forwarded", "host=evil")), False),
    "a forwarded address": (lambda r: r.added(("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "127.0.0.1")), False),
    "another method": (lambda r: r.added(("X-HTTP-Method-Override", "DELETE")), False),
    "another URL": (lambda r: r.added(("X-Original-URL", "/identities"), ("X-Rewrite-URL", "/identities")), False),
    "whose listener it is": (lambda r: r.added(("X-Agentkeep-Session", "e30.e30.AA")), False),
    "that a replica handed it on": (lambda r: r.added(("X-Agentkeep-Forwarded", "1")), False),
    "an error of a port's": (lambda r: r.added(("X-Agentkeep-Error", "x")), False),
    "an underscore for a dash": (lambda r: r.added(("X_Amz_Date", "20200101T000000Z")), False),
    "a workload token": (lambda r: r.added(("X-Amz-Bedrock-AgentCore-Identity-WAT", "x")), True),
    "two signatures": (lambda r: r.added(("Authorization", r.value("Authorization"))), True),
    "a token and a signature": (lambda r: r.added(("Authorization", "Bearer x")), True),
    "two dates": (lambda r: r.added(("X-Amz-Date", r.value("X-Amz-Date"))), True),
    "the connection's own": (lambda r: r.added(("Connection", "close, authorization, x-amz-date")), False),
}


@pytest.mark.parametrize("name", FIELDS)
async def test_fields_past_the_edge(service: AttackedService, edge: int, name: str) -> None:
    """IDN-5: no header from outside names a session, a host or a user, whatever is behind the edge."""
    change, refused = FIELDS[name]
    answer = await service.ask(change(creating(service, edge)), port=edge)
    if refused:
        assert 400 <= status_of(answer) < 500 and service.done == [], answer[:300]
    else:
        [(principal, operation, request)] = service.done
        assert (status_of(answer), principal.rpartition("/")[2], operation, request["name"]) == (
            202, "admin", "CreateMemory", "planted"
        )  # fmt: skip
    await unharmed(service, edge)


#: A request in the body of another, for readers who do not agree where that one ends. `%d`: its length.
INNER = b"POST /memories/create HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
FRAMES: dict[str, tuple[tuple[tuple[str, str], ...], bytes]] = {
    "length and chunks": ((("Content-Length", "5"), ("Transfer-Encoding", "chunked")), b"0\r\n\r\n" + INNER),
    "chunks and length": ((("Transfer-Encoding", "chunked"), ("Content-Length", "5")), b"0\r\n\r\n" + INNER),
    "two lengths": ((("Content-Length", "0"), ("Content-Length", str(len(INNER)))), INNER),
    "a list of lengths": ((("Content-Length", f"0, {len(INNER)}"),), INNER),
    "a signed length": ((("Content-Length", "+0"),), INNER),
    "a coding nobody knows": ((("Transfer-Encoding", "xchunked"), ("Content-Length", "0")), INNER),
    "a coding in other letters": ((("Transfer-Encoding", "chunKed"), ("Content-Length", "3")), b"0\r\n\r\n" + INNER),
    "a coding after a tab": ((("Transfer-Encoding", "\tchunked"), ("Content-Length", "3")), b"0\r\n\r\n" + INNER),
    "two codings": ((("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")), b"0\r\n\r\n" + INNER),
    "a coding with a space": ((("Transfer-Encoding ", "chunked"), ("Content-Length", "0")), b"0\r\n\r\n" + INNER),
    "a length with a space": ((("Content-Length ", "0"), ("Content-Length", str(len(INNER)))), INNER),
    "a folded coding": ((("X", "y\r\n Transfer-Encoding: chunked"), ("Content-Length", "0")), b"0\r\n\r\n" + INNER),
    "a length that hides": ((("X", f"y\rContent-Length: {len(INNER)}"), ("Content-Length", "0")), INNER),
    "a chunk of no size": ((("Transfer-Encoding", "chunked"),), b"z\r\n" + INNER),
    "a chunk's size beyond all": ((("Transfer-Encoding", "chunked"),), b"fffffffffffffffff\r\n" + INNER),
    "a chunk's line ended otherwise": ((("Transfer-Encoding", "chunked"),), b"0\n\n" + INNER),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_frames_past_the_edge(service: AttackedService, edge: int, name: str) -> None:
    """IDN-5: the inner request would be somebody's whose connection it is put on. It is nobody's: refused with the
    outer one, or read as a request of its own, without a proof; and whoever comes next gets his own answer."""
    fields, body = FRAMES[name]
    outer = Request("POST", "/memories/create", (("Host", f"127.0.0.1:{edge}"), *fields), body)
    answer = await service.ask(outer, port=edge, wait=1)
    assert all(each in (400, 403, 411, 501) for each in statuses(answer)), answer
    assert service.done == []
    for _ in range(3):  # the edge keeps connections to the service, where something might wait
        await unharmed(service, edge)


# Deputies: who has rights is asked for them by who has none.

REPORTS = SessionRef("reports-a1b2c3d4e5", "reports-session-" + "0" * 30)

#: Token's claims, the session's user and agent: what of them is not what a rule means.
DEPUTIES: dict[str, dict[str, Any]] = {
    "an agent with a longer name": {"runtime": "reports-evil-a1b2c3d4e5"},
    "an agent with a shorter name": {"runtime": "report-a1b2c3d4e5"},
    "an agent in capitals": {"runtime": "Reports-a1b2c3d4e5"},
    "a group with a longer name": {"groups": ["finance-readers"]},
    "groups that are text": {"groups": "finance"},
    "a group in a group": {"groups": [["finance"]]},
    "a member under a dotted name": {"groups": None, "groups.finance": True},
    "a flag that is text": {"email_verified": "true"},
    "a flag that is a number": {"email_verified": 1},
    "another provider's user of the same name": {"issuer": "https://evil.example"},
    "another user's token": {"user": "bob"},
    "a user named without a token": {"token": False},
    "a user whom the role does not trust": {"sub": "carol"},
    "a user who looks like one": {"sub": "alice*"},
    "a token for another client": {"azp": "another-client"},
}


@pytest.fixture
async def deputy(
    make_plane: Any, provider: Any, clock: Any, store: ValkeyKeyValueStore, tmp_path: Path
) -> AsyncIterator[tuple[IdentityPlane, StsStandIn]]:
    """A platform that gives finance's users of the agent `reports` a role that trusts alice and bob."""
    sts = StsStandIn(now=clock.now)
    await sts.start()
    sts.trust(provider.url, "web")
    role = sts.role("finance", provider.url, {"StringEquals": {"{idp}:aud": "web", "{idp}:sub": ["alice", "bob"]}})
    rule = {"name": "finance", "agents": ["reports"], "issuer": provider.url, "role": role,
            "claims": {"groups": {"contains": "finance"}, "email_verified": True}}  # fmt: skip
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"rules": [rule], "default": "refuse"}))
    settings = IdentitySettings(sts_rules=file, sts_endpoint=sts.url)
    yield make_plane(settings, audit=KeyValueAudit(store)), sts
    await sts.stop()


@pytest.mark.parametrize("name", DEPUTIES)
async def test_deputies(deputy: tuple[IdentityPlane, StsStandIn], provider: Any, name: str) -> None:
    """IDN-1, IDN-2: by no name and no claim does somebody get a role that the rules do not give him, or other keys."""
    plane, sts = deputy
    about = dict(DEPUTIES[name])
    session = SessionRef(about.pop("runtime", REPORTS.runtime_id), secrets.token_hex(20))
    has_token, issuer = about.pop("token", True), about.pop("issuer", provider.url)
    claims = {"groups": ["finance"], "email_verified": True, "sub": "alice"}
    user = User(about.pop("user", about.get("sub", "alice")), issuer)
    token = provider.token(**{**claims, **about}) if has_token else None
    for ask in (plane.keys.begin_session, plane.keys.issue_for_session):
        with pytest.raises(ServiceError):
            await ask(session, user, token)
    assert sts.given == {}
    keys = await plane.keys.issue_for_session(REPORTS, User("alice", provider.url), provider.token(**claims))
    arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/finance/" + role_session_name(
        User("alice", provider.url), REPORTS.runtime_id
    )
    assert sts.given[keys.access_key_id].arn == arn, "the control"


#: Keys of a session, used in each way but the right one.
KEYS: dict[str, Callable[[AttackedService, Credentials], Any]] = {
    "from outside": lambda service, keys: service.client(keys),
    "at another session's listener": lambda service, keys: service.client(keys, service.ports[BOBS]),
    "of the same agent's next session": lambda service, keys: service.client(keys, service.ports[ALICES]),
    "without the session's token": lambda service, keys: service.client(
        Credentials(keys.access_key, keys.secret_key), service.ports[ALICES]
    ),
    "with an operator's key, from inside": lambda service, keys: service.client(
        service.operator, service.ports[ALICES]
    ),
}


@pytest.mark.parametrize("name", KEYS)
async def test_keys(service: AttackedService, name: str) -> None:
    """IDN-4: stolen from a session, they are worth nothing: elsewhere, and after its end."""
    alice = User("alice")
    service.ports = {session: await service.listen(session) for session in (ALICES, BOBS)}
    keys, event = await service.keys_of(ALICES, alice), {**json.loads(EVENT), "memoryId": "notes-0123456789"}
    await _call(service.client(keys, service.ports[ALICES]), event)
    assert len(service.done) == 1, "the control"
    if "next session" in name:  # the id is used again, by the same user
        await service.plane.keys.end_session(ALICES)
        again = await service.keys_of(ALICES, alice)
        await _call(service.client(again, service.ports[ALICES]), event)
        service.subject.calls.pop()
    with pytest.raises(ClientError) as refused:
        await _call(KEYS[name](service, keys), event)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] in (401, 403)
    assert len(service.done) == 1


async def _call(client: Any, event: dict[str, Any]) -> Any:
    return await asyncio.to_thread(client.create_event, **event)


#: Tokens with which somebody asks for the secret of an agent's user.
WORKLOAD_TOKENS: dict[str, Callable[[IdentityPlane, Call, dict[str, str]], Any]] = {
    "another agent's": lambda plane, own, tokens: tokens["other agent"],
    "another user's": lambda plane, own, tokens: tokens["other user"],
    "of nobody in particular": lambda plane, own, tokens: tokens["nobody"],
    "of a name that was given anew": lambda plane, own, tokens: tokens["deleted"],
    "a session's own": lambda plane, own, tokens: tokens["session"],
    "the user's own": lambda plane, own, tokens: tokens["user"],
    "one made up": lambda plane, own, tokens: secrets.token_urlsafe(200),
    "none": lambda plane, own, tokens: "",
    "changed in the middle": lambda plane, own, tokens: tokens["own"][:60] + "AAAA" + tokens["own"][64:],
}


@pytest.mark.parametrize("name", WORKLOAD_TOKENS)
async def test_workload_tokens(
    plane: IdentityPlane, operator: Call, session_of: Callable[..., Call], provider: Any, name: str
) -> None:
    """IDN-3: a session gets secrets for its own agent and user, by the token that says both."""
    alice, bob = User("alice", provider.url), User("bob", provider.url)
    own = session_of("helper-1234567890", alice)
    tokens = plane.workload_tokens
    for identity in ("helper-1234567890", "other-1234567890", "old-1234567890"):
        await tokens.create_for_service(identity)
    assert own.caller.session is not None
    given = {
        "own": await tokens.issue("helper-1234567890", alice, provider.token()),
        "other agent": await tokens.issue("other-1234567890", alice),
        "other user": await tokens.issue("helper-1234567890", bob),
        "deleted": await tokens.issue("old-1234567890", alice),
        "session": (await plane.keys.issue_for_session(own.caller.session, alice)).session_token,
        "user": provider.token(),
    }
    await plane.create_workload_identity(operator, {"name": "nobody"})
    given["nobody"] = (await plane.get_workload_access_token(operator, {"workloadName": "nobody"}))[
        "workloadAccessToken"
    ]
    await tokens.delete_for_service("old-1234567890")
    await tokens.create_for_service("old-1234567890")
    await plane.create_api_key_credential_provider(operator, {"name": "weather", "apiKey": "s3cret"})
    caller = session_of("old-1234567890", alice) if "anew" in name else own
    presented = WORKLOAD_TOKENS[name](plane, own, {key: str(value) for key, value in given.items()})
    request: Any = {"resourceCredentialProviderName": "weather"}
    with pytest.raises((UnauthorizedException, AccessDeniedException)):
        await plane.get_resource_api_key(caller, {**request, "workloadIdentityToken": presented})
    answer = await plane.get_resource_api_key(own, {**request, "workloadIdentityToken": given["own"]})
    assert answer == {"apiKey": "s3cret"}, "the control"


# What is proved elsewhere.

ELSEWHERE = {
    "a replayed state": "identity/test_oauth_attacks.py::test_a_replayed_state",
    "a forged state": "identity/test_oauth_attacks.py::test_a_forged_state",
    "consent completed by another user": "identity/test_oauth_attacks.py::test_consent_completed_by_another_user",
    "two users complete at once": "identity/test_oauth_attacks.py::test_two_users_complete_at_once",
    "an agent completes a consent": "identity/test_oauth_attacks.py::test_agents_confirm_nobody",
    "a consent session's id guessed": "identity/test_oauth_attacks.py::test_session_id_guessing",
    "providers mixed up": "identity/test_oauth_attacks.py::test_mixed_up_providers",
    "a code put in": "identity/test_oauth_attacks.py::test_an_injected_code",
    "another agent's consent": "identity/test_oauth_attacks.py::test_another_agents_workload_token",
    "a secret sent elsewhere": "identity/test_oauth_attacks.py::test_a_secret_does_not_go_to_other_endpoints",
    "a shared secret among the published keys":
        "identity/test_authorizers.py::test_a_shared_secret_among_the_published_keys_is_ignored",
    "a key of another curve": "identity/test_authorizers.py::test_curves_are_not_mixed_up",
    "tokens mangled at random": "identity/test_authorizers.py::test_mangled_tokens_never_pass",
    "a real provider's tokens for other purposes": "identity/test_keycloak.py::test_tokens_for_other_purposes",
    "another realm of the same server": "identity/test_keycloak.py::test_another_realm_of_the_same_server",
    "presigned URLs changed": "wire/test_signature.py::test_changed_presigned_urls_are_refused",
    "more put to a presigned URL": "wire/test_signature.py::test_nothing_is_added_to_a_presigned_url",
    "signatures at random": "wire/test_fuzz.py::test_signatures",
    "a session's id guessed": "e2e/test_attacks.py::test_users_do_not_enter_each_others_sessions",
    "a kept answer taken": "e2e/test_attacks.py::test_a_kept_answer_is_for_whoever_asked",
    "all that an agent tries from inside": "e2e/test_attacks.py::test_an_agent_gets_nothing_that_is_not_its_users",
    "paths at the runtime's own route": "service/test_runtime_attacks.py::test_paths_that_lead_nowhere",
    "requests two readers would not agree on": "service/test_front.py::test_ambiguous_requests_are_refused",
    "an agent says whose listener it uses":
        "service/test_services.py::test_an_agent_cannot_state_whose_listener_it_uses",
    "a service says what only the runtime may":
        "service/test_services.py::test_statements_are_the_runtime_services_and_for_one_service",
    "an MCP session's id of another user": "runtime/test_mcp_sessions.py::test_another_users_id_opens_nothing",
    "users named by a key that acts for none":
        "runtime/test_invocations.py::test_an_operator_names_a_user_by_a_key_for_it_and_on_record",
    "...ForUserId by a key that acts for none":
        "identity/test_acting_for_users.py::test_a_key_that_was_not_issued_for_it",
    "a key that gives itself what it has not": "identity/test_acting_for_users.py::test_nobody_gives_what_he_has_not",
    "another user's token at a gateway":
        "gateway/test_tool_calls.py::test_a_session_sends_its_own_users_token_and_no_others",
    "a token that no role trusts": "identity/test_role_sessions.py::test_whom_no_trust_names_gets_nothing",
    "a role that does what its policies do not say":
        "identity/test_role_sessions.py::test_a_role_may_what_its_policies_allow",
    "a session policy that widens": "identity/test_permissions.py::test_a_session_policy_only_narrows",
    "a role that acts for users it may not":
        "identity/test_permissions.py::test_acting_for_users_is_a_permission_of_its_own",
    "a resource by another of its names": "identity/test_permissions.py::test_the_same_resource_in_every_form",
    "a profile that is called like a model":
        "identity/test_permissions.py::test_a_model_is_what_bedrock_will_be_asked_for",
    "a pattern that is never matched to its end": "identity/test_permissions.py::test_no_pattern_takes_long",
    "a policy that says two things": "identity/test_roles.py::test_what_is_said_twice_is_refused",
    "an agent made under another's name":
        "identity/test_permissions.py::test_a_resource_is_given_a_role_by_who_may_pass_it",
    "a deployer who lets his own users into a memory":
        "identity/test_permissions.py::test_the_platforms_own_policies_allow_what_they_say",
    "an auditor who looks for secrets": "runtime/test_control_plane.py::test_who_sees_environment_variables",
    "another's record among one's own": "memory/test_admission.py::test_each_record_of_a_batch_says_whose_it_is",
    "a user whose id begins another's":
        "memory/test_admission.py::test_a_role_sees_nobody_beneath_the_path_of_its_user",
    "one's doings under another's name": "memory/test_admission.py::test_two_keys_of_one_name_are_each_on_record",
    "STS asked in odd ways": "identity/test_role_sessions.py::test_what_is_asked_in_odd_ways",
    "tries until something is allowed": "identity/test_role_sessions.py::test_what_a_role_may_not_is_on_record",
    "keys of a role after its end": "identity/test_role_sessions.py::test_the_keys_of_a_role_that_is_gone_are_dead",
    "sessions of every protocol": "runtime/test_bound_sessions.py::test_stolen_and_replayed",
}  # fmt: skip


def test_elsewhere() -> None:
    """What is named is there."""
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    for name, place in ELSEWHERE.items():
        file, _, test = place.partition("::")
        found = {node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, functions)}
        assert test in found, name
