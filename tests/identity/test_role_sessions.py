"""IDN-1: people and applications get short-lived keys of a role for a token, by STS's own wire; nobody else does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from botocore.exceptions import ClientError
from role_keys import RoleKeys
from role_stand import ACCOUNT, REGION, RoleStand, role_arn, write_roles

from agentkeep.core.errors import StoreUnavailable
from agentkeep.core.ports import AuditRecord
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.storage.valkey import ValkeyKeyValueStore


@pytest.fixture
def roles(provider: Any, tmp_path: Path) -> Path:
    trust = {"issuer": provider.url, "audiences": ["agentkeep"]}
    return write_roles(
        tmp_path / "roles.json",
        {
            "name": "deployer",
            "trust": [{**trust, "claims": {"groups": {"contains": "platform"}}}],
            "policies": ["deployer"],
            "maxSessionDuration": 7200,
        },
        {"name": "auditor", "trust": [{**trust, "sessionName": "email"}], "policies": ["auditor"]},
        {"name": "keys", "trust": [trust], "policies": ["administrator"]},
    )


@pytest.fixture
async def stand(
    make_plane: Callable[..., IdentityPlane], store: ValkeyKeyValueStore, roles: Path, free_tcp_port: int, clock: Any
) -> AsyncIterator[RoleStand]:
    audit = KeyValueAudit(store)
    stand = RoleStand(make_plane(IdentitySettings(roles=roles), audit=audit), audit, free_tcp_port, clock)
    await stand.start()
    yield stand
    await stand.stop()


def token(provider: Any, **claims: Any) -> str:
    text: str = provider.token(**{"aud": "agentkeep", "groups": ["platform"], **claims})
    return text


async def refusal(stand: RoleStand, role: str, text: str, **more: Any) -> tuple[str, int, str]:
    with pytest.raises(ClientError) as raised:
        await stand.assume(role, text, **more)
    answer = raised.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Message"]


async def test_a_token_becomes_keys_that_work_and_say_whose_they_are(stand: RoleStand, provider: Any) -> None:
    answer = await stand.assume("deployer", token(provider), DurationSeconds=900)
    arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/deployer/olivia"
    assert (answer["SubjectFromWebIdentityToken"], answer["Audience"]) == ("alice", "agentkeep")
    assert (answer["AssumedRoleUser"]["Arn"], answer["Provider"]) == (arn, provider.url)
    keys = answer["Credentials"]
    assert keys["AccessKeyId"].startswith("ASIA")
    assert 895 < (keys["Expiration"] - provider.clock.now()).total_seconds() <= 900
    who = await stand.call(keys, "sts", lambda sts: sts.get_caller_identity())
    assert (who["Arn"], who["Account"]) == (arn, ACCOUNT)
    assert who["UserId"] == answer["AssumedRoleUser"]["AssumedRoleId"]
    made = await stand.call(
        keys, "bedrock-agentcore-control", lambda c: c.create_workload_identity(name="made-by-role")
    )
    assert made["name"] == "made-by-role"


async def test_the_exchange_is_on_record_without_the_token(stand: RoleStand, provider: Any) -> None:
    """And so is each refusal: whose token it was, if that is proved, and nothing that anybody may make up."""
    text = token(provider)
    answer = await stand.assume("deployer", text)
    [record] = await stand.recorded("role-assumed")
    assert record.principal == answer["AssumedRoleUser"]["Arn"]
    assert record.details["accessKeyId"] == answer["Credentials"]["AccessKeyId"]
    assert (record.details["subject"], record.details["issuer"]) == ("alice", provider.url)
    await refusal(stand, "deployer", token(provider, groups=["guests"]))
    await refusal(stand, "deployer", token(provider, iss="https://made.up"))
    refused = await stand.recorded("role-refusal")
    assert {(one.details["code"], one.details["issuer"], one.details["subject"]) for one in refused} == {
        ("AccessDenied", provider.url, "alice"),
        ("InvalidIdentityToken", "unknown", "not proved"),
    }
    everything = repr([record, *refused])
    assert text not in everything and answer["Credentials"]["SecretAccessKey"] not in everything


async def test_whom_no_trust_names_gets_nothing(stand: RoleStand, provider: Any, new_signing_key: Any) -> None:
    """IDN-3: wrong audience, issuer, signature, algorithm or time; a role that does not trust, and one there is not."""
    unsigned = f"{token(provider).rpartition('.')[0].replace('.', '.')}."
    none = provider.token(header={"alg": "none"}, aud="agentkeep")
    expected = {
        "audience": ("InvalidIdentityToken", 400, token(provider, aud="another")),
        "issuer": ("InvalidIdentityToken", 400, token(provider, iss="https://elsewhere.example")),
        "signature": ("InvalidIdentityToken", 400, provider.token(new_signing_key("ES256", "first"), aud="agentkeep")),
        "unsigned": ("InvalidIdentityToken", 400, unsigned),
        "none": ("InvalidIdentityToken", 400, none),
        "confused": ("InvalidIdentityToken", 400, provider.hmac_token(provider.keys[0].pem, aud="agentkeep")),
        "expired": ("ExpiredTokenException", 400, token(provider, exp=int(provider.clock.now().timestamp()) - 61)),
        "no token": ("InvalidIdentityToken", 400, "none-at-all"),
        "claims": ("AccessDenied", 403, token(provider, groups=["platform-guests"])),
    }
    for what, (code, status, text) in expected.items():
        assert (await refusal(stand, "deployer", text))[:2] == (code, status), what
    assert (await refusal(stand, "nobodys", token(provider)))[:2] == ("AccessDenied", 403)
    code, _, message = await refusal(
        stand, "auditor", token(provider, email="bob@example.com"), name="alice@example.com"
    )
    assert (code, "claim email" in message) == ("AccessDenied", True)
    assert await stand.assume("auditor", token(provider, email="bob@example.com"), name="bob@example.com")


async def test_limits_of_what_is_asked(stand: RoleStand, provider: Any) -> None:
    text = token(provider)
    assert (await refusal(stand, "deployer", text, DurationSeconds=7201))[0] == "ValidationError"
    assert (await refusal(stand, "keys", text, DurationSeconds=3601))[0] == "ValidationError"
    code, _, message = await refusal(stand, "keys", text, PolicyArns=[{"arn": "arn:aws:iam::aws:policy/ReadOnly"}])
    assert (code, "PolicyArns are not supported" in message) == ("ValidationError", True)
    narrowed = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "NotAction": "x", "Resource": "*"}}
    code, _, message = await refusal(stand, "keys", text, Policy=json.dumps(narrowed))
    assert (code, "NotAction is not evaluated here" in message) == ("MalformedPolicyDocument", True)


async def test_what_is_asked_in_odd_ways(stand: RoleStand, provider: Any) -> None:
    """Said twice, in two places, as something else, or too long: refused, and always in STS's own form."""
    asked = {
        "Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15", "RoleArn": role_arn("deployer"),
        "RoleSessionName": "olivia", "WebIdentityToken": token(provider),
    }  # fmt: skip
    form = urlencode(asked)
    kind = {"content-type": "application/x-www-form-urlencoded"}

    async def chunked(text: str) -> AsyncIterator[bytes]:
        yield text.encode()

    async with httpx.AsyncClient(base_url=stand.url, headers=kind) as client:
        assert (await client.post("/sts", content=form)).status_code == 200
        assert (await client.post("/sts", content=chunked(form))).status_code == 200
        for query, body, code in (
            ("", f"{form}&RoleArn={role_arn('keys')}", "MalformedQueryString"),
            ("", f"{form}&DurationSeconds=00090000", "ValidationError"),
            ("", f"{form}&DurationSeconds=%D9%A9%D9%A0%D9%A0", "ValidationError"),
            (form, "", "MissingAction"),
            (form, "Action=GetCallerIdentity&Version=2011-06-15", "MissingAuthenticationToken"),
            ("", json.dumps(asked), "MissingAction"),
            ("", chunked(f"{form}&x={'x' * 70_000}"), "ValidationException"),
            ("", form.replace("olivia", "a%2Fb"), "ValidationError"),
            ("", form.replace("2011-06-15", "%3C%2FError%3E"), "InvalidAction"),
        ):
            answer = await client.post("/sts", params=query or None, content=body)
            error = ElementTree.fromstring(answer.content).find("{*}Error/{*}Code")
            assert answer.status_code >= 400 and error is not None and error.text == code, (code, answer.text)


async def test_a_role_may_what_its_policies_allow(stand: RoleStand, provider: Any) -> None:
    """In the words of AWS otherwise: who, what, on which resource, and why not. Also at operators' mounts."""
    keys = (await stand.assume("deployer", token(provider)))["Credentials"]
    with pytest.raises(ClientError) as raised:
        await stand.call(keys, "bedrock-agentcore", lambda c: c.get_workload_access_token(workloadName="agent"))
    arn = f"arn:aws:bedrock-agentcore:{REGION}:{ACCOUNT}:workload-identity-directory/default/workload-identity/agent"
    assert raised.value.response["Error"] == {
        "Code": "AccessDeniedException",
        "Message": f"User: arn:aws:sts::{ACCOUNT}:assumed-role/deployer/olivia is not authorized to perform: "
        f"bedrock-agentcore:GetWorkloadAccessToken on resource: {arn} because no identity-based policy allows the "
        "bedrock-agentcore:GetWorkloadAccessToken action",
    }
    narrowed = {
        "Version": "2012-10-17",
        "Statement": {"Effect": "Allow", "Action": "bedrock-agentcore:List*", "Resource": "*"},
    }
    keys = (await stand.assume("keys", token(provider), Policy=json.dumps(narrowed)))["Credentials"]
    assert await stand.call(keys, "bedrock-agentcore-control", lambda c: c.list_workload_identities())
    with pytest.raises(ClientError, match="because no session policy allows"):
        await stand.call(keys, "bedrock-agentcore-control", lambda c: c.create_workload_identity(name="never"))


async def test_what_a_role_may_not_is_on_record(stand: RoleStand, provider: Any) -> None:
    """By whom, with which key, what, on what, and for whom: at operations, at operators' mounts, and of users."""
    keys = (await stand.assume("deployer", token(provider)))["Credentials"]
    for name in ("agent", "another"):
        with pytest.raises(ClientError):
            await stand.call(
                keys, "bedrock-agentcore", lambda c, name=name: c.get_workload_access_token(workloadName=name)
            )
    ask = RoleKeys(stand.url).ask
    assert (await asyncio.to_thread(ask, keys, "POST", "/operator-keys", b'{"name": "mine"}')).status_code == 403
    naming = (await stand.assume("keys", token(provider)))["Credentials"]
    with pytest.raises(ClientError, match="which GetWorkloadAccessTokenForUserId needs"):
        await stand.call(
            naming,
            "bedrock-agentcore",
            lambda c: c.get_workload_access_token_for_user_id(workloadName="agent", userId="bob"),
        )
    await stand.alarm.close()
    records = {record.details["action"]: record for record in await stand.recorded("role-denied")}
    assert {(name, one.details["access-key"]) for name, one in records.items()} == {
        ("bedrock-agentcore:GetWorkloadAccessToken", keys["AccessKeyId"]),
        ("agentkeep:WriteOperatorKeys", keys["AccessKeyId"]),
        ("agentkeep:ActForUser", naming["AccessKeyId"]),
    }
    first = records["bedrock-agentcore:GetWorkloadAccessToken"]
    assert first.principal == f"arn:aws:sts::{ACCOUNT}:assumed-role/deployer/olivia"
    assert first.details["resource"].endswith("workload-identity/agent")  # the second of a kind is counted


async def test_keys_expire_and_are_revoked_by_role(
    stand: RoleStand, provider: Any, make_plane: Callable[..., IdentityPlane], roles: Path, clock: Any
) -> None:
    """In this process at once, in another when its cache is old; keys given afterwards are good."""
    first = (await stand.assume("deployer", token(provider), DurationSeconds=900))["Credentials"]["AccessKeyId"]
    other = (await stand.assume("keys", token(provider)))["Credentials"]["AccessKeyId"]
    replica = make_plane(IdentitySettings(roles=roles)).keys
    keys = stand.plane.keys
    assert await keys.find(first) is not None and await replica.find(first) is not None
    await keys.revoke_role("deployer")
    assert await keys.find(first) is None
    clock.move(5)
    assert await replica.find(first) is None
    second = (await stand.assume("deployer", token(provider), DurationSeconds=900))["Credentials"]["AccessKeyId"]
    for kept in (second, other):
        assert await keys.find(kept) is not None and await replica.find(kept) is not None
    clock.move(901)
    assert await keys.find(second) is None and await replica.find(second) is None
    assert await keys.find(other) is not None


async def test_the_keys_of_a_role_that_is_gone_are_dead(
    stand: RoleStand, provider: Any, make_plane: Callable[..., IdentityPlane]
) -> None:
    key = (await stand.assume("deployer", token(provider)))["Credentials"]["AccessKeyId"]
    assert await make_plane(IdentitySettings()).keys.find(key) is None


async def test_who_a_key_is(stand: RoleStand) -> None:
    """Of operators; nobody of an unknown key, a wrong secret, or without a signature."""
    who = await stand.call(None, "sts", lambda sts: sts.get_caller_identity())
    assert (who["Arn"], who["UserId"][:4]) == (f"arn:aws:iam::{ACCOUNT}:user/admin", "AIDA")
    wrong = {"AccessKeyId": stand.admin.id, "SecretAccessKey": "x" * 40}
    unknown = {"AccessKeyId": "AKIAAAAAAAAAAAAAAAAA", "SecretAccessKey": "x" * 40}
    for given, code in ((wrong, "SignatureDoesNotMatch"), (unknown, "InvalidClientTokenId")):
        with pytest.raises(ClientError) as raised:
            await stand.call(given, "sts", lambda sts: sts.get_caller_identity())
        assert raised.value.response["Error"]["Code"] == code


async def test_without_a_record_no_keys(
    make_plane: Callable[..., IdentityPlane], roles: Path, provider: Any, free_tcp_port: int, store: ValkeyKeyValueStore
) -> None:
    class Away:
        async def record(self, record: AuditRecord) -> None:
            raise StoreUnavailable("away")

    plane = make_plane(IdentitySettings(roles=roles), audit=Away())
    stand = RoleStand(plane, KeyValueAudit(store), free_tcp_port, provider.clock)
    await stand.start()
    try:
        assert (await refusal(stand, "deployer", token(provider)))[:2] == ("ServiceUnavailable", 503)
    finally:
        await stand.stop()


async def test_the_provider_is_away(stand: RoleStand, provider: Any) -> None:
    """IDN-5: a code that clients retry; never keys."""
    provider.up = False
    assert (await refusal(stand, "deployer", token(provider)))[0] == "IDPCommunicationError"
    provider.up = True


async def test_a_profile_with_a_token_file(stand: RoleStand, provider: Any, tmp_path: Path) -> None:
    """An unmodified SDK in a process of its own: the file, the role and the endpoint are all it knows."""
    (tmp_path / "token").write_text(token(provider))
    (tmp_path / "config").write_text(
        f"[profile ops]\nregion = {REGION}\nrole_arn = {role_arn('deployer')}\nrole_session_name = from-a-profile\n"
        f"web_identity_token_file = {tmp_path / 'token'}\n"
    )
    script = (
        "import boto3, json; s = boto3.Session(profile_name='ops');"
        "made = s.client('bedrock-agentcore-control').create_workload_identity(name='by-profile');"
        "print(json.dumps([s.client('sts').get_caller_identity()['Arn'], made['name']]))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL_STS": f"{stand.url}/sts",
        "AWS_ENDPOINT_URL_BEDROCK_AGENTCORE_CONTROL": stand.url,
    }

    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [f"arn:aws:sts::{ACCOUNT}:assumed-role/deployer/from-a-profile", "by-profile"]
