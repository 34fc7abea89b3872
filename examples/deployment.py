"""A deployment of the platform, as the scenario sees it: from outside, with boto3, HTTP and users' tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import boto3
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SESSION_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"


class Refused(Exception):
    """The platform answered with an error. `status`: HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass
class Deployment:
    """`endpoint`: where clients reach the platform. `token`: of a user, by his name, from the OpenID provider at
    `discovery_url`; made out to `audience`.

    `deploy`: makes or updates the agent's runtime, with these environment variables; returns its id when it is READY.
    `order_service`: its URL as the gateway reaches it. `order_log`: what it wrote to standard output.
    `command`: runs `agentkeep` with these arguments for people to read; returns what it printed.
    """

    endpoint: str
    region: str
    credentials: Credentials = field(repr=False)
    discovery_url: str
    audience: str
    token: Callable[[str], str]
    deploy: Callable[[Mapping[str, str]], str]
    order_service: str
    order_log: Callable[[], str]
    command: Callable[..., str]

    def __post_init__(self) -> None:
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=5, read=300))

    def client(self, service: str) -> Any:
        """An operator's boto3 client, unmodified."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.credentials.access_key,
            aws_secret_access_key=self.credentials.secret_key,
        )

    def operate(self, method: str, path: str, document: object = None) -> Any:
        """One of the platform's own routes for operators. Raises Refused."""
        body = b"" if document is None else json.dumps(document).encode()
        request = AWSRequest(method, self.endpoint + path, data=body)
        SigV4Auth(self.credentials, "bedrock-agentcore", self.region).add_auth(request)
        return json.loads(self._answer(method, str(request.url), body, dict(request.headers.items())))

    def invoke(self, runtime_arn: str, user: str, session_id: str, payload: object, qualifier: str = "DEFAULT") -> str:
        """What the agent answers to this user, as he would ask: with his token, over HTTP. Raises Refused."""
        url = f"{self.endpoint}/runtimes/{quote(runtime_arn, safe='')}/invocations?qualifier={qualifier}"
        headers = {
            "Authorization": f"Bearer {self.token(user)}",
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            SESSION_HEADER: session_id,
        }
        return words(self._answer("POST", url, json.dumps(payload).encode(), headers).decode())

    def order_calls(self) -> list[dict[str, Any]]:
        """The order service's own log."""
        return [json.loads(line) for line in self.order_log().splitlines() if line.startswith("{")]

    def _answer(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        response = self._http.request(method, url, body=body, headers=dict(headers))
        if response.status >= 300:
            raise Refused(response.status, response.data.decode(errors="replace")[:500])
        return response.data


def words(answer: str) -> str:
    """The text of an answer of server-sent events, or of one JSON document. Raises Refused: the agent failed."""
    lines = [line.removeprefix("data:").strip() for line in answer.splitlines() if line.startswith("data:")]
    said = []
    for line in lines or [answer]:
        document = json.loads(line)
        if isinstance(document, dict) and "error" in document:
            raise Refused(200, f"the agent failed: {document['error']}")
        said.append(document if isinstance(document, str) else json.dumps(document))
    return "".join(said)
