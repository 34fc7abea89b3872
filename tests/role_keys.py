"""Keys of roles as their holders get and use them: by boto3, and by signed requests to what has no operation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import boto3
import httpx
from botocore import UNSIGNED
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from agentkeep.service.ownership import PLANES

__all__ = ["ACCOUNT", "LISTS", "REGION", "RoleKeys", "refused_within", "role_arn"]

ACCOUNT, REGION = "000000000000", "us-east-1"
_MCP = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
#: What `reads` needs, all of it on "*".
LISTS = (
    "bedrock-agentcore:ListAgentRuntimes", "bedrock-agentcore:ListGateways", "bedrock-agentcore:ListMemories",
    "bedrock-agentcore:ListWorkloadIdentities", "agentkeep:ReadAlerts",
)  # fmt: skip


def role_arn(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"


@dataclass
class RoleKeys:
    """`keys`, everywhere: `Credentials` as AssumeRoleWithWebIdentity answers them."""

    endpoint: str

    def assume(self, role: str, token: str, name: str) -> dict[str, Any]:
        sts = boto3.client(
            "sts",
            endpoint_url=f"{self.endpoint}/sts",
            region_name=REGION,
            config=Config(signature_version=UNSIGNED, retries={"total_max_attempts": 1}),
        )
        answer = sts.assume_role_with_web_identity(RoleArn=role_arn(role), RoleSessionName=name, WebIdentityToken=token)
        found: dict[str, Any] = answer["Credentials"]
        return found

    def client(self, service: str, keys: dict[str, Any], endpoint: str | None = None) -> Any:
        """`endpoint`: another than the deployment's: one replica's."""
        return boto3.client(
            service,
            endpoint_url=(endpoint or self.endpoint) + ("/sts" if service == "sts" else ""),
            region_name=REGION,
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys["SessionToken"],
            config=Config(retries={"total_max_attempts": 1}, read_timeout=120),
        )

    def signed(
        self, keys: dict[str, Any], method: str, path: str, body: bytes = b"", endpoint: str | None = None
    ) -> AWSRequest:
        request = AWSRequest(method, (endpoint or self.endpoint) + path, data=body)
        signing = Credentials(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])
        SigV4Auth(signing, "bedrock-agentcore", REGION).add_auth(request)
        return request

    def ask(
        self, keys: dict[str, Any], method: str, path: str, body: bytes = b"", endpoint: str | None = None
    ) -> httpx.Response:
        request = self.signed(keys, method, path, body, endpoint)
        headers = {**_MCP, **dict(request.headers.items())}
        return httpx.request(method, str(request.url), content=body, headers=headers, timeout=60, trust_env=False)

    def reads(self) -> dict[str, Callable[[dict[str, Any], str | None], int]]:
        """Of each plane, something for which it needs LISTS: the answer's status for these keys, asked of the
        deployment or of an `endpoint`."""

        def operation(name: str) -> Callable[[dict[str, Any], str | None], int]:
            def ask(keys: dict[str, Any], endpoint: str | None) -> int:
                try:
                    answer = getattr(self.client("bedrock-agentcore-control", keys, endpoint), name)()
                except ClientError as refused:
                    answer = refused.response
                return int(answer["ResponseMetadata"]["HTTPStatusCode"])

            return ask

        found = {
            "runtime": operation("list_agent_runtimes"),
            "gateway": operation("list_gateways"),
            "memory": operation("list_memories"),
            "identity": operation("list_workload_identities"),
            "observability": lambda keys, endpoint: self.ask(keys, "GET", "/alerts", endpoint=endpoint).status_code,
        }
        assert set(found) == set(PLANES)
        return found


def refused_within(asks: dict[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """When each was first refused (401 or 403), in seconds from now. AssertionError with who was not."""
    began, found = time.monotonic(), dict[str, float]()
    while set(found) != set(asks):
        assert time.monotonic() - began < seconds, f"accepted after {seconds:g} s: {sorted(set(asks) - set(found))}"
        for name in set(asks) - set(found):
            if asks[name]() in (401, 403):
                found[name] = round(time.monotonic() - began, 1)
        time.sleep(0.1)
    return found
