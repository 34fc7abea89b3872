"""Both STSs where every plane is a process of its own. AWS's, for sessions: identity exchanges, runtime vends, memory
verifies. And the platform's, for people and applications."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
from role_keys import LISTS, RoleKeys, refused_within, role_arn
from service_processes import Services, running_services
from sts_stand_in import ACCOUNT, StsStandIn, running_sts

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

    def token(self, user: str, audience: str = "support") -> str:
        now = int(time.time())
        claims = {"iss": self.url, "sub": user, "aud": audience, "iat": now, "exp": now + 600}
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


@dataclass
class Place:
    folder: Path
    services: Services
    provider: Provider
    sts: StsStandIn
    operator: dict[str, str]
    arn: str
    memory: str

    def invoke(self, user: str, token: str, session: str | None = None, **payload: Any) -> httpx.Response:
        session = session or str(uuid.uuid4())
        return httpx.post(
            f"{self.services['runtime'].url}/runtimes/{quote(self.arn, safe='')}/invocations",
            headers={"authorization": f"Bearer {token}", "x-amzn-bedrock-agentcore-runtime-session-id": session},
            json={"memory": self.memory, "user": user, "session": session, **payload},
            timeout=60,
        )

    def records(self, kind: str) -> list[dict[str, Any]]:
        url = self.services["observability"].url + f"/audit-records?kind={kind}"
        request = AWSRequest("GET", url)
        keys = Credentials(self.operator["accessKeyId"], self.operator["secretAccessKey"])
        SigV4Auth(keys, "bedrock-agentcore", "us-east-1").add_auth(request)
        found: list[dict[str, Any]] = httpx.get(url, headers=dict(request.headers.items())).json()["records"]
        return found

    def said(self, secret: list[str]) -> list[Path]:
        """The logs that have one of these."""
        return [path for path in self.folder.rglob("*.log") if leaks(path.read_bytes(), secret)]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="agentkeep-services-sts-"))
    try:
        with running_provider() as provider, running_sts() as sts:
            sts.trust(provider.url, "support")
            role = sts.role("helper", provider.url, {"StringEquals": {"{idp}:aud": "support"}})
            rule = {"name": "helpers", "agents": ["helper"], "issuer": provider.url, "role": role}
            rules, roles = folder / "rules.json", folder / "roles.json"
            rules.write_text(json.dumps({"rules": [rule], "default": "refuse"}))
            policy = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": [*LISTS], "Resource": "*"}}
            # By the same tokens as agents' sessions: the worst there is to try.
            trust = {"issuer": provider.url, "audiences": ["support"]}
            roles.write_text(json.dumps({"roles": [{"name": "lister", "trust": [trust], "policy": policy}]}))
            egress = folder / "egress.json"
            out = {"name": "silent", "agents": ["helper"], "hosts": ["127.0.0.9:9"], "networks": ["127.0.0.0/8"]}
            egress.write_text(json.dumps({"rules": [out], "default": "refuse"}))
            settings = {
                "AGENTKEEP_IDENTITY_STS_RULES": str(rules),
                "AGENTKEEP_IDENTITY_STS_ENDPOINT": sts.url,
                "AGENTKEEP_IDENTITY_ROLES": str(roles),
                "AGENTKEEP_RUNTIME_EGRESS_RULES": str(egress),
                "AGENTKEEP_MEMORY_EMBEDDING": "none",
                "AGENTKEEP_LOG_LEVEL": "DEBUG",
                "AGENTKEEP_TELEMETRY_CONTENT": "false",
            }
            with running_services(folder, **settings) as services:
                operator = services.operator()
                arn, memory = _deploy(services, operator, provider)
                yield Place(folder, services, provider, sts, operator, arn, memory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_five_services_and_sts(place: Place) -> None:
    """IDN-1, IDN-4: the agent's boto3 has its user's role in AWS, signs with its keys for memory, another service, and
    reaches that user's alone; where STS is away a session is refused so that clients try again; the exchange is on
    record in the observability service, and no service has said a token or a key."""
    secret = []
    for user in ("alice", "bob"):
        token = place.provider.token(user)
        answer = place.invoke(user, token)
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert (document["own"], document["others"]) == (1, "AccessDeniedException")
        client = boto3.client(
            "sts", endpoint_url=place.sts.url, region_name="us-east-1",
            **dict(zip(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
                       document["keys"], strict=True)),
        )  # fmt: skip
        name = client.get_caller_identity()["Arn"]
        assert name.startswith(f"arn:aws:sts::{ACCOUNT}:assumed-role/helper/{user}+helper+")
        secret += [*document["keys"][1:], token.rpartition(".")[2]]
    place.sts.fails("Throttling")
    try:
        away = place.invoke("alice", place.provider.token("alice"))
    finally:
        place.sts.failure = None
    assert (away.status_code, away.headers["x-amzn-errortype"]) == (503, "ServiceUnavailableException")
    assert {"alice", "bob"} <= {record["user_id"] for record in place.records("sts-exchange")}
    logs = [path.read_bytes() for path in place.folder.rglob("*.log")]
    assert any(b"users' credentials from" in log for log in logs)
    assert place.said(secret) == []


def test_an_agent_learns_who_it_is_and_becomes_nobody_else(place: Place) -> None:
    """IDN-1, IDN-4: in its sandbox, at its session's listener, which hands the question on to the identity service.
    The keys it asks with are AWS's, its user's token is good for a role outside: inside it is for none."""
    token, session = place.provider.token("carol"), str(uuid.uuid4())
    role = {"RoleArn": role_arn("lister"), "RoleSessionName": "carol", "WebIdentityToken": token}
    answer = place.invoke("carol", token, session, assume=role)
    assert answer.status_code == 200, answer.text
    assert answer.json()["arn"].endswith(f"/{session}")
    assert answer.json()["refused"] == "AccessDenied"
    assert RoleKeys(place.services["identity"].url).assume("lister", token, "carol")


def test_a_way_out_is_on_record_in_another_service(place: Place) -> None:
    """IDN-1, IDN-2: an agent's way out is the runtime service's, and the record the observability service's."""
    named, other = "https://127.0.0.9:9", "https://elsewhere.example"
    answer = place.invoke("dave", place.provider.token("dave"), reach=[named, other])
    assert answer.status_code == 200, answer.text
    assert "502 127.0.0.9:9 cannot be connected to" in answer.json()[named]
    assert (
        "403 No rule of AGENTKEEP_RUNTIME_EGRESS_RULES lets this agent reach elsewhere.example:443"
        in (answer.json()[other])
    )
    [opened] = [record for record in place.records("egress-opened") if record["user_id"] == "dave"][:1]
    assert opened["details"] == {"host": "127.0.0.9", "port": "9", "rule": "silent"}


def test_a_roles_keys_are_good_in_five_services_until_they_are_revoked(place: Place) -> None:
    """IDN-1, IDN-2: looked up by each service, and forgotten by each within AGENTKEEP_IDENTITY_KEY_CACHE seconds."""
    people, token = RoleKeys(place.services["identity"].url), place.provider.token("dave")
    keys = people.assume("lister", token, "dave")
    asks = {plane: partial(ask, keys, place.services[plane].url) for plane, ask in people.reads().items()}
    assert {plane: ask() for plane, ask in asks.items()} == dict.fromkeys(asks, 200)
    operator = {
        "AccessKeyId": place.operator["accessKeyId"],
        "SecretAccessKey": place.operator["secretAccessKey"],
        "SessionToken": None,
    }
    assert people.ask(operator, "POST", "/roles/lister/revoke").status_code == 200
    print("revoked after", refused_within(asks, 15))
    kinds = {kind: place.records(kind) for kind in ("role-assumed", "role-revoked")}
    assert keys["AccessKeyId"] in {one["details"]["accessKeyId"] for one in kinds["role-assumed"]}
    assert kinds["role-revoked"]
    assert place.said([keys["SecretAccessKey"], keys["SessionToken"], token.rpartition(".")[2]]) == []
