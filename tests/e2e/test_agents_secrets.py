"""An agent that uses a stored API key, as its developer writes it; and where that key is not."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from canaries import canary, leaking_files
from platform_process import PlatformProcess, running_platform

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

AGENT = """
import hashlib

import boto3
from bedrock_agentcore import BedrockAgentCoreApp
from bedrock_agentcore.identity.auth import requires_api_key
from bedrock_agentcore.runtime import BedrockAgentCoreContext
from botocore.exceptions import ClientError

app = BedrockAgentCoreApp()

def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()

@requires_api_key(provider_name="weather")
def use(*, api_key):
    return digest(api_key)

@requires_api_key(provider_name="weather")
async def use_async(*, api_key):
    return digest(api_key)

def code(operation, **request):
    try:
        operation(**request)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "allowed"

@app.entrypoint
async def invoke(payload, context):
    data, control = boto3.client("bedrock-agentcore"), boto3.client("bedrock-agentcore-control")
    own = BedrockAgentCoreContext.get_workload_access_token()
    asked = {"resourceCredentialProviderName": "weather"}
    if "stolen" in payload:
        return code(data.get_resource_api_key, workloadIdentityToken=payload["stolen"], **asked)
    if own is None:
        return {"own": None, "made up": code(data.get_resource_api_key, workloadIdentityToken="made-up", **asked)}
    return {
        "sync": use(),
        "async": await use_async(),
        "token": own,
        "absent": code(data.get_resource_api_key, workloadIdentityToken=own, resourceCredentialProviderName="absent"),
        "made up": code(data.get_resource_api_key, workloadIdentityToken="made-up", **asked),
        "read": code(control.get_api_key_credential_provider, name="weather"),
        "replace": code(control.update_api_key_credential_provider, name="weather", apiKey="mine"),
        "speak for bob": code(data.get_workload_access_token_for_user_id, workloadName="any", userId="bob"),
    }

app.run()
"""


def _invoke(platform: PlatformProcess, runtime: str, user: str | None, payload: dict[str, Any]) -> Any:
    request: dict[str, Any] = {"runtimeUserId": user} if user else {}
    answer = platform.client("bedrock-agentcore").invoke_agent_runtime(
        agentRuntimeArn=runtime, runtimeSessionId=str(uuid.uuid4()), payload=json.dumps(payload).encode(), **request
    )
    return json.loads(answer["response"].read())


def test_a_sealed_agent_uses_an_api_key(tmp_path: Path) -> None:
    """IDN-2, IDN-3: with the SDK's own decorator, for the user it acts for; nobody else with its token, and the
    key in no file of a platform that logs all it can."""
    folder, data_dir = tmp_path / "agent", tmp_path / "data"
    folder.mkdir()
    (folder / "main.py").write_text(AGENT)
    (folder / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
    secret, client_secret = canary(), canary()
    expected = {
        "sync": hashlib.sha256(secret.encode()).hexdigest(),
        "async": hashlib.sha256(secret.encode()).hexdigest(),
        "absent": "ResourceNotFoundException",
        "made up": "UnauthorizedException",
        "read": "AccessDeniedException",
        "replace": "AccessDeniedException",
        "speak for bob": "AccessDeniedException",
    }
    with running_platform(data_dir, AGENTKEEP_LOG_LEVEL="DEBUG") as platform:
        control = platform.client("bedrock-agentcore-control")
        control.create_api_key_credential_provider(name="weather", apiKey=secret)
        created = control.create_oauth2_credential_provider(
            name="github",
            credentialProviderVendor="GithubOauth2",
            oauth2ProviderConfigInput={
                "githubOauth2ProviderConfig": {"clientId": "agent", "clientSecret": client_secret}
            },
        )
        assert created["callbackUrl"].startswith(platform.endpoint + "/identities/oauth2/callback/")

        signed = platform.json("deploy", str(folder), "--name", "signed", "--iam")["agentRuntimeArn"]
        alices = _invoke(platform, signed, "alice", {})
        token = alices.pop("token")
        assert alices == expected
        assert _invoke(platform, signed, "bob", {"stolen": token}) == "AccessDeniedException"
        assert _invoke(platform, signed, None, {"stolen": token}) == "AccessDeniedException"
        assert _invoke(platform, signed, None, {}) == {"own": None, "made up": "AccessDeniedException"}

        # The user proved by a token instead of named by an operator.
        platform.json("deploy", str(folder), "--name", "bearer")
        answer = json.loads(_answer(platform.json("invoke", "bearer", "go", "--user", "alice")))
        bearers = answer.pop("token")
        assert answer == expected
        assert _invoke(platform, signed, "alice", {"stolen": bearers}) == "AccessDeniedException"
    assert leaking_files(data_dir, [secret, client_secret]) == []
    assert leaking_files(data_dir, ["got the API key of credential provider weather"]) != [], "it was audited"


def _answer(printed: dict[str, Any]) -> str:
    answer = printed["answer"]
    return answer if isinstance(answer, str) else json.dumps(answer)
