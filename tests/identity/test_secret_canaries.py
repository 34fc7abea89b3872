"""Secrets planted in every request that may hold one, looked for in everything that comes out."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from aiohttp import web
from botocore.config import Config
from botocore.exceptions import ClientError
from canaries import canary, leaking_files, leaks
from exchange_server import ExchangeServer
from openid_provider import query

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.oauth2 import providers as oauth2_providers
from agentkeep.identity.oauth2.providers import CALLBACK_PATH
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.mounts import Access, Mount
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK writes its pydantic models in the old way
    from bedrock_agentcore.identity.auth import requires_api_key
    from bedrock_agentcore.runtime import BedrockAgentCoreContext

METADATA = {
    "issuer": "https://idp.example",
    "authorizationEndpoint": "https://idp.example/authorize",
    "tokenEndpoint": "https://idp.example/token",
}


class Platform:
    """An identity plane behind its front, with a Valkey of its own, whose files hold all that was ever written."""

    def __init__(self, folder: Path, url: str, plane: IdentityPlane, valkey: EmbeddedValkey) -> None:
        self.folder = folder
        self.url = url
        self.plane = plane
        self.valkey = valkey
        self.credentials: dict[str, str] = {}

    def client(self, service: str) -> Any:
        """boto3 without its own checks, so that bad requests arrive."""
        config = Config(parameter_validation=False, retries={"total_max_attempts": 1})
        return boto3.client(
            service, endpoint_url=self.url, region_name="us-east-1", config=config, **self.credentials
        )  # fmt: skip


@pytest.fixture
async def platform(tmp_path: Path, free_tcp_port: int) -> AsyncIterator[Platform]:
    url = f"http://127.0.0.1:{free_tcp_port}"
    clock = SystemClock()
    async with EmbeddedValkey(tmp_path / "valkey", appendfsync="no") as valkey:
        store = ValkeyKeyValueStore(valkey.url, time_limit=2)
        key = FileMasterKey(b"m" * 32)
        settings = IdentitySettings(credential_providers=3)
        plane = IdentityPlane(
            store, key, Deployment(), clock, settings, public_url=url, audit=KeyValueAudit(store)
        )  # fmt: skip
        backend = Switch(SelfBackend([plane]))
        mounts = [Mount(CALLBACK_PATH, plane.oauth2_callback, Access.PUBLIC)]
        front = Front(Application(Router(), backend, Authenticator(plane.keys, clock), mounts))
        server = Server(front, "127.0.0.1", free_tcp_port)
        await server.start()
        platform = Platform(tmp_path, url, plane, valkey)
        operator = await plane.keys.issue_operator_key("admin", acts_for_users=True)
        platform.credentials = {"aws_access_key_id": operator.id, "aws_secret_access_key": operator.secret}
        yield platform
        await plane.close()
        await server.stop(0)
        await front.close()
        await store.close()


def _custom(**config: Any) -> dict[str, Any]:
    discovery = {"oauthDiscovery": {"authorizationServerMetadata": METADATA}}
    return {
        "name": "idp",
        "credentialProviderVendor": "CustomOauth2",
        "oauth2ProviderConfigInput": {"customOauth2ProviderConfig": {**discovery, "clientId": "agent", **config}},
    }


def _bad_requests(secret: str) -> list[tuple[str, dict[str, Any]]]:
    """Operations with a secret where it belongs, or near, that are refused in every layer."""
    hidden = {"clientSecret": secret}
    custom = _custom(**hidden)
    url = f"https://agent:{secret.replace('/', '-')}@idp.example"
    requests: list[tuple[str, dict[str, Any]]] = []
    for verb in ("create", "update"):
        api_key, oauth2 = f"{verb}_api_key_credential_provider", f"{verb}_oauth2_credential_provider"
        requests += [
            (api_key, {"name": "absent!", "apiKey": secret}),  # a pattern
            (api_key, {"name": "x", "apiKey": secret * 1500}),  # a length
            (api_key, {"name": "x", "apiKey": {"nested": secret}}),  # a type
            (api_key, {"name": "x", "apiKey": [secret]}),
            (api_key, {"name": "x", "apiKey": secret, "apiKeySecretSource": "EXTERNAL"}),
            (oauth2, {**custom, "credentialProviderVendor": "GoogleOauth2"}),
            (oauth2, {**custom, "credentialProviderVendor": "NoSuchOauth2"}),
            (oauth2, _custom(clientSecret=secret * 50)),
            (oauth2, _custom(clientSecret={"nested": secret})),
            (oauth2, _custom(**hidden, clientSecretSource="EXTERNAL")),
            (oauth2, _custom(**hidden, clientAuthenticationMethod="PRIVATE_KEY_JWT", privateKeyJwtConfig={
                "additionalPayloadClaims": {"claim": secret}})),
            (oauth2, _custom(**hidden, oauthDiscovery={"authorizationServerMetadata": {
                **METADATA, "tokenEndpoint": url}})),
            (oauth2, _custom(**hidden, oauthDiscovery={"discoveryUrl": url + "/.well-known/openid-configuration"})),
            (oauth2, {**custom, "oauth2ProviderConfigInput": {
                **custom["oauth2ProviderConfigInput"], "googleOauth2ProviderConfig": {"clientId": "a", **hidden}}}),
        ]  # fmt: skip
    return [
        *requests,
        ("update_api_key_credential_provider", {"name": "absent", "apiKey": secret}),
        ("create_api_key_credential_provider", {"name": "weather", "apiKey": secret}),  # the name is taken
        ("create_api_key_credential_provider", {"name": "new", "apiKey": secret, "tags": {"aws:x": "y"}}),
    ]


async def test_no_planted_secret_comes_out(
    platform: Platform, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IDN-3: not in a log, an answer, an error, a repr, nor in anything Valkey was ever told; and what asks for it
    rightly gets it."""
    secrets = {name: canary() for name in ("first key", "key", "client", "refused", "refused url", "token")}
    secrets["refused url"] = secrets["refused"].replace("/", "-")
    caplog.set_level(logging.DEBUG)
    for name, value in platform.credentials.items():
        monkeypatch.setenv(name.upper(), value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the keys of whoever used it first
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_AGENTCORE", platform.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_AGENTCORE_CONTROL", platform.url)
    answers: list[Any] = []

    def work() -> None:
        control, data = platform.client("bedrock-agentcore-control"), platform.client("bedrock-agentcore")
        say = answers.append
        say(control.create_api_key_credential_provider(name="weather", apiKey=secrets["first key"]))
        say(control.update_api_key_credential_provider(name="weather", apiKey=secrets["key"]))
        say(control.create_oauth2_credential_provider(**_custom(clientSecret=secrets["client"])))
        say(control.update_oauth2_credential_provider(**_custom(clientSecret=secrets["client"])))
        for kind in ("api_key", "oauth2"):
            say(control.list_api_key_credential_providers())
            say(getattr(control, f"list_{kind}_credential_providers")())
        say(control.get_api_key_credential_provider(name="weather"))
        say(control.get_oauth2_credential_provider(name="idp"))
        arn = answers[2]["credentialProviderArn"]
        control.tag_resource(resourceArn=arn, tags={"team": "red"})
        assert control.list_tags_for_resource(resourceArn=arn)["tags"] == {"team": "red"}
        for operation, request in _bad_requests(secrets["refused"]):
            with pytest.raises(ClientError) as error:
                getattr(control, operation)(**request)
            assert 400 <= error.value.response["ResponseMetadata"]["HTTPStatusCode"] < 500, (operation, request)
            say((str(error.value), error.value.response))
        with pytest.raises(ClientError) as error:
            data.get_resource_api_key(workloadIdentityToken=secrets["token"], resourceCredentialProviderName="weather")
        say((str(error.value), error.value.response))
        assert error.value.response["Error"]["Code"] == "UnauthorizedException"

        # Whoever may have it gets it: boto3 and the SDK's decorator.
        control.create_workload_identity(name="agent")
        token = data.get_workload_access_token_for_user_id(workloadName="agent", userId="alice")["workloadAccessToken"]
        given = data.get_resource_api_key(workloadIdentityToken=token, resourceCredentialProviderName="weather")
        assert given["apiKey"] == secrets["key"]

        @requires_api_key(provider_name="weather")
        def call(*, api_key: str = "") -> str:
            return api_key

        BedrockAgentCoreContext.set_workload_access_token(token)
        assert call() == secrets["key"]

    await asyncio.to_thread(work)
    plane = platform.plane
    assert await plane._oauth2.stored.secret("idp") == secrets["client"]

    # The store goes away in the middle of all that.
    platform.valkey.stop_and_wait()

    def outage() -> None:
        control = platform.client("bedrock-agentcore-control")
        for operation, request in (
            ("create_api_key_credential_provider", {"name": "late", "apiKey": secrets["refused"]}),
            ("update_oauth2_credential_provider", _custom(clientSecret=secrets["refused"])),
        ):
            with pytest.raises(ClientError) as error:
                getattr(control, operation)(**request)
            assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] >= 500
            answers.append((str(error.value), error.value.response))

    await asyncio.to_thread(outage)

    planted = list(secrets.values())
    for answer in answers:
        assert not leaks(json.dumps(answer, default=str).encode(), planted)
    own = [record for record in caplog.records if not record.name.startswith(("boto", "urllib3"))]
    formatter = logging.Formatter()
    lines = [formatter.format(record) for record in own]
    assert any("met a store that is not available" in line for line in lines), "the outage was logged"
    for line in lines:
        assert not leaks(line.encode(), planted), line
    for record in own:
        assert not leaks(repr(record.__dict__).encode(), planted), record
    assert leaking_files(platform.folder, planted) == []
    # The search finds what is there.
    assert leaking_files(platform.folder, ["oauth2credentialprovider"]) != []
    assert leaking_files(platform.folder, ["api-key-used"]) != [], "audit records were searched"
    assert leaks(b"x" + base64.b64encode(b"ab" + planted[0].encode() + b"cd"), planted)


async def test_nothing_that_holds_a_secret_shows_it(platform: Platform) -> None:
    """Objects end up in debuggers, tracebacks and assertion messages."""
    secret = canary()
    given = _custom(clientSecret=secret)
    configuration = oauth2_providers._read("CustomOauth2", given["oauth2ProviderConfigInput"])
    assert configuration.secret == secret
    vault = platform.plane._vault
    envelope = await vault.seal(secret, "oauth2/idp")
    assert await vault.open(envelope, "oauth2/idp") == secret
    assert await vault.open(envelope, "oauth2/other") is None
    assert envelope != await vault.seal(secret, "oauth2/idp"), "equal secrets do not show as equal"
    plane = platform.plane
    provider = await plane._oauth2.create("idp", "CustomOauth2", given["oauth2ProviderConfigInput"], {})
    for holder in (configuration, vault, envelope, provider, provider.dump(), plane, plane._oauth2, plane._api_keys):
        assert not leaks(repr(holder).encode() + str(holder).encode(), [secret])


async def test_no_oauth2_token_comes_out(
    platform: Platform, exchange: ExchangeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """IDN-3: codes, access, refresh and id tokens, states and sessions, of consents that succeed and fail. The server
    says all that it is sent and gives again in its errors, and so might a log."""
    names = (
        "client",
        "code",
        "access",
        "refresh",
        "renewed",
        "id token",
        "own",
        "custom state",
        "parameter",
        "bad code",
    )
    secrets = {name: canary() for name in names}
    caplog.set_level(logging.DEBUG)
    mood = "good"

    async def answer(request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        if mood == "refuse":
            told = json.dumps([form, request.headers.get("authorization"), secrets["access"]])
            return web.json_response({"error": "invalid_grant", "error_description": told}, status=400)
        if mood == "break":
            return web.Response(status=500, text=json.dumps([form, secrets["access"]]))
        token = {"client_credentials": "own", "refresh_token": "renewed"}.get(form["grant_type"], "access")
        tokens = {"access_token": secrets[token], "refresh_token": secrets["refresh"], "id_token": secrets["id token"]}
        return web.json_response({**tokens, "token_type": "Bearer", "expires_in": 1})

    exchange.answer = answer
    back = "http://app.example/back"
    answers: list[Any] = []
    hidden: list[str] = []  # made by the platform: states, challenges, sessions

    async def call(operation: str, **request: Any) -> Any:
        control = "identity" in operation or "provider" in operation
        client = platform.client("bedrock-agentcore-control" if control else "bedrock-agentcore")
        return await asyncio.to_thread(getattr(client, operation), **request)

    async def refused(operation: str, *codes: str, **request: Any) -> None:
        with pytest.raises(ClientError) as error:
            await call(operation, **request)
        assert error.value.response["Error"]["Code"] in codes
        answers.append((str(error.value), error.value.response))

    given = _custom(clientSecret=secrets["client"], oauthDiscovery=exchange.metadata)
    created = await call("create_oauth2_credential_provider", **given)
    answers.append(created)
    await call("create_workload_identity", name="agent", allowedResourceOauth2ReturnUrls=[back])
    workload = await call("get_workload_access_token_for_user_id", workloadName="agent", userId="alice")
    asking = {
        "workloadIdentityToken": workload["workloadAccessToken"], "resourceCredentialProviderName": "idp",
        "scopes": [], "oauth2Flow": "USER_FEDERATION", "resourceOauth2ReturnUrl": back,
        "customState": secrets["custom state"], "customParameters": {"hint": secrets["parameter"]},
    }  # fmt: skip
    user = {"userIdentifier": {"userId": "alice"}}

    async def consent(code: str) -> str:
        asked = await call("get_resource_oauth2_token", **asking, forceAuthentication=True)
        sent = query(asked["authorizationUrl"])
        hidden.extend((sent["state"], asked["sessionUri"].rsplit(":", 1)[1]))
        async with httpx.AsyncClient() as browser:
            came = await browser.get(created["callbackUrl"], params={"state": sent["state"], "code": code})
            assert came.status_code == 302
            again = await browser.get(created["callbackUrl"], params={"state": sent["state"], "code": code})
            assert again.status_code == 400
            answers.append(again.text)
        return str(asked["sessionUri"])

    session = await consent(secrets["code"])
    await call("complete_resource_token_auth", sessionUri=session, **user)
    given = await call("get_resource_oauth2_token", **asking, sessionUri=session)
    assert given["accessToken"] == secrets["access"]
    await asyncio.sleep(1)
    assert (await call("get_resource_oauth2_token", **asking))["accessToken"] == secrets["renewed"]
    own = await call("get_resource_oauth2_token", **{**asking, "oauth2Flow": "M2M"})
    assert own["accessToken"] == secrets["own"]

    session = await consent(secrets["bad code"])
    confirmed = {**user, "sessionUri": session}
    own = {**asking, "oauth2Flow": "M2M", "forceAuthentication": True}
    for mood, code in (  # noqa: B007 - the server looks at it
        ("break", "ServiceUnavailableException"),
        ("refuse", "ValidationException"),
    ):
        await refused("complete_resource_token_auth", code, **confirmed)
        await refused("get_resource_oauth2_token", code, "AccessDeniedException", **own)
    confirmed["userIdentifier"] = {"userId": "mallory"}
    await refused("complete_resource_token_auth", "AccessDeniedException", **confirmed)
    assert len(answers) == 8

    planted = [*secrets.values(), *hidden]
    for told in answers:
        assert not leaks(json.dumps(told, default=str).encode(), planted)
    own_records = [
        record for record in caplog.records
        if not record.name.startswith(("boto", "urllib3", "httpx", "httpcore", "aiohttp.access"))
    ]  # fmt: skip
    lines = [logging.Formatter().format(record) for record in own_records]
    for expected in ("consented at", "came back from", "refused an authorization code: invalid_grant"):
        assert any(expected in line for line in lines), expected
    for record, line in zip(own_records, lines, strict=True):
        assert not leaks(line.encode() + repr(record.__dict__).encode(), planted), line
    platform.valkey.stop_and_wait()
    assert leaking_files(platform.folder, planted) == []
    assert leaking_files(platform.folder, ["consents"]) != []
    assert leaking_files(platform.folder, ["consent-completed"]) != [], "audit records were searched"
    oauth2 = platform.plane._oauth2
    for holder in (oauth2, platform.plane, platform.plane._federation, platform.plane.oauth2_callback):
        assert not leaks(repr(holder).encode(), planted)
