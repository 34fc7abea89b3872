"""Users' credentials in AWS where every plane is a process of its own: identity exchanges, runtime vends, memory
verifies."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zipfile import ZipFile

import boto3
import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from canaries import leaks
from joserfc import jwt
from joserfc.jwk import RSAKey
from service_processes import Services, running_services
from sts_stand_in import ACCOUNT, running_sts

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(240)]

AGENT = Path(__file__).parents[1] / "agents" / "in_aws"


class Provider:
    """An OpenID provider: what it publishes, and its tokens."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.key = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": "RS256"})

    def document(self, path: str) -> Any:
        if path == "/keys":
            return {"keys": [self.key.as_dict(private=False)]}
        return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}

    def token(self, user: str) -> str:
        now = int(time.time())
        claims = {"iss": self.url, "sub": user, "aud": "support", "iat": now, "exp": now + 600}
        return jwt.encode({"alg": "RS256", "kid": "k1"}, claims, self.key)


@contextmanager
def running_provider() -> Iterator[Provider]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(provider.document(self.path)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider = Provider(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()


def _deploy(services: Services, operator: dict[str, str], provider: Provider) -> tuple[str, str]:
    """The agent's ARN and a memory's id."""
    keys = Credentials(operator["accessKeyId"], operator["secretAccessKey"])
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "agent.zip")
        with ZipFile(archive, "w") as bundle:
            for file in AGENT.glob("*.*"):
                bundle.write(file, file.name)
        url = services["runtime"].url + "/artifacts/agentkeep/in_aws.zip"
        request = AWSRequest("PUT", url, data=archive.read_bytes())
        SigV4Auth(keys, "bedrock-agentcore", "us-east-1").add_auth(request)
        put = httpx.put(url, content=archive.read_bytes(), headers=dict(request.headers.items()))
        assert put.status_code in (200, 201), put.text

    def client(plane: str) -> Any:
        return boto3.client(
            "bedrock-agentcore-control", endpoint_url=services[plane].url, region_name="us-east-1",
            aws_access_key_id=keys.access_key, aws_secret_access_key=keys.secret_key,
        )  # fmt: skip

    control = client("runtime")
    made = control.create_agent_runtime(
        agentRuntimeName="helper",
        agentRuntimeArtifact={
            "codeConfiguration": {
                "code": {"s3": {"bucket": "agentkeep", "prefix": "in_aws.zip"}},
                "runtime": "PYTHON_3_11",
                "entryPoint": ["main.py"],
            }
        },
        roleArn="arn:aws:iam::000000000000:role/agentkeep",
        networkConfiguration={"networkMode": "PUBLIC"},
        authorizerConfiguration={
            "customJWTAuthorizer": {
                "discoveryUrl": f"{provider.url}/.well-known/openid-configuration",
                "allowedAudience": ["support"],
            }
        },
    )
    deadline = time.monotonic() + 90
    while (state := control.get_agent_runtime(agentRuntimeId=made["agentRuntimeId"]))["status"] == "CREATING":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert state["status"] == "READY", state
    memory = client("memory").create_memory(name="remembers", eventExpiryDuration=7)["memory"]["id"]
    return str(made["agentRuntimeArn"]), str(memory)


def test_five_services_and_sts() -> None:
    """IDN-1, IDN-4: the agent's boto3 has its user's role in AWS, signs with its keys for memory, another service, and
    reaches that user's alone; where STS is away a session is refused so that clients try again; the exchange is on
    record in the observability service, and no service has said a token or a key."""
    folder = Path(tempfile.mkdtemp(prefix="agentkeep-services-sts-"))
    try:
        with running_provider() as provider, running_sts() as sts:
            sts.trust(provider.url, "support")
            role = sts.role("helper", provider.url, {"StringEquals": {"{idp}:aud": "support"}})
            rule = {"name": "helpers", "agents": ["helper"], "issuer": provider.url, "role": role}
            rules = folder / "rules.json"
            rules.write_text(json.dumps({"rules": [rule], "default": "refuse"}))
            settings = {
                "AGENTKEEP_IDENTITY_STS_RULES": str(rules),
                "AGENTKEEP_IDENTITY_STS_ENDPOINT": sts.url,
                "AGENTKEEP_MEMORY_EMBEDDING": "none",
                "AGENTKEEP_LOG_LEVEL": "DEBUG",
                "AGENTKEEP_TELEMETRY_CONTENT": "false",
            }
            with running_services(folder, **settings) as services:
                operator = services.operator()
                arn, memory = _deploy(services, operator, provider)

                def invoke(user: str, token: str) -> httpx.Response:
                    session = str(uuid.uuid4())
                    return httpx.post(
                        f"{services['runtime'].url}/runtimes/{quote(arn, safe='')}/invocations",
                        headers={
                            "authorization": f"Bearer {token}",
                            "x-amzn-bedrock-agentcore-runtime-session-id": session,
                        },
                        json={"memory": memory, "user": user, "session": session},
                        timeout=60,
                    )

                secret = []
                for user in ("alice", "bob"):
                    token = provider.token(user)
                    answer = invoke(user, token)
                    assert answer.status_code == 200, answer.text
                    document = answer.json()
                    assert (document["own"], document["others"]) == (1, "AccessDeniedException")
                    client = boto3.client(
                        "sts", endpoint_url=sts.url, region_name="us-east-1",
                        **dict(zip(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
                                   document["keys"], strict=True)),
                    )  # fmt: skip
                    name = client.get_caller_identity()["Arn"]
                    assert name.startswith(f"arn:aws:sts::{ACCOUNT}:assumed-role/helper/{user}+helper+")
                    secret += [*document["keys"][1:], token.rpartition(".")[2]]
                sts.fails("Throttling")
                away = invoke("alice", provider.token("alice"))
                assert (away.status_code, away.headers["x-amzn-errortype"]) == (503, "ServiceUnavailableException")

                url = services["observability"].url + "/audit-records?kind=sts-exchange"
                request = AWSRequest("GET", url)
                keys = Credentials(operator["accessKeyId"], operator["secretAccessKey"])
                SigV4Auth(keys, "bedrock-agentcore", "us-east-1").add_auth(request)
                records = httpx.get(url, headers=dict(request.headers.items())).json()["records"]
                assert {record["user_id"] for record in records} == {"alice", "bob"}
                logs = {path: path.read_bytes() for path in folder.rglob("*.log")}
                assert any(b"users' credentials from" in log for log in logs.values())
                assert [path for path, log in logs.items() if leaks(log, secret)] == []
    finally:
        shutil.rmtree(folder, ignore_errors=True)
