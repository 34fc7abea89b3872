"""A user's own token for a role's keys: what AWS is asked, what it refuses, and that nothing takes its place."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from aiohttp import web
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from canaries import leaks
from port_server import calling, serving
from sts_stand_in import ACCOUNT, StsStandIn

from agentkeep.core.call import CallerKind, SessionRef, User
from agentkeep.core.errors import (
    AccessDeniedException,
    ServiceError,
    ServiceUnavailableException,
    StoreUnavailable,
    UnauthorizedException,
)
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import AccessKey, AuditRecord, SessionCredentials
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.sts.sessions import role_session_name
from agentkeep.identity.sts.setup import described
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.service.authentication import Authenticator
from agentkeep.service.ports.caches import CachedKeys
from agentkeep.service.ports.catalogue import KEYS
from agentkeep.storage.interface import Put, partition
from agentkeep.storage.valkey import ValkeyKeyValueStore

REPORTS = "reports-a1b2c3d4e5"
POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::d/${agentkeep:user}/*"}],
}


@pytest.fixture
async def sts(clock: Any, provider: Any) -> AsyncIterator[StsStandIn]:
    """With the role `finance` for alice and bob of the provider, by the client `web`."""
    sts = StsStandIn(now=clock.now)
    await sts.start()
    sts.trust(provider.url, "web")
    only = {"StringEquals": {"{idp}:aud": "web", "{idp}:sub": ["alice", "bob"]}}
    sts.role("finance", provider.url, only)
    yield sts
    await sts.stop()


def rule(provider: Any, **changes: Any) -> dict[str, Any]:
    whole = {
        "name": "finance",
        "agents": ["reports"],
        "issuer": provider.url,
        "role": f"arn:aws:iam::{ACCOUNT}:role/finance",
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not None}


Make = Callable[..., IdentityPlane]


@pytest.fixture
def audit(store: ValkeyKeyValueStore) -> KeyValueAudit:
    return KeyValueAudit(store)


@pytest.fixture
def make(make_plane: Any, provider: Any, sts: StsStandIn, tmp_path: Path, audit: KeyValueAudit) -> Make:
    """A plane with these rules."""

    def make(*rules: dict[str, Any], **settings: Any) -> IdentityPlane:
        file = tmp_path / "rules.json"
        file.write_text(json.dumps({"rules": rules or [rule(provider)], "default": "refuse"}))
        given = {"sts_rules": file, "sts_endpoint": sts.url, "sts_timeout": 2, **settings}
        plane: IdentityPlane = make_plane(IdentitySettings(**given), audit=audit)
        return plane

    return make


@pytest.fixture
def plane(make: Make) -> IdentityPlane:
    return make()


def a_session(runtime_id: str = REPORTS) -> SessionRef:
    return SessionRef(runtime_id, secrets.token_hex(20))


async def on_record(audit: KeyValueAudit, session: SessionRef) -> list[AuditRecord]:
    records, _ = await audit.page(AuditFilter(session=session.session_id), 100)
    return records


async def identity(sts: StsStandIn, keys: SessionCredentials | AccessKey) -> str:
    """Who the keys are in AWS, asked by boto3."""
    found = isinstance(keys, AccessKey)
    client = boto3.client(
        "sts",
        endpoint_url=sts.url,
        region_name="us-west-2",
        aws_access_key_id=keys.id if found else keys.access_key_id,
        aws_secret_access_key=keys.secret if found else keys.secret_access_key,
        aws_session_token=keys.session_token,
    )
    return str((await asyncio.to_thread(client.get_caller_identity))["Arn"])


async def test_the_user_in_aws_and_here_alike(
    plane: IdentityPlane, provider: Any, sts: StsStandIn, audit: KeyValueAudit, clock: Any
) -> None:
    """IDN-1, IDN-4: one set of keys, the user's in AWS, and the session's with us until it ends."""
    ref, alice = a_session(), User("alice", provider.url, {"department": "law"})
    issued = await plane.keys.begin_session(ref, alice, provider.token())
    assert issued is not None
    name = role_session_name(alice, REPORTS)
    assert await identity(sts, issued) == f"arn:aws:sts::{ACCOUNT}:assumed-role/finance/{name}"
    assert issued.role_arn == f"arn:aws:iam::{ACCOUNT}:role/finance"
    assert (issued.expiration - clock.now()).total_seconds() == pytest.approx(900, abs=2)
    found = await plane.keys.find(issued.access_key_id)
    assert found is not None and plane.keys.cached(issued.access_key_id) == found
    assert (found.secret, found.session_token) == (issued.secret_access_key, issued.session_token)
    assert (found.caller.kind, found.caller.session, found.caller.user) == (CallerKind.SESSION, ref, alice)

    renewed = await plane.keys.issue_for_session(ref, alice, provider.token())
    assert renewed.access_key_id != issued.access_key_id
    asked = sts.requests[0]
    assert asked.form["DurationSeconds"] == "900"
    assert "authorization" not in asked.headers and "x-amz-security-token" not in asked.headers
    exchanged = await on_record(audit, ref)
    assert [record.kind for record in exchanged] == ["sts-exchange"] * 2
    assert exchanged[-1].user_id == "alice" and exchanged[-1].details["assumedRole"].endswith(name)
    assert not leaks(repr(exchanged).encode(), [issued.secret_access_key, issued.session_token])

    await plane.keys.end_session(ref)
    for dead in (issued, renewed):
        assert plane.keys.cached(dead.access_key_id) is None
        assert await plane.keys.find(dead.access_key_id) is None
    assert await identity(sts, issued), "AWS honours them until they expire: hence the shortest life"


async def test_two_users_never_get_each_others(plane: IdentityPlane, provider: Any, sts: StsStandIn) -> None:
    """IDN-1: however their requests cross."""
    users = {a_session(): user for user in ("alice", "bob") * 8}
    issued = await asyncio.gather(
        *(
            plane.keys.issue_for_session(ref, User(user, provider.url), provider.token(sub=user))
            for ref, user in users.items()
        )
    )
    assert len({keys.access_key_id for keys in issued}) == len(users)
    for (ref, user), keys in zip(users.items(), issued, strict=True):
        arn = sts.given[keys.access_key_id].arn
        assert arn.rpartition("/")[2] == role_session_name(User(user, provider.url), REPORTS)
        found = await plane.keys.find(keys.access_key_id)
        assert found is not None and found.caller.session == ref and found.caller.user == User(user, provider.url)


async def test_the_same_between_services(plane: IdentityPlane, provider: Any, sts: StsStandIn, clock: Any) -> None:
    """IDN-1: the runtime service asks for them; every service knows whose they are, and for whom they are no longer."""
    async with (
        serving("identity", {KEYS: plane.keys}) as server,
        calling("runtime", server.url) as runtime,
        calling("memory", server.url) as memory,
    ):
        asking, looking = (CachedKeys(peers.port(KEYS), clock, 2.0) for peers in (runtime, memory))
        ref, alice = a_session(), User("alice", provider.url)
        issued = await asking.begin_session(ref, alice, provider.token())
        assert issued is not None and issued.role_arn == f"arn:aws:iam::{ACCOUNT}:role/finance"
        assert await identity(sts, issued)
        found = await looking.find(issued.access_key_id)
        assert found is not None and found.secret == issued.secret_access_key
        assert (found.caller.session, found.caller.user) == (ref, alice)
        for code, error in (("Throttling", ServiceUnavailableException), ("AccessDenied", AccessDeniedException)):
            sts.fails(code)
            with pytest.raises(error, match=code):
                await asking.issue_for_session(ref, alice, provider.token())
        with pytest.raises(AccessDeniedException):
            await memory.port(KEYS).begin_session(ref, alice, provider.token())
        await asking.end_session(ref)
        clock.move(2.1)
        assert await looking.find(issued.access_key_id) is None


async def test_keys_are_good_at_their_own_listener_only(plane: IdentityPlane, provider: Any) -> None:
    """IDN-4: as the platform's own keys are."""
    ref, other = a_session(), a_session()
    keys = await plane.keys.issue_for_session(ref, User("alice", provider.url), provider.token())
    key = await plane.keys.find(keys.access_key_id)
    assert key is not None
    check = Authenticator(plane.keys)._check_place
    check(key, ref)
    for place in (other, None):
        with pytest.raises(UnauthorizedException):
            check(key, place)


async def test_what_is_stored_is_of_no_use(
    plane: IdentityPlane, make_plane: Any, provider: Any, store: ValkeyKeyValueStore
) -> None:
    """IDN-1: neither secret nor token in clear; nor do they open for another key, or under another master key."""
    ref, alice = a_session(), User("alice", provider.url)
    keys, others = [await plane.keys.issue_for_session(ref, alice, provider.token()) for _ in range(2)]
    kept = await store.get(partition("identity", "access-keys"), keys.access_key_id)
    assert kept is not None and not leaks(kept, [keys.secret_access_key, keys.session_token])
    assert await make_plane(master_key=FileMasterKey(b"x" * 32)).keys.find(keys.access_key_id) is None
    await store.transact([Put(partition("identity", "access-keys"), others.access_key_id, kept)])
    assert await plane.keys.find(others.access_key_id) is None


REFUSALS: list[tuple[str, dict[str, Any], type[ServiceError], str]] = [
    ("nobody", {"token": None, "user": None}, AccessDeniedException, "has none"),
    ("named by an operator", {"token": None, "issuer": None}, AccessDeniedException, "has none"),
    ("expired", {"exp": -1}, UnauthorizedException, "has expired"),
    ("another audience", {"azp": "other"}, AccessDeniedException, "InvalidIdentityToken"),
    ("not in the trust policy", {"sub": "carol"}, AccessDeniedException, "trust policy"),
    ("another's token", {"user": "bob"}, AccessDeniedException, "not the session's user's"),
    ("an issuer of the same claims", {"issuer": "https://evil.example"}, AccessDeniedException, "not the session's"),
    ("another agent", {"runtime": "chat-a1b2c3d4e5"}, AccessDeniedException, "No rule"),
    ("the rule's claims are not there", {"groups": ["staff"]}, AccessDeniedException, "No rule"),
    ("signed by another", {"forged": True}, AccessDeniedException, "InvalidIdentityToken"),
]


@pytest.mark.parametrize(("about", "error", "says"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
async def test_refused_and_nothing_else_given(
    make: Make,
    provider: Any,
    sts: StsStandIn,
    audit: KeyValueAudit,
    clock: Any,
    new_signing_key: Any,
    about: dict[str, Any],
    error: type[ServiceError],
    says: str,
) -> None:
    """IDN-1, IDN-2: no key of the platform's instead; the refusal is on record, without the token."""
    plane = make(rule(provider, claims={"groups": {"contains": "finance"}}))
    about = dict(about)
    ref = a_session(about.pop("runtime", REPORTS))
    claims = {"groups": ["finance"], **about}
    user, issuer = claims.pop("user", claims.get("sub", "alice")), claims.pop("issuer", provider.url)
    has_token = claims.pop("token", True) is not None
    key = new_signing_key("RS256", provider.keys[0].id) if claims.pop("forged", False) else None
    if "exp" in claims:
        claims["exp"] += int(clock.now().timestamp())
    token = provider.token(key, **claims) if has_token else None
    caller = None if user is None else User(user, issuer)
    for ask in (plane.keys.begin_session, plane.keys.issue_for_session):
        with pytest.raises(error, match=says) as refused:
            await ask(ref, caller, token)
        assert token is None or token not in refused.value.message
    assert sts.given == {}
    (record,) = await on_record(audit, ref)
    assert (record.kind, record.user_id) == ("sts-refusal", user)
    assert token is None or not leaks(repr(record).encode(), [token])


async def test_an_agent_without_aws(make: Make, provider: Any, sts: StsStandIn) -> None:
    """A rule may say that an agent's sessions are nobody in AWS; then and only then the platform's keys are given."""
    plane = make(rule(provider), rule(provider, name="none", agents=["chat"], issuer=None, role=None, keys="platform"))
    for user, token in ((User("alice", provider.url), provider.token()), (User("alice"), None), (None, None)):
        ref = a_session("chat-a1b2c3d4e5")
        assert await plane.keys.begin_session(ref, user, token) is None
        keys = await plane.keys.issue_for_session(ref, user, token)
        assert keys.role_arn is None
        assert (await plane.keys.find(keys.access_key_id)) is not None
    assert sts.requests == []


async def test_a_session_policy_narrows_further(make: Make, provider: Any, sts: StsStandIn) -> None:
    """IDN-1: for the user, by AWS's own policies and ours."""
    arns = ["arn:aws:iam::aws:policy/ReadOnlyAccess", "arn:aws:iam::111122223333:policy/own"]
    plane = make(rule(provider, policy=POLICY, policyArns=arns))
    keys = await plane.keys.issue_for_session(a_session(), User("alice", provider.url), provider.token())
    given = sts.given[keys.access_key_id]
    assert given.policy is not None
    assert given.policy["Statement"][0]["Resource"] == "arn:aws:s3:::d/alice/*"
    assert list(given.policy_arns) == arns


async def test_tags_are_the_issuers_to_say(plane: IdentityPlane, provider: Any, sts: StsStandIn) -> None:
    """IDN-1: STS takes a web identity's session tags from its token and from nowhere else."""
    tags = {"https://aws.amazon.com/tags": {"principal_tags": {"team": ["red"]}, "transitive_tag_keys": ["team"]}}
    keys = await plane.keys.issue_for_session(a_session(), User("alice", provider.url), provider.token(**tags))
    assert sts.given[keys.access_key_id].tags == {"team": "red"}
    assert not any(name.startswith("Tags.") for name in sts.requests[0].form)


ERRORS = [
    ("IDPCommunicationError", 400, ServiceUnavailableException),
    ("Throttling", 400, ServiceUnavailableException),
    ("ThrottlingException", 400, ServiceUnavailableException),
    ("Throttling", 429, ServiceUnavailableException),
    ("InternalFailure", 500, ServiceUnavailableException),
    ("ServiceUnavailable", 503, ServiceUnavailableException),
    ("ExpiredTokenException", 400, UnauthorizedException),
    ("InvalidIdentityToken", 400, AccessDeniedException),
    ("IDPRejectedClaim", 403, AccessDeniedException),
    ("AccessDenied", 403, AccessDeniedException),
    ("MalformedPolicyDocument", 400, AccessDeniedException),
    ("PackedPolicyTooLarge", 400, AccessDeniedException),
    ("RegionDisabledException", 403, AccessDeniedException),
    ("ValidationError", 400, AccessDeniedException),
    ("SomethingNew", 400, AccessDeniedException),
]


@pytest.mark.parametrize(("code", "status", "error"), ERRORS)
async def test_each_of_stss_errors(
    plane: IdentityPlane, provider: Any, sts: StsStandIn, code: str, status: int, error: type[ServiceError]
) -> None:
    """IDN-1: those that pass can be tried again; of the others is said what they are about."""
    sts.fails(code, status)
    with pytest.raises(error) as refused:
        await plane.keys.issue_for_session(a_session(), User("alice", provider.url), provider.token())
    assert type(refused.value) is error
    if error is ServiceUnavailableException:
        assert "Try again" in refused.value.message and "Nothing is given in its place" in refused.value.message
    elif error is AccessDeniedException:
        assert code in refused.value.message


def _xml(**changes: str) -> str:
    members = {
        "AccessKeyId": "ASIA" + "B" * 16, "SecretAccessKey": "s" * 40, "SessionToken": "t" * 400,
        "Expiration": "2099-01-01T00:00:00Z", **changes,
    }  # fmt: skip
    credentials = "".join(f"<{name}>{value}</{name}>" for name, value in members.items())
    return (
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        f"{credentials}</Credentials><SubjectFromWebIdentityToken>alice</SubjectFromWebIdentityToken>"
        "<AssumedRoleUser><Arn>ARN</Arn></AssumedRoleUser>"
        "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )


BOMB = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
BELIEVED = _xml()


@pytest.mark.parametrize(
    "answer",
    [
        "", "not xml", "<a></b>", "{}", "<AssumeRoleWithWebIdentityResponse/>", "x" * 100_000,
        BOMB + BELIEVED,
        _xml(AccessKeyId="AKIA" + "A" * 16),
        _xml(AccessKeyId="../../" + "A" * 14),
        _xml(SecretAccessKey=""),
        _xml(SessionToken="two words"),
        _xml(Expiration="soon"),
        _xml(Expiration="2099-01-01T00:00:00"),
        _xml(Expiration="2020-01-01T00:00:00Z"),
        BELIEVED.replace("ARN", f"arn:aws:sts::{ACCOUNT}:assumed-role/admin/alice"),
        BELIEVED.replace(">alice<", ">bob<"),
    ],
)  # fmt: skip
async def test_answers_that_are_not_believed(plane: IdentityPlane, provider: Any, sts: StsStandIn, answer: str) -> None:
    """IDN-1: of STS's form, for this user and role, or nothing."""
    alice = User("alice", provider.url)
    arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/finance/{role_session_name(alice, REPORTS)}"
    sts.failure = lambda _: web.Response(text=answer.replace("ARN", arn))
    with pytest.raises(ServiceUnavailableException):
        await plane.keys.issue_for_session(a_session(), alice, provider.token())
    sts.failure = lambda _: web.Response(
        text=BELIEVED.replace("ARN", arn).replace("A" * 16, secrets.token_hex(8).upper())
    )
    assert await plane.keys.issue_for_session(a_session(), alice, provider.token()), "so it was the answer"


async def test_slow_away_and_elsewhere(make: Make, provider: Any, sts: StsStandIn) -> None:
    """IDN-1: a retryable error within the time there is; redirects, which would take the token along, are not
    followed."""
    plane = make(sts_timeout=0.2)
    ref, alice = a_session(), User("alice", provider.url)
    sts.delay = 5
    with pytest.raises(ServiceUnavailableException):
        await asyncio.wait_for(plane.keys.issue_for_session(ref, alice, provider.token()), 3)
    sts.delay = 0
    there = len(sts.requests)
    sts.failure = lambda _: web.Response(status=307, headers={"location": f"{sts.url}/"})
    with pytest.raises(ServiceError):
        await plane.keys.issue_for_session(ref, alice, provider.token())
    assert len(sts.requests) == there + 1
    await sts.stop()
    with pytest.raises(ServiceUnavailableException):
        await plane.keys.issue_for_session(ref, alice, provider.token())


async def test_what_cannot_be_put_on_record_is_not_given(
    make: Make, provider: Any, sts: StsStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IDN-1: nobody gets keys that no auditor will find."""

    async def away(self: KeyValueAudit, record: AuditRecord) -> None:
        raise StoreUnavailable("away")

    plane = make()
    monkeypatch.setattr(KeyValueAudit, "record", away)
    with pytest.raises(StoreUnavailable):
        await plane.keys.issue_for_session(a_session(), User("alice", provider.url), provider.token())
    with pytest.raises(AccessDeniedException):
        await plane.keys.issue_for_session(a_session("chat-a1b2c3d4e5"), User("alice", provider.url), provider.token())


async def test_no_credentials_of_the_platforms_are_ever_used(
    make: Make, provider: Any, sts: StsStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IDN-2: wherever AWS's libraries would look for some, there are some, and nobody looks: neither for the exchange
    nor when STS is away."""
    asked: list[str] = []

    async def metadata(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response(
            {"AccessKeyId": "ASIAPLANTEDMETADATA0", "SecretAccessKey": "planted", "Token": "planted"}
        )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", metadata)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    planted = {
        "AWS_ACCESS_KEY_ID": "AKIAPLANTEDENVIRON00",
        "AWS_SECRET_ACCESS_KEY": "planted",
        "AWS_SESSION_TOKEN": "planted",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/ecs",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{url}/imds",
        "AWS_ROLE_ARN": f"arn:aws:iam::{ACCOUNT}:role/platform",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "platform-token"),
        "HOME": str(tmp_path),
        "HTTP_PROXY": url,
        "HTTPS_PROXY": url,
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = AKIAPLANTEDPROFILE00\naws_secret_access_key = planted\n"
    )
    (tmp_path / "platform-token").write_text("planted")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login planted password planted\n")
    plane, alice = make(), User("alice", provider.url)
    keys = await plane.keys.issue_for_session(a_session(), alice, provider.token())
    assert "PLANTED" not in keys.access_key_id
    sts.fails("AccessDenied", 403)
    for refused in (AccessDeniedException, ServiceUnavailableException):
        with pytest.raises(refused):
            await plane.keys.issue_for_session(a_session(), alice, provider.token())
        await sts.stop()
    assert asked == []
    assert "planted" not in repr(sts.requests).lower()
    assert all("authorization" not in request.headers for request in sts.requests)
    await runner.cleanup()


async def test_no_token_or_key_is_said(
    make: Make, provider: Any, sts: StsStandIn, audit: KeyValueAudit, caplog: pytest.LogCaptureFixture
) -> None:
    """IDN-1: not in logs, errors or audit records, though STS repeats what it was sent."""
    caplog.set_level(logging.DEBUG)
    plane, alice, said = make(), User("alice", provider.url), []
    ref, tokens = a_session(), [provider.token() for _ in range(3)]
    keys = await plane.keys.issue_for_session(ref, alice, tokens[0])
    await plane.keys.find(keys.access_key_id)
    said.append(repr((keys, plane.keys.cached(keys.access_key_id))))
    for code, token in (("InvalidIdentityToken", tokens[1]), ("Weird<Code>", tokens[2])):
        sts.fails_repeating(code)
        with pytest.raises(ServiceError) as error:
            await plane.keys.issue_for_session(ref, alice, token)
        said += [str(error.value), repr(error.value.__cause__), repr(error.value.__context__)]
    said += [caplog.text, repr(await on_record(audit, ref))]
    secret = [keys.secret_access_key, keys.session_token, *tokens, *(token.rpartition(".")[2] for token in tokens)]
    assert not leaks("\n".join(said).encode(), secret)
    assert "sts-exchange" in said[-1]


def test_what_is_configured_is_said(tmp_path: Path) -> None:
    """An operator sees at start, and in `agentkeep doctor`, whose keys sessions get."""
    plain = described(IdentitySettings(), Deployment("eu-west-1"))
    assert "AWS does not know" in plain
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"rules": [{"name": "x", "agents": ["*"], "keys": "platform"}], "default": "refuse"}))
    for region, given, host in (
        ("eu-west-1", {}, "https://sts.eu-west-1.amazonaws.com"),
        ("cn-north-1", {}, "https://sts.cn-north-1.amazonaws.com.cn"),
        ("eu-west-1", {"sts_region": "us-gov-west-1"}, "https://sts.us-gov-west-1.amazonaws.com"),
        ("eu-west-1", {"sts_endpoint": "https://vpce-1.sts.example"}, "https://vpce-1.sts.example"),
    ):
        settings = IdentitySettings(sts_rules=rules, **given)  # type: ignore[arg-type]
        assert host + " by 1 rule" in described(settings, Deployment(region))
    for unsafe in ("http://sts.example", "ftp://sts.example", "https://user:pass@sts.example"):
        with pytest.raises(ValueError, match=r"STS|https"):
            IdentitySettings(sts_endpoint=unsafe)


async def test_the_stand_in_refuses_what_aws_refuses(sts: StsStandIn, provider: Any, clock: Any) -> None:
    """Else none of the above would show anything. Asked by boto3, unsigned, as applications do."""
    config = Config(signature_version=UNSIGNED, retries={"total_max_attempts": 1})
    client = boto3.client("sts", endpoint_url=sts.url, region_name="us-west-2", config=config)
    role = sts.role("short", provider.url, {"StringLike": {"{idp}:sub": "al*"}}, longest=1000)

    async def asked(token: str, **form: Any) -> str:
        def call() -> str:
            given = {"RoleArn": role, "RoleSessionName": "alice", "DurationSeconds": 900, **form}
            try:
                answer = client.assume_role_with_web_identity(WebIdentityToken=token, **given)
            except ClientError as error:
                return str(error.response["Error"]["Code"])
            return str(answer["SubjectFromWebIdentityToken"])

        return await asyncio.to_thread(call)

    now = int(clock.now().timestamp())
    assert await asked(provider.token()) == "alice"
    assert await asked(provider.token(exp=now)) == "ExpiredTokenException"
    assert await asked(provider.token(azp="other")) == "InvalidIdentityToken"
    assert await asked(provider.token(azp=None)) == "InvalidIdentityToken"
    assert await asked(provider.token(iss="https://evil.example")) == "InvalidIdentityToken"
    assert await asked(provider.token()[:-8] + "AAAAAAAA") == "InvalidIdentityToken"
    assert await asked(provider.hmac_token(provider.keys[0].pem)) == "InvalidIdentityToken"
    assert await asked(provider.token(sub="bob")) == "AccessDenied"
    assert await asked(provider.token(), RoleArn=f"arn:aws:iam::{ACCOUNT}:role/absent") == "AccessDenied"
    assert await asked(provider.token(), DurationSeconds=1200) == "ValidationError"
    assert await asked(provider.token(), RoleSessionName="a b") == "ValidationError"
    assert await asked(provider.token(), Policy="{}") == "MalformedPolicyDocument"
    sts.packed_limit = 10
    assert await asked(provider.token(), Policy=json.dumps(POLICY)) == "PackedPolicyTooLarge"
    provider.up = False
    assert await asked(provider.token()) == "IDPCommunicationError"
    provider.up = True
    signed = Config(retries={"total_max_attempts": 1})
    key_id, given = next(iter(sts.given.items()))
    wrong = boto3.client("sts", endpoint_url=sts.url, region_name="us-west-2", aws_access_key_id=key_id,
                         aws_secret_access_key="wrong" * 8, aws_session_token=given.token, config=signed)  # fmt: skip
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        await asyncio.to_thread(wrong.get_caller_identity)
    clock.move(901)
    with pytest.raises(ClientError, match="ExpiredToken"):
        await identity(sts, AccessKey(key_id, given.secret, None, given.token))  # type: ignore[arg-type]
