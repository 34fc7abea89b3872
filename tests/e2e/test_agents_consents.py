"""An agent that asks its user for consent, as its developer writes it, in a sandbox without network; a real provider, a
real browser's way, and an application that confirms who came back."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from canaries import leaking_files
from openid_provider import RESOURCE, Browser, OpenIdServer, query, running_provider
from platform_process import PlatformProcess, running_platform

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

RETURN_URL = "http://app.example/back"
AGENT = """
import asyncio
import socket

import boto3
from bedrock_agentcore import BedrockAgentCoreApp
from bedrock_agentcore.identity.auth import requires_access_token
from botocore.exceptions import ClientError

app = BedrockAgentCoreApp()

@requires_access_token(provider_name="tickets", scopes=["tickets:read"], resources=["RESOURCE"], auth_flow="M2M")
async def own(*, access_token):
    return access_token[::-1]  # what an agent says may be traced

@app.entrypoint
async def invoke(payload, context):
    if payload.get("confirm"):
        try:
            boto3.client("bedrock-agentcore").complete_resource_token_auth(
                userIdentifier={"userId": "alice"}, sessionUri=payload["confirm"][::-1])
        except ClientError as error:
            yield {"confirm": error.response["Error"]["Code"]}
        return
    yield {"own": await own()}
    links = asyncio.Queue()

    @requires_access_token(
        provider_name="tickets", scopes=["openid"], auth_flow="USER_FEDERATION", callback_url="RETURN_URL",
        on_auth_url=links.put_nowait)
    async def users(*, access_token):
        return access_token[::-1]

    task = asyncio.create_task(users())
    link = asyncio.create_task(links.get())
    done, _ = await asyncio.wait({task, link}, return_when=asyncio.FIRST_COMPLETED)
    if link in done:
        yield {"link": link.result()}
    yield {"users": await task}

app.run()
""".replace("RESOURCE", RESOURCE).replace("RETURN_URL", RETURN_URL)


def _events(platform: PlatformProcess, runtime: str, user: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the agent says, as it says it."""
    answer = platform.client("bedrock-agentcore").invoke_agent_runtime(
        agentRuntimeArn=runtime, runtimeSessionId=str(uuid.uuid4()), runtimeUserId=user,
        payload=json.dumps(payload).encode(),
    )  # fmt: skip
    for line in answer["response"].iter_lines(chunk_size=1):
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


async def _visit(user: str, url: str) -> dict[str, str]:
    browser = Browser(user)
    try:
        return query(await browser.visit(url))
    finally:
        await browser.close()


def _connected(platform: PlatformProcess, openid: OpenIdServer) -> None:
    """As an operator does it: create, register the callback URL, write down the client this gave."""
    control = platform.client("bedrock-agentcore-control")

    def request(client: dict[str, Any]) -> dict[str, Any]:
        member = {
            "oauthDiscovery": {"discoveryUrl": openid.discovery_url},
            "clientId": client["client_id"],
            "clientSecret": client["client_secret"],
        }
        config = {"customOauth2ProviderConfig": member}
        return {
            "name": "tickets", "credentialProviderVendor": "CustomOauth2", "oauth2ProviderConfigInput": config
        }  # fmt: skip

    created = control.create_oauth2_credential_provider(**request({"client_id": "later", "client_secret": "later"}))
    assert created["callbackUrl"].startswith(platform.endpoint + "/identities/oauth2/callback/")
    control.update_oauth2_credential_provider(**request(openid.register(created["callbackUrl"])))


def test_a_sealed_agent_acts_by_its_users_consent(tmp_path: Path) -> None:
    """IDN-2, IDN-3: in all its sessions after one consent; for that user only; and the agent itself cannot say who
    consented."""
    folder, data_dir = tmp_path / "agent", tmp_path / "data"
    folder.mkdir()
    (folder / "main.py").write_text(AGENT)
    (folder / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
    with running_provider() as openid, running_platform(data_dir, AGENTKEEP_LOG_LEVEL="DEBUG") as platform:
        _connected(platform, openid)
        control, data = platform.client("bedrock-agentcore-control"), platform.client("bedrock-agentcore")
        runtime = platform.json("deploy", str(folder), "--name", "helper", "--iam")["agentRuntimeArn"]
        identity = runtime.rsplit("/", 1)[1]
        control.update_workload_identity(name=identity, allowedResourceOauth2ReturnUrls=[RETURN_URL])

        said = _events(platform, runtime, "alice", {})
        assert next(said)["own"]
        back = asyncio.run(_visit("alice", next(said)["link"]))
        (refused,) = _events(platform, runtime, "alice", {"confirm": back["session_id"][::-1]})
        assert refused == {"confirm": "AccessDeniedException"}
        data.complete_resource_token_auth(userIdentifier={"userId": "alice"}, sessionUri=back["session_id"])
        alices = next(said)["users"][::-1]
        assert openid.user_of(alices) == "alice"
        assert list(said) == []

        again = [event for event in _events(platform, runtime, "alice", {}) if "own" not in event]
        assert again == [{"users": alices[::-1]}], "another session of hers, without asking"
        bobs = _events(platform, runtime, "bob", {})
        assert [next(bobs).popitem()[0] for _ in range(2)] == ["own", "link"]

        # The callback is the platform's one page for strangers; whatever they bring.
        for path in ("", "x", "x?state=y&code=z"):
            assert httpx.get(f"{platform.endpoint}/identities/oauth2/callback/{path}").status_code == 400
        with pytest.raises(ClientError, match="AccessDeniedException"):
            data.complete_resource_token_auth(userIdentifier={"userId": "mallory"}, sessionUri=back["session_id"])
    assert leaking_files(data_dir, [alices, back["session_id"].rsplit(":", 1)[1]]) == []
