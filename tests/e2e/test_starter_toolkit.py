"""The starter toolkit's command, unmodified, against the running platform: `configure`, `invoke`, `status`,
`stop-session`, `identity`. Its two endpoint variables point it here; `configure` asks AWS's STS who is calling, which
moto answers.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from openid_provider import Browser, running_provider
from platform_process import PlatformProcess, clean_environment, running_platform
from uv import find_uv_bin

pytestmark = [
    pytest.mark.slow,
    pytest.mark.sandbox,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("starter-toolkit"),
]

TALKER = Path(__file__).parents[1] / "agents" / "talker"
#: Not packages of this project's environment: installed once for a machine.
TOOLKIT = ("bedrock-agentcore-starter-toolkit==0.3.14",)
TOOLKIT_FOLDER = Path("/var/tmp/agentkeep-tests-toolkit")
MOTO = ("moto==5.2.5", "flask==3.1.3", "flask-cors==6.0.5")
MOTO_FOLDER = Path("/var/tmp/agentkeep-tests-moto")
COMMAND = "import sys; sys.argv[0] = 'agentcore'; from bedrock_agentcore_starter_toolkit.cli.cli import main; main()"
SERVER = (
    "import sys; from pathlib import Path; from bedrock_agentcore_starter_toolkit.operations.identity import "
    "start_oauth2_callback_server; start_oauth2_callback_server(Path(sys.argv[1]), 'talker')"
)
#: Of the toolkit's own server, which listens at no other port.
CALLBACK = "http://localhost:8081/oauth2/callback"
CUSTOM = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-"


def installed(packages: Sequence[str], folder: Path, module: str) -> Path:
    if not (folder / module).exists():
        command = [find_uv_bin(), "pip", "install", "-q", "--python", sys.executable, "--target", str(folder)]
        subprocess.run([*command, *packages], check=True, capture_output=True, timeout=280)
    return folder


@pytest.fixture(scope="module")
def sts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """AWS's services that the toolkit asks besides AgentCore: moto's, on a port of its own. Its URL."""
    folder = installed(MOTO, MOTO_FOLDER, "moto")
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            env=clean_environment() | {"PYTHONPATH": str(folder)}, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"Running on (http://\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield found[1]
    finally:
        process.terminate()
        process.wait()


@dataclass
class Project:
    """A folder in which `agentcore` works."""

    platform: PlatformProcess
    folder: Path
    sts: str

    @property
    def environment(self) -> dict[str, str]:
        return self.platform.environment | {
            "BEDROCK_AGENTCORE_DP_ENDPOINT": self.platform.endpoint,
            "BEDROCK_AGENTCORE_CP_ENDPOINT": self.platform.endpoint,
            "AWS_ENDPOINT_URL": self.sts,
            "PYTHONPATH": str(installed(TOOLKIT, TOOLKIT_FOLDER, "bedrock_agentcore_starter_toolkit")),
            "PATH": f"{Path(find_uv_bin()).parent}:{os.environ['PATH']}",  # `configure` looks for uv
            "COLUMNS": "200",
            "HOME": str(self.folder),
        }

    def run(self, *arguments: str, fails: bool = False) -> str:
        """What the command prints."""
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def callback_server(self) -> Iterator[None]:
        """The toolkit's own, for users who come back from consenting."""
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.file)], cwd=self.folder, env=self.environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    httpx.get(CALLBACK, timeout=5)
                    break
                except httpx.TransportError:
                    assert process.poll() is None and time.monotonic() < deadline, "it does not start"
                    time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()

    @property
    def file(self) -> Path:
        return self.folder / ".bedrock_agentcore.yaml"

    def configured(self, deployed: dict[str, Any], *arguments: str) -> None:
        """`agentcore configure`, and what its `deploy` writes down when the runtime is made."""
        for file in TALKER.iterdir():
            (self.folder / file.name).write_bytes(file.read_bytes())
        self.run(
            "configure", "--non-interactive", "--entrypoint", "agent.py", "--name", "talker", "--disable-memory",
            "--deployment-type", "direct_code_deploy", "--runtime", "PYTHON_3_11",
            "--execution-role", "arn:aws:iam::123456789012:role/agents",
            "--region", self.platform.variables["AWS_REGION"], *arguments,
        )  # fmt: skip
        text = self.file.read_text()
        text = text.replace("agent_id: null", f"agent_id: {deployed['agentRuntimeId']}")
        self.file.write_text(text.replace("agent_arn: null", f"agent_arn: {deployed['agentRuntimeArn']}"))


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformProcess]:
    with running_platform(tmp_path_factory.mktemp("platform")) as platform:
        yield platform


def sessions(platform: PlatformProcess) -> dict[str, str | None]:
    return {session["sessionId"]: session["user"] for session in platform.json("sessions")}


def test_invoke_status_and_stop_with_signatures(platform: PlatformProcess, sts: str, tmp_path: Path) -> None:
    """EXE-1, EXE-4"""
    deployed = platform.json("deploy", str(TALKER), "--name", "signed", "--iam")
    project = Project(platform, tmp_path, sts)
    project.configured(deployed, "--request-header-allowlist", f"{CUSTOM}Tenant")
    session = f"session-{uuid.uuid4()}"
    said = project.run("invoke", '{"stream": 2}', "--session-id", session, "--user-id", "alice",
                       "--headers", "Tenant:blue")  # fmt: skip
    assert '{"piece": 0}' in said and '{"piece": 1}' in said and session in said
    assert sessions(platform)[session] == "alice"
    assert "AccessDeniedException" in project.run("invoke", "{}", "-s", session, "-u", "bob", fails=True)
    status = project.run("status")
    assert "Ready - Agent deployed and endpoint available" in status and deployed["agentRuntimeArn"] in status
    assert "Endpoint: DEFAULT (READY)" in status
    stopped = project.run("stop-session")
    assert "Session stopped successfully" in stopped and session in stopped
    assert session not in sessions(platform)


def test_invoke_with_a_token(platform: PlatformProcess, sts: str, tmp_path: Path) -> None:
    """EXE-1, IDN-5"""
    deployed = platform.json("deploy", str(TALKER), "--name", "bearer")
    runtime = platform.client("bedrock-agentcore-control").get_agent_runtime(agentRuntimeId=deployed["agentRuntimeId"])
    authorizer = runtime["authorizerConfiguration"]["customJWTAuthorizer"]
    project = Project(platform, tmp_path, sts)
    document = '{"customJWTAuthorizer": {"discoveryUrl": "%s", "allowedAudience": ["%s"]}}'
    project.configured(
        deployed, "--authorizer-config", document % (authorizer["discoveryUrl"], *authorizer["allowedAudience"])
    )
    token = platform.json("login", "--user", "carol")["access_token"]
    session = f"session-{uuid.uuid4()}"
    said = project.run("invoke", "Hello", "--session-id", session, "--bearer-token", token)
    assert "'prompt': 'Hello'" in said or '"prompt": "Hello"' in said
    assert sessions(platform)[session] == "carol"


def test_identity_commands_and_the_toolkits_callback_server(
    platform: PlatformProcess, sts: str, tmp_path: Path
) -> None:  # fmt: skip
    """IDN-3: `agentcore identity create-credential-provider`, `create-workload-identity`, `update-workload-identity`,
    `list-credential-providers`, `cleanup`; and the server that the toolkit's local mode runs for users who come back.
    (`setup-cognito`, `get-cognito-inbound-token`, `setup-aws-jwt`, `list-aws-jwt` ask Cognito and IAM, which are AWS.)
    """
    control, data = platform.client("bedrock-agentcore-control"), platform.client("bedrock-agentcore")
    project = Project(platform, tmp_path, sts)
    project.configured({"agentRuntimeId": "talker-0123456789", "agentRuntimeArn": "arn:aws:none"})
    name, workload = f"tickets-{uuid.uuid4().hex[:8]}", f"talker-{uuid.uuid4().hex[:8]}"
    with running_provider() as openid:
        project.run(
            "identity", "create-credential-provider", "--name", name, "--type", "cognito", "--client-id", "later",
            "--client-secret", "later", "--discovery-url", openid.discovery_url,
        )  # fmt: skip
        stored = control.get_oauth2_credential_provider(name=name)
        assert stored["callbackUrl"].startswith(f"{platform.endpoint}/identities/oauth2/callback/")
        assert stored["credentialProviderArn"] in project.file.read_text()
        assert name in project.run("identity", "list-credential-providers")
        client = openid.register(stored["callbackUrl"])
        discovery = {"discoveryUrl": openid.discovery_url}
        known = {"clientId": client["client_id"], "clientSecret": client["client_secret"]}
        config = {"customOauth2ProviderConfig": {"oauthDiscovery": discovery, **known}}
        control.update_oauth2_credential_provider(
            name=name, credentialProviderVendor="CustomOauth2", oauth2ProviderConfigInput=config
        )

        project.run("identity", "create-workload-identity", "--name", workload)
        project.run("identity", "update-workload-identity", "--name", workload, "--add-return-urls", CALLBACK)
        identity = control.get_workload_identity(name=workload)
        assert identity["allowedResourceOauth2ReturnUrls"] == [CALLBACK]

        token = data.get_workload_access_token_for_user_id(workloadName=workload, userId="dora")
        asking = {
            "workloadIdentityToken": token["workloadAccessToken"], "resourceCredentialProviderName": name,
            "oauth2Flow": "USER_FEDERATION", "scopes": ["openid"], "resourceOauth2ReturnUrl": CALLBACK,
        }  # fmt: skip
        asked = data.get_resource_oauth2_token(**asking)
        back = asyncio.run(_consents("dora", asked["authorizationUrl"]))
        # As `invoke --user-id` of the toolkit's local mode writes it down.
        text = project.file.read_text()
        assert "oauth_configuration: null" in text
        project.file.write_text(text.replace("oauth_configuration: null", "oauth_configuration: {userId: dora}"))
        with project.callback_server():
            answer = httpx.get(back, timeout=30)
        assert answer.json() == {"message": "OAuth2 3LO flow completed successfully"}, answer.text
        given = data.get_resource_oauth2_token(**asking, sessionUri=asked["sessionUri"])
        assert openid.user_of(given["accessToken"]) == "dora"

    project.run("identity", "cleanup", "--force")
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        control.get_oauth2_credential_provider(name=name)
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        control.get_workload_identity(name=workload)


async def _consents(user: str, url: str) -> str:
    browser = Browser(user)
    try:
        return await browser.visit(url, CALLBACK)
    finally:
        await browser.close()
