"""Roles on the compose deployment: the sample's, dropped in as its page says, and two of the tests' own."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError
from compose_stack import REPOSITORY, ComposeStack
from role_keys import ACCOUNT, LISTS, REGION, RoleKeys

__all__ = ["AUDIENCE", "ComposeRoles"]

AUDIENCE = "agentkeep-roles"
_SAMPLE = REPOSITORY / "infra" / "compose" / "identity" / "roles.example.json"
_NO_AWS = {"rules": [{"name": "no AWS", "agents": ["*"], "keys": "platform"}], "default": "refuse"}


@dataclass
class ComposeRoles(RoleKeys):
    """`before`: what STS said to who asked for a role when there was no file yet."""

    stack: ComposeStack
    before: str = ""
    _tokens: dict[str, str] = field(default_factory=dict)

    def drop_in(self) -> None:
        """As docs/development/compose.md says: the files, and a restart."""
        folder = self.stack.identity_folder
        try:
            self.assume("deployer", self.token("alice"), "alice")
        except ClientError as refused:
            self.before = refused.response["Error"]["Code"]
        text = _SAMPLE.read_text().replace("http://localhost:8180", f"http://localhost:{self.stack.keycloak_port}")
        roles = json.loads(text)
        roles["roles"] += self._own()
        (folder / "roles.json").write_text(json.dumps(roles))
        (folder / "sts-rules.json").write_text(json.dumps(_NO_AWS))
        self.stack.compose("restart", "identity")
        self.stack.up()

    def token(self, user: str) -> str:
        """Of the realm, for roles alone."""
        if user not in self._tokens:
            self._tokens[user] = self.stack.token(user, "roles")
        return self._tokens[user]

    def keys(self, role: str, user: str) -> dict[str, Any]:
        return self.assume(role, self.token(user), user)

    def _own(self) -> list[dict[str, Any]]:
        """`talker` uses what is called roles_..., as bob alone; `invoker` the same agents, but not by WebSocket."""
        trust = {"issuer": self.stack.issuer, "audiences": [AUDIENCE]}
        agents = f"arn:aws:bedrock-agentcore:{REGION}:{ACCOUNT}:runtime/roles_*"
        invoke = "bedrock-agentcore:InvokeAgentRuntime"
        talker = [
            _allow([invoke, f"{invoke}WithWebSocketStream", "bedrock-agentcore:StopRuntimeSession"], agents),
            _allow(
                ["bedrock-agentcore:CreateEvent", "bedrock-agentcore:ListEvents"],
                f"arn:aws:bedrock-agentcore:{REGION}:{ACCOUNT}:memory/roles_*",
            ),
            _allow(["agentkeep:ActForUser"], f"arn:aws:agentkeep::{ACCOUNT}:user/bob"),
            _allow(
                ["bedrock-agentcore:InvokeGateway"], f"arn:aws:bedrock-agentcore:{REGION}:{ACCOUNT}:gateway/roles-*"
            ),
            _allow([*LISTS, "bedrock-agentcore:GetWorkloadAccessToken"], "*"),
        ]
        return [
            {"name": "talker", "trust": [trust], "policy": {"Version": "2012-10-17", "Statement": talker}},
            {"name": "invoker", "trust": [trust],
             "policy": {"Version": "2012-10-17", "Statement": [_allow([invoke], agents)]}},
        ]  # fmt: skip


def _allow(actions: list[str], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": resource}


def claims(token: str) -> dict[str, Any]:
    """Of a token, unverified."""
    middle = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    return found
