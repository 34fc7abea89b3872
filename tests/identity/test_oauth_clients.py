"""The unmodified SDK: `requires_access_token` in its three flows and `requires_api_key`, and its local mode."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from consent_stand import REGION, RETURN_URL, ConsentStand
from exchange_server import ExchangeServer
from openid_provider import RESOURCE, OpenIdServer, query

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK writes its pydantic models in the old way
    from bedrock_agentcore.identity.auth import requires_access_token, requires_api_key
    from bedrock_agentcore.runtime import BedrockAgentCoreContext
    from bedrock_agentcore.services.identity import IdentityClient, UserIdIdentifier, UserTokenIdentifier


@pytest.fixture
def sdk(stand: ConsentStand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ConsentStand:
    """What users of the SDK set: endpoints, region, keys."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the keys of whoever used it first
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_AGENTCORE", stand.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_AGENTCORE_CONTROL", stand.url)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", stand.key.id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", stand.key.secret)
    monkeypatch.delenv("DOCKER_CONTAINER", raising=False)
    monkeypatch.setattr("bedrock_agentcore.services.identity.DEFAULT_POLLING_INTERVAL_SECONDS", 0.3)
    monkeypatch.chdir(tmp_path)
    return stand


async def as_runtime_does(workload_token: str, call: Any) -> str:
    """Runs an agent's function as the SDK's server would, the invocation's workload access token in its context."""

    def run() -> str:
        BedrockAgentCoreContext.set_workload_access_token(workload_token)
        return str(call())

    return await asyncio.to_thread(run)


def told(user: Callable[[str], Coroutine[Any, Any, None]]) -> Callable[[str], None]:
    """For `on_auth_url`: the user's browser lives in this loop, the agent in a thread with another."""
    loop = asyncio.get_running_loop()
    return lambda url: asyncio.run_coroutine_threadsafe(user(url), loop).result(30)


async def test_m2m(sdk: ConsentStand, openid: OpenIdServer) -> None:
    await sdk.workload()
    client = await sdk.connect(openid)

    def call() -> str:
        @requires_access_token(
            provider_name="tickets", scopes=["tickets:read"], resources=[RESOURCE], auth_flow="M2M"
        )  # fmt: skip
        def agent(*, access_token: str = "") -> str:
            return access_token

        return agent()

    token = await as_runtime_does(await sdk.token_of("alice"), call)
    assert openid.introspect(token, client)["client_id"] == client["client_id"]


async def test_user_federation(sdk: ConsentStand, openid: OpenIdServer, provider: Any) -> None:
    """As the SDK's own poller does it, but without its five seconds between questions. The user comes to the
    application with the JWT that the workload access token was made from; the application confirms the user by it."""
    await sdk.workload()
    await sdk.connect(openid)
    identity = await asyncio.to_thread(IdentityClient, REGION)
    workload_token = (await asyncio.to_thread(
        identity.get_workload_access_token, "agent", user_token=provider.token()
    ))["workloadAccessToken"]  # fmt: skip
    browser = sdk.browser("alice")
    shown: list[str] = []

    async def alice(url: str) -> None:
        """Follows the link, says yes; the application at the return URL knows her, and says so."""
        shown.append(url)
        back = query(await browser.visit(url))
        assert back["state"] == "from the app"
        who = UserTokenIdentifier(user_token=provider.token(jti="later"))
        await asyncio.to_thread(identity.complete_resource_token_auth, back["session_id"], who)

    on_auth_url = told(alice)

    def call() -> str:
        @requires_access_token(
            provider_name="tickets", scopes=["openid"], auth_flow="USER_FEDERATION", on_auth_url=on_auth_url,
            callback_url=RETURN_URL, force_authentication=True, custom_state="from the app",
            custom_parameters={"prompt": "consent"},
        )  # fmt: skip
        async def agent(*, access_token: str = "") -> str:
            return access_token

        return asyncio.run(agent())

    token = await as_runtime_does(workload_token, call)
    assert openid.user_of(token) == "alice"
    assert len(shown) == 1


async def test_on_behalf_of(sdk: ConsentStand, exchange: ExchangeServer, provider: Any) -> None:
    await sdk.workload()
    await sdk.credential_provider(
        exchange.metadata, exchange.client_id, exchange.client_secret,
        onBehalfOfTokenExchangeConfig={"grantType": "TOKEN_EXCHANGE"},
    )  # fmt: skip
    identity = await asyncio.to_thread(IdentityClient, REGION)
    workload_token = (await asyncio.to_thread(
        identity.get_workload_access_token, "agent", user_token=provider.token(sub="bob")
    ))["workloadAccessToken"]  # fmt: skip

    def call() -> str:
        @requires_access_token(
            provider_name="tickets", scopes=["read"], audiences=["tickets"], auth_flow="ON_BEHALF_OF_TOKEN_EXCHANGE"
        )  # fmt: skip
        def agent(*, access_token: str = "") -> str:
            return access_token

        return agent()

    shown = exchange.shown(await as_runtime_does(workload_token, call))
    assert (shown["sub"], shown["scope"], shown["audience"]) == ("bob", "read", ["tickets"])


async def test_local_mode(sdk: ConsentStand, openid: OpenIdServer) -> None:
    """Without a token in its context the SDK makes a workload identity and a user of its own. The identity allows no
    return URL, so consent is refused until somebody adds it; the error says how. API keys need nothing more."""
    await sdk.connect(openid)

    def prepare() -> None:
        sdk.client("bedrock-agentcore-control").create_api_key_credential_provider(name="weather", apiKey="k-1")

    await asyncio.to_thread(prepare)
    browser = sdk.browser("alice")
    identity = await asyncio.to_thread(IdentityClient, REGION)

    async def alice(url: str) -> None:
        back = query(await browser.visit(url))
        user = json.loads(Path(".agentcore.json").read_text())["user_id"]
        await asyncio.to_thread(
            identity.complete_resource_token_auth, back["session_id"], UserIdIdentifier(user_id=user)
        )

    on_auth_url = told(alice)

    def call() -> tuple[str, str, str]:
        @requires_api_key(provider_name="weather")
        def first(*, api_key: str = "") -> str:
            return api_key

        @requires_access_token(
            provider_name="tickets", scopes=["openid"], auth_flow="USER_FEDERATION", on_auth_url=on_auth_url,
            callback_url=RETURN_URL,
        )  # fmt: skip
        def second(*, access_token: str = "") -> str:
            return access_token

        key = first()
        with pytest.raises(ClientError) as error:
            second()
        name = json.loads(Path(".agentcore.json").read_text())["workload_identity_name"]
        identity.update_workload_identity(name, [RETURN_URL])
        return key, str(error.value), second()

    # A context of its own: nobody's workload access token is in it.
    key, refused, token = await asyncio.to_thread(call)
    assert key == "k-1"
    assert "ValidationException" in refused
    assert "UpdateWorkloadIdentity with name=workload-" in refused
    assert openid.user_of(token) == "alice"
