"""IDN-1, IDN-2: operators, applications and auditors on the running platform, each by a token and its role."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from platform_process import PlatformProcess, running_platform
from role_keys import ACCOUNT, RoleKeys

pytestmark = pytest.mark.slow


@dataclass
class People(RoleKeys):
    platform: PlatformProcess
    issuer: str

    @cached_property
    def _operator(self) -> tuple[str, str]:
        found = self.platform.variables
        return found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"]

    def token(self, subject: str) -> str:
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token_type": "urn:agentkeep:token-type:development-user",
            "subject_token": subject,
            "audience": "people",
        }
        answer = httpx.post(f"{self.issuer}/token", data=form, auth=self._operator, trust_env=False)
        return str(answer.raise_for_status().json()["access_token"])

    def role(self, name: str, subject: str) -> dict[str, Any]:
        return self.assume(name, self.token(subject), subject)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    folder = tmp_path_factory.mktemp("people")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    issuer = f"http://127.0.0.1:{port}/oidc"

    def role(name: str, **what: Any) -> dict[str, Any]:
        return {"name": name, "trust": [{"issuer": issuer, "audiences": ["people"], "claims": {"sub": name}}], **what}

    alice = {
        "Effect": "Allow",
        "Action": "agentkeep:ActForUser",
        "Resource": f"arn:aws:agentkeep::{ACCOUNT}:user/alice",
    }
    roles = [
        role("deployer", policies=["deployer"]),
        role("auditor", policies=["auditor"]),
        role("app", policies=["application"], policy={"Version": "2012-10-17", "Statement": [alice]}),
    ]
    (folder / "roles.json").write_text(json.dumps({"roles": roles}))
    with running_platform(
        folder / "data", port, AGENTKEEP_IDENTITY_ROLES=str(folder / "roles.json"), AGENTKEEP_LOG_LEVEL="DEBUG"
    ) as platform:
        yield People(platform.endpoint, platform, issuer)


def test_each_may_what_its_role_says(people: People) -> None:
    """A deployer makes a memory and a gateway and can read neither events nor audit records; an application keeps
    events, for the user it may act for alone; an auditor reads records, and changes nothing. What an application did
    for a user is on record under the application's name. Nobody's token or key is in a log."""
    deployer, app, auditor = (people.role(name, name) for name in ("deployer", "app", "auditor"))
    control = people.client("bedrock-agentcore-control", deployer)
    memory = control.create_memory(name="notes", eventExpiryDuration=7)["memory"]["id"]
    gateway = control.create_gateway(
        name="tools", roleArn="arn:aws:iam::000000000000:role/x", protocolType="MCP", authorizerType="AWS_IAM"
    )["gatewayId"]

    def events(keys: dict[str, Any], actor: str) -> Any:
        return people.client("bedrock-agentcore", keys).list_sessions(memoryId=memory, actorId=actor)

    assert events(app, "alice")["sessionSummaries"] == []
    for keys, actor, action in (
        (app, "bob", "agentkeep:ActForUser"),
        (deployer, "alice", "bedrock-agentcore:ListSessions"),
        (auditor, "alice", "bedrock-agentcore:ListSessions"),
    ):
        with pytest.raises(ClientError, match=f"is not authorized to perform: {action} on resource: "):
            events(keys, actor)
    for keys in (app, auditor):
        with pytest.raises(ClientError, match="not authorized to perform: bedrock-agentcore:CreateMemory"):
            people.client("bedrock-agentcore-control", keys).create_memory(name="never", eventExpiryDuration=7)

    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    statuses = {
        (name, path): people.ask(keys, method, path, body).status_code
        for name, keys in (("deployer", deployer), ("app", app), ("auditor", auditor))
        for method, path, body in (
            ("GET", "/audit-records", b""),
            ("GET", "/traces", b""),
            ("POST", "/operator-keys", b'{"name": "mine"}'),
            ("POST", "/roles/app/revoke", b""),
            ("POST", f"/gateways/{gateway}/mcp", ping),
        )
    }
    allowed = {where for where, status in statuses.items() if status != 403}
    assert allowed == {("auditor", "/audit-records"), ("deployer", "/traces"), ("app", f"/gateways/{gateway}/mcp")}

    records = people.ask(auditor, "GET", "/audit-records?user=alice").json()["records"]
    principals = {record["principal"] for record in records if record["kind"] == "acted-for-user"}
    assert f"arn:aws:sts::{ACCOUNT}:assumed-role/app/app" in principals
    log = "".join(file.read_text(errors="replace") for file in people.platform.data_dir.glob("*.log"))
    assert log and not any(keys["SecretAccessKey"] in log or keys["SessionToken"] in log for keys in (deployer, app))


def test_operators_list_and_revoke(people: People) -> None:
    """By the command; the keys are dead at once, and others are not. Keys of a role open no development issuer."""
    app, auditor = people.role("app", "app"), people.role("auditor", "auditor")
    listed = {role["name"]: role["policies"] for role in people.platform.json("roles", "list")["roles"]}
    assert listed == {"deployer": ["deployer"], "auditor": ["auditor"], "app": ["application", "its own"]}
    people.platform.run("roles", "revoke", "app")
    with pytest.raises(ClientError, match="InvalidClientTokenId"):
        people.client("sts", app).get_caller_identity()
    assert people.client("sts", auditor).get_caller_identity()["Arn"].endswith("assumed-role/auditor/auditor")
    kinds = {record["kind"] for record in people.platform.json("audit", "--limit", "1000")["records"]}
    assert {"role-assumed", "role-revoked"} <= kinds
    again = people.role("app", "app")
    refused = httpx.post(
        f"{people.issuer}/token", data={}, auth=(again["AccessKeyId"], again["SecretAccessKey"]), trust_env=False
    )
    assert refused.status_code == 401
