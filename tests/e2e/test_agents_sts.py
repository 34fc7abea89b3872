"""An agent in a real sandbox, its unmodified boto3, and the keys of its user's role: in AWS and here."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError
from canaries import leaking_files
from platform_process import PlatformProcess, running_platform
from sts_stand_in import ACCOUNT, StsStandIn, running_sts

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

AGENT = Path(__file__).parents[1] / "agents" / "in_aws"


@dataclass
class Stand:
    platform: PlatformProcess
    sts: StsStandIn
    memory: str
    runtimes: dict[str, str]

    def token(self, user: str) -> str:
        return str(self.platform.json("login", "--user", user)["access_token"])

    def invoke(self, agent: str, user: str, token: str, session: str | None = None) -> httpx.Response:
        arn, session = self.runtimes[agent], session or str(uuid.uuid4())
        return httpx.post(
            f"{self.platform.endpoint}/runtimes/{quote(arn, safe='')}/invocations",
            headers={
                "authorization": f"Bearer {token}",
                "x-amzn-bedrock-agentcore-runtime-session-id": session,
            },
            json={"memory": self.memory, "user": user, "session": session},
            timeout=60,
        )


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A platform that logs all it can, with AWS credentials lying about wherever AWS's libraries would find them, whose
    sessions get their users' keys from STS."""
    folder = tmp_path_factory.mktemp("sts")
    data, rules, planted = folder / "data", folder / "rules.json", folder / "credentials"
    planted.write_text("[default]\naws_access_key_id = AKIAPLANTED0000000000\naws_secret_access_key = planted\n")
    with running_sts() as sts:
        settings = {
            "AGENTKEEP_LOG_LEVEL": "DEBUG",
            "AGENTKEEP_TELEMETRY_CONTENT": "false",  # this agent says its keys aloud
            "AGENTKEEP_IDENTITY_STS_RULES": str(rules),
            "AGENTKEEP_IDENTITY_STS_ENDPOINT": sts.url,
            "AWS_SHARED_CREDENTIALS_FILE": str(planted),
            "AWS_ACCESS_KEY_ID": "AKIAPLANTED0000000001",
            "AWS_SECRET_ACCESS_KEY": "planted",
        }
        port = _free_port()
        issuer = f"http://127.0.0.1:{port}/oidc"
        rules.write_text(json.dumps({"rules": [_rule(issuer)], "default": "refuse"}))
        sts.trust(issuer, "agentkeep")
        sts.role("helper", issuer, {"StringEquals": {"{idp}:sub": ["alice", "bob"]}})
        with running_platform(data, port=port, **settings) as platform:
            control = platform.client("bedrock-agentcore-control")
            memory = control.create_memory(name="shared", eventExpiryDuration=7)["memory"]["id"]
            runtimes = {
                name: platform.json("deploy", str(AGENT), "--name", name)["agentRuntimeArn"]
                for name in ("helper", "stranger")
            }
            yield Stand(platform, sts, memory, runtimes)


def _rule(issuer: str) -> dict[str, Any]:
    role = f"arn:aws:iam::{ACCOUNT}:role/helper"
    return {"name": "helpers", "agents": ["helper"], "issuer": issuer, "role": role}


def _identity(sts: StsStandIn, keys: list[str]) -> str:
    client = boto3.client(
        "sts", endpoint_url=sts.url, region_name="us-east-1",
        aws_access_key_id=keys[0], aws_secret_access_key=keys[1], aws_session_token=keys[2],
    )  # fmt: skip
    return str(client.get_caller_identity()["Arn"])


def test_an_agent_is_its_user_in_aws_and_here(stand: Stand) -> None:
    """IDN-1, IDN-4: unmodified boto3 in the sandbox gets the role session of its user, signs with it here, reaches that
    user's memory and nobody else's; two users never get each other's; nothing is left in a file."""
    tokens = {user: stand.token(user) for user in ("alice", "bob")}
    seen: dict[str, list[str]] = {}
    before = stand.sts.exchanges
    for user, token in tokens.items():
        session = str(uuid.uuid4())
        answer = stand.invoke("helper", user, token, session)
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert (document["own"], document["others"]) == (1, "AccessDeniedException")
        seen[user] = document["keys"]
        assert _identity(stand.sts, document["keys"]).split("/")[-1].startswith(f"{user}+helper+")
        again = stand.invoke("helper", user, token, session).json()
        assert again["keys"] == document["keys"], "the same until they are renewed"
    assert stand.sts.exchanges == before + 2
    assert seen["alice"] != seen["bob"]

    # From outside of its session a key is nobody's.
    stolen = boto3.client(
        "bedrock-agentcore", endpoint_url=stand.platform.endpoint, region_name="us-east-1",
        aws_access_key_id=seen["alice"][0], aws_secret_access_key=seen["alice"][1], aws_session_token=seen["alice"][2],
    )  # fmt: skip
    with pytest.raises(ClientError):
        stolen.list_events(memoryId=stand.memory, actorId="alice", sessionId="s")

    records = stand.platform.json("audit", "--kind", "sts-exchange")["records"]
    assert {record["user_id"] for record in records} == {"alice", "bob"}
    secret = [part for keys in seen.values() for part in keys[1:]] + [token.split(".")[2] for token in tokens.values()]
    # The tokens lie where `agentkeep login` keeps them, for their user alone.
    assert [path for path in leaking_files(stand.platform.data_dir, secret) if path != "logins.json"] == []


def test_refused_where_no_rule_or_no_sts_is(stand: Stand) -> None:
    """IDN-1, IDN-2: another agent, a user whom the role does not trust, STS away: no session, and no other keys."""
    alice, carol = stand.token("alice"), stand.token("carol")
    assert stand.invoke("stranger", "alice", alice).status_code == 403
    assert stand.invoke("helper", "carol", carol).status_code == 403
    stand.sts.fails("Throttling")
    try:
        away = stand.invoke("helper", "alice", alice)
        assert (away.status_code, away.headers["x-amzn-errortype"]) == (503, "ServiceUnavailableException")
    finally:
        stand.sts.failure = None
    assert stand.invoke("helper", "alice", alice).status_code == 200
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        refusals = stand.platform.json("audit", "--kind", "sts-refusal")["records"]
        if {"alice", "carol"} <= {record["user_id"] for record in refusals}:
            break
    codes = {record["details"]["code"] for record in refusals}
    assert {"AccessDenied", "AccessDeniedException", "Throttling"} <= codes
    exchanges = [asked for asked in stand.sts.requests if "WebIdentityToken" in asked.form]
    assert exchanges and all("authorization" not in asked.headers for asked in exchanges)
    assert "PLANTED" not in repr(stand.sts.requests)
    assert leaking_files(stand.platform.data_dir, ["sessions get their users' credentials from"]) != []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
