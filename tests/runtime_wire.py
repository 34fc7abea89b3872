"""The runtime plane behind the real front: what a client of a runtime sees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import boto3
import httpx
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.runtime.invocations.protected_resources import PLACE
from agentkeep.runtime.pump import InvocationRoute
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.mounts import Access, Mount
from agentkeep.wire import Router

SESSION = "x-amzn-bedrock-agentcore-runtime-session-id"
ROUTER = Router()


@dataclass
class RuntimeWire:
    url: str
    platform: Any
    credentials: Credentials
    http: httpx.AsyncClient

    def target(self, runtime_id: str, tail: str = "invocations", query: str = "") -> str:
        deployment = self.platform.deployment
        arn = quote(deployment.arn(f"runtime/{runtime_id}"), safe="")
        return f"{self.url}/runtimes/{arn}/{tail}{query}"

    async def ask(
        self,
        runtime_id: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
        tail: str = "invocations",
        query: str = "",
        bearer: str | None = None,
        signed: bool = True,
    ) -> httpx.Response:
        sent = {"accept": "application/json, text/event-stream", **(headers or {})}
        url = self.target(runtime_id, tail, query)
        if bearer is not None:
            sent["authorization"] = f"Bearer {bearer}"
        elif signed:
            request = AWSRequest(method, url, data=body, headers=sent)
            SigV4Auth(self.credentials, "bedrock-agentcore", self.platform.deployment.region).add_auth(request)
            sent |= dict(request.headers.items())
        return await self.http.request(method, url, content=body or None, headers=sent)

    def client(self, **options: Any) -> Any:
        """An unmodified boto3 client."""
        return boto3.client(
            "bedrock-agentcore",
            endpoint_url=self.url,
            region_name=self.platform.deployment.region,
            aws_access_key_id=self.credentials.access_key,
            aws_secret_access_key=self.credentials.secret_key,
            config=Config(retries={"total_max_attempts": 1}, **options),
        )


@asynccontextmanager
async def runtime_wire(platform: Any) -> AsyncIterator[RuntimeWire]:
    """`platform`: the fixture of tests/runtime."""
    plane = platform.plane
    authenticator = Authenticator(platform.identity.keys)
    mounts = [Mount("/runtimes", plane.protected_resources, Access.PUBLIC, place=PLACE)]
    application = Application(ROUTER, Switch(SelfBackend([plane])), authenticator, mounts=mounts, bearers=plane.bearers)
    route = InvocationRoute(plane.invocations, authenticator)
    server = Server(Front(application, [route]))
    await server.start()
    issued = await platform.identity.keys.issue_operator_key("operator", acts_for_users=True)
    async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
        yield RuntimeWire(f"http://127.0.0.1:{server.port}", platform, Credentials(issued.id, issued.secret), http)
    await server.stop(drain=0)
    await server.front.close()
    route.close()
