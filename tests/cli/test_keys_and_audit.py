"""`agentkeep keys` and `audit`, on the running platform (IDN-2, MEM-5)."""

from __future__ import annotations

import secrets
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from platform_process import PlatformProcess


def client(platform: PlatformProcess, service: str, key: dict[str, Any]) -> Any:
    return boto3.client(
        service,
        endpoint_url=platform.endpoint,
        region_name="us-east-1",
        aws_access_key_id=key["accessKeyId"],
        aws_secret_access_key=key["secretAccessKey"],
    )


@pytest.mark.slow
def test_a_key_that_acts_for_users_and_one_that_does_not(platform: PlatformProcess) -> None:
    """The refusal names the command; what the other does is on record, and found by user; a revoked key is dead."""
    name, user = "k" + secrets.token_hex(4), "user-" + secrets.token_hex(4)
    plain = platform.json("keys", "create", name)
    acting = platform.json("keys", "create", f"{name}-app", "--acts-for-users")
    memory = client(platform, "bedrock-agentcore-control", plain).create_memory(name=name, eventExpiryDuration=7)
    asked = {"memoryId": memory["memory"]["id"], "actorId": user}
    with pytest.raises(ClientError, match="agentkeep keys create NAME --acts-for-users"):
        client(platform, "bedrock-agentcore", plain).list_sessions(**asked)
    assert client(platform, "bedrock-agentcore", acting).list_sessions(**asked)["sessionSummaries"] == []
    [record] = platform.json("audit", "--user", user)["records"]
    assert (record["kind"], record["details"]["access-key"]) == ("acted-for-user", acting["accessKeyId"])
    assert f"called ListSessions on memory {asked['memoryId']}" in platform.run("audit", "--user", user).stdout
    issued = platform.json("audit", "--kind", "operator-key-issued", "--limit", "1000")["records"]
    assert any(f"'{name}-app' that acts for users" in each["summary"] for each in issued)
    listed = {key["accessKeyId"]: key["actsForUsers"] for key in platform.json("keys", "list")["keys"]}
    assert (listed[plain["accessKeyId"]], listed[acting["accessKeyId"]]) == (False, True)
    platform.run("keys", "revoke", acting["accessKeyId"])
    with pytest.raises(ClientError):
        client(platform, "bedrock-agentcore", acting).list_sessions(**asked)
