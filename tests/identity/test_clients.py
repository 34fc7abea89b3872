"""Unmodified clients: boto3, and the SDK's IdentityClient, against the plane behind its real front."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

import boto3
import pytest
from botocore.exceptions import ClientError

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Call, SessionRef, User
from agentkeep.identity.access_keys.keys import IssuedOperatorKey
from agentkeep.identity.development.issuer import GRANT_TYPE, SUBJECT_TOKEN_TYPE, DevelopmentIssuer, discovery_url
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.mounts import Access, Mount
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK writes its pydantic models in the old way
    from bedrock_agentcore.services.identity import IdentityClient

REGION = "us-west-2"


class Platform:
    def __init__(self, url: str, plane: IdentityPlane, issuer: DevelopmentIssuer, key: IssuedOperatorKey) -> None:
        self.url = url
        self.plane = plane
        self.issuer = issuer
        self.key = key

    def client(self, service: str, **credentials: Any) -> Any:
        defaults = {"aws_access_key_id": self.key.id, "aws_secret_access_key": self.key.secret}
        return boto3.client(service, endpoint_url=self.url, region_name=REGION, **(credentials or defaults))


@pytest.fixture
async def platform(
    store: ValkeyKeyValueStore, master_key: FileMasterKey, clock: Any, make_plane: Callable[..., IdentityPlane],
    free_tcp_port: int,
) -> AsyncIterator[Platform]:  # fmt: skip
    url = f"http://127.0.0.1:{free_tcp_port}"
    plane = make_plane(trusted_issuers=[discovery_url(f"{url}/oidc")])
    issuer = DevelopmentIssuer(f"{url}/oidc", plane.keys, store, master_key, clock, IdentitySettings())
    application = Application(
        Router(),
        Switch(SelfBackend([plane])),
        Authenticator(plane.keys, clock),
        mounts=[Mount("/oidc", issuer.app, Access.PUBLIC)],
    )
    front = Front(application)
    server = Server(front, "127.0.0.1", free_tcp_port)
    await server.start()
    yield Platform(url, plane, issuer, await plane.keys.issue_operator_key("admin", acts_for_users=True))
    await plane.close()
    await server.stop(0)
    await front.close()


def login(platform: Platform, user: str) -> str:
    """As `agentkeep login` does: the operator's key for the client, the user's name for the subject."""
    connection = http.client.HTTPConnection(platform.url.removeprefix("http://"), timeout=10)
    form = {"grant_type": GRANT_TYPE, "subject_token_type": SUBJECT_TOKEN_TYPE, "subject_token": user}
    basic = base64.b64encode(f"{platform.key.id}:{platform.key.secret}".encode()).decode()
    connection.request("POST", "/oidc/token", urlencode(form), {"authorization": f"Basic {basic}"})
    response = connection.getresponse()
    assert response.status == 200
    token: str = json.loads(response.read())["access_token"]
    connection.close()
    return token


async def test_boto3(platform: Platform, operator: Call) -> None:
    def work() -> tuple[str, str]:
        control, data = platform.client("bedrock-agentcore-control"), platform.client("bedrock-agentcore")
        created = control.create_workload_identity(
            name="agent", allowedResourceOauth2ReturnUrls=["http://localhost:8081/oauth2"], tags={"team": "red"}
        )
        assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
        arn = created["workloadIdentityArn"]
        assert arn.endswith(":workload-identity-directory/default/workload-identity/agent")
        assert control.list_tags_for_resource(resourceArn=arn)["tags"] == {"team": "red"}
        control.tag_resource(resourceArn=arn, tags={"env": "dev"})
        control.untag_resource(resourceArn=arn, tagKeys=["team"])
        assert control.list_tags_for_resource(resourceArn=arn)["tags"] == {"env": "dev"}
        got = control.get_workload_identity(name="agent")
        assert got["createdTime"].tzinfo is not None
        for _ in range(2):
            control.create_workload_identity(name=f"agent-{_}")
        pages = control.get_paginator("list_workload_identities").paginate(PaginationConfig={"PageSize": 2})
        assert [one["name"] for page in pages for one in page["workloadIdentities"]] == ["agent", "agent-0", "agent-1"]
        with pytest.raises(control.exceptions.ConflictException):
            control.create_workload_identity(name="agent")
        with pytest.raises(control.exceptions.ResourceNotFoundException):
            control.get_workload_identity(name="absent")
        with pytest.raises(ClientError, match="ValidationException"):
            control.create_workload_identity(name="not a name")

        alone = data.get_workload_access_token(workloadName="agent")["workloadAccessToken"]
        user_token = login(platform, "alice")
        data.get_workload_access_token_for_user_id(workloadName="agent", userId="alice")
        for_user = data.get_workload_access_token_for_jwt(workloadName="agent", userToken=user_token)
        with pytest.raises(data.exceptions.UnauthorizedException):
            data.get_workload_access_token_for_jwt(workloadName="agent", userToken=user_token[:-4] + "AAAA")
        deleted = control.delete_workload_identity(name="agent-0")
        assert deleted["ResponseMetadata"]["HTTPStatusCode"] == 204
        return alone, for_user["workloadAccessToken"]

    alone, for_user = await asyncio.to_thread(work)
    tokens = platform.plane.workload_tokens
    assert (await tokens.verify(alone, operator.caller)).user is None
    assert (await tokens.verify(for_user, operator.caller)).user == User("alice", platform.issuer.url)


async def test_the_sdks_identity_client(platform: Platform, operator: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of the SDK's local mode (contract notes 4.4), up to where it uses credential providers."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the keys of whoever used it first
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_AGENTCORE", platform.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_AGENTCORE_CONTROL", platform.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", platform.key.id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", platform.key.secret)

    def work() -> list[str]:
        client = IdentityClient(REGION)
        name = client.create_workload_identity()["name"]
        assert name.startswith("workload-")
        client.update_workload_identity(name, ["http://localhost:8081/oauth2/callback"])
        identity = client.get_workload_identity(name)
        assert identity["allowedResourceOauth2ReturnUrls"] == ["http://localhost:8081/oauth2/callback"]
        answers = [
            client.get_workload_access_token(name),
            client.get_workload_access_token(name, user_id="alice"),
            client.get_workload_access_token(name, user_token=login(platform, "alice")),
        ]
        return [answer["workloadAccessToken"] for answer in answers]

    verify = platform.plane.workload_tokens.verify
    users = [(await verify(token, operator.caller)).user for token in await asyncio.to_thread(work)]
    assert users == [None, User("alice"), User("alice", platform.issuer.url)]


async def test_bad_keys_are_refused(platform: Platform) -> None:
    """IDN-5: wrong secrets, revoked keys, and sessions' keys outside their session."""
    revoked = await platform.plane.keys.issue_operator_key("gone")
    await platform.plane.keys.revoke_operator_key(revoked.id)
    session = await platform.plane.keys.issue_for_session(SessionRef("helper-1234567890", "s" * 36), User("alice"))

    def work() -> None:
        for key_id, secret, token in (
            (platform.key.id, "x" * 40, None),
            (revoked.id, revoked.secret, None),
            ("AKIAAAAAAAAAAAAAAAAA", platform.key.secret, None),
            (session.access_key_id, session.secret_access_key, session.session_token),
            (session.access_key_id, session.secret_access_key, None),
            (platform.key.id, platform.key.secret, "a-token-it-never-had"),
        ):
            client = platform.client(
                "bedrock-agentcore-control",
                aws_access_key_id=key_id,
                aws_secret_access_key=secret,
                aws_session_token=token,
            )
            with pytest.raises(ClientError) as error:
                client.list_workload_identities()
            assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] in (401, 403)

    await asyncio.to_thread(work)
