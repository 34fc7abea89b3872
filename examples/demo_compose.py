"""`make demo-compose`: the same scenario as `make run`, on the compose deployment. The agent is an image there, its
users are the realm's, its tools' target is a container. Exit status 0 only if everything was right.

It uses `docker`, Compose, the `agentkeep` command and unmodified boto3.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import boto3
import urllib3
from botocore.credentials import Credentials
from deployment import Deployment
from scenario import Scenario
from shop import NAME

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parent
COMMAND = Path(sys.executable).with_name("agentkeep")
AUDIENCE = "agentkeep"
AGENT_IMAGE = f"agentkeep-demo/{NAME.replace('_', '-')}:latest"
ORDERS_IMAGE = "agentkeep-demo/order-service:latest"
READY_SECONDS = 180


def compose_command() -> list[str]:
    """Docker's plug-in; or the program of the same name, as the development environment has it."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    found = shutil.which("docker-compose", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        raise RuntimeError(
            "neither `docker compose` nor docker-compose is here; install Docker with its Compose plug-in"
        )
    return [found]


class Compose:
    """The deployment of this checkout's docker-compose.yml. `data_dir`: where the `agentkeep` command finds it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        self.realm = f"http://localhost:{os.environ.get('KEYCLOAK_PORT', '8180')}/realms/agentkeep"
        self._compose = compose_command()
        self._tokens: dict[str, str] = {}

    def compose(self, *arguments: str, timeout: float | None = None) -> str:
        files = ("-f", "docker-compose.yml", "-f", "infra/compose/demo.yml")
        return run([*self._compose, *files, *arguments], cwd=REPOSITORY, timeout=timeout)

    def build(self) -> None:
        for image, folder in ((AGENT_IMAGE, NAME), (ORDERS_IMAGE, "order_service")):
            run(["docker", "build", "--tag", image, str(FOLDER / folder)])

    def start(self, *, build: bool) -> None:
        self.compose("up", "--detach", "--wait", *(() if build else ("--no-build", "--pull", "never")))

    def deployment(self) -> Deployment:
        operator = json.loads(
            self.compose("exec", "-T", "identity", "python", "-m", "agentkeep.service", "operator-key")
        )
        self._introduce(operator)
        self.operator = operator
        return Deployment(
            operator["endpoint"],
            operator["region"],
            Credentials(operator["accessKeyId"], operator["secretAccessKey"]),
            discovery_url=f"{self.realm}/.well-known/openid-configuration",
            audience=AUDIENCE,
            token=self.token,
            deploy=self.deploy,
            order_service="http://orders:8000",
            order_log=lambda: self.compose("logs", "--no-log-prefix", "--no-color", "orders"),
            command=self.agentkeep,
        )

    def token(self, user: str) -> str:
        """As he would get it with the realm's demonstration client; his password was made with the other secrets."""
        if user not in self._tokens:
            password = self.compose("exec", "-T", "keycloak", "cat", f"/run/secrets/agentkeep/{user}-password").strip()
            form = {"grant_type": "password", "client_id": "demo", "username": user, "password": password}
            answer = urllib3.request(
                "POST",
                f"{self.realm}/protocol/openid-connect/token",
                body=urlencode(form),
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                timeout=30,
            )
            if answer.status != 200:
                raise RuntimeError(f"no token for {user}: {answer.data.decode(errors='replace')[:300]}")
            self._tokens[user] = answer.json()["access_token"]
        return self._tokens[user]

    def deploy(self, variables: Mapping[str, str]) -> str:
        """Updates the agent's runtime, or makes it. Returns its id when it is READY."""
        control = boto3.client(
            "bedrock-agentcore-control",
            endpoint_url=self.operator["endpoint"],
            region_name=self.operator["region"],
            aws_access_key_id=self.operator["accessKeyId"],
            aws_secret_access_key=self.operator["secretAccessKey"],
        )
        request: dict[str, Any] = {
            "agentRuntimeArtifact": {"containerConfiguration": {"containerUri": AGENT_IMAGE}},
            "roleArn": "arn:aws:iam::000000000000:role/agentkeep",
            "networkConfiguration": {"networkMode": "PUBLIC"},
            "environmentVariables": dict(variables),
            "authorizerConfiguration": {
                "customJWTAuthorizer": {
                    "discoveryUrl": f"{self.realm}/.well-known/openid-configuration",
                    "allowedAudience": [AUDIENCE],
                }
            },
            "requestHeaderConfiguration": {"requestHeaderAllowlist": ["Authorization"]},
        }
        listed = control.list_agent_runtimes(maxResults=100)["agentRuntimes"]
        known = next((each["agentRuntimeId"] for each in listed if each["agentRuntimeName"] == NAME), None)
        if known is not None:
            made = control.update_agent_runtime(agentRuntimeId=known, **request)
        else:
            made = control.create_agent_runtime(agentRuntimeName=NAME, **request)
        deadline = time.monotonic() + READY_SECONDS
        while True:
            found = control.get_agent_runtime(agentRuntimeId=made["agentRuntimeId"])
            if found["status"] == "READY":
                return str(made["agentRuntimeId"])
            if found["status"].endswith("FAILED") or time.monotonic() > deadline:
                raise RuntimeError(f"the agent is {found['status']}: {found.get('failureReason', 'no reason given')}")
            time.sleep(0.3)

    def agentkeep(self, *arguments: str) -> str:
        return run([str(COMMAND), *arguments, "--data-dir", str(self.data_dir)])

    def _introduce(self, operator: Mapping[str, str]) -> None:
        """Leaves for the `agentkeep` command what `agentkeep up` leaves; no process of this machine is behind it."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        running = {"endpoint": operator["endpoint"], "pid": 0, "started": 0.0, "region": operator["region"],
                   "account": os.environ.get("AGENTKEEP_ACCOUNT", "000000000000")}  # fmt: skip
        keys = f"aws_access_key_id = {operator['accessKeyId']}\naws_secret_access_key = {operator['secretAccessKey']}\n"
        for name, text in (("platform.json", json.dumps(running)), ("credentials", f"[agentkeep]\n{keys}")):
            path = self.data_dir / name
            path.touch(mode=0o600)
            path.write_text(text)


def run(command: list[str], *, cwd: Path | None = None, timeout: float | None = None) -> str:
    """What it prints. Raises CalledProcessError with what it said."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


def show(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=REPOSITORY / ".agentkeep" / "compose")
    parser.add_argument("--no-build", action="store_true", help="the images are here already")
    options = parser.parse_args()
    wrong: list[str] = []
    try:
        platform = Compose(options.data_dir)
        show("\n▸ Start the platform")
        began = time.monotonic()
        if not options.no_build:
            platform.build()
        platform.start(build=not options.no_build)
        deployment = platform.deployment()
        show(f"  {deployment.endpoint}, ready in {time.monotonic() - began:.1f} s")
        scenario = Scenario(deployment, show)
        wrong = scenario.wrong
        scenario.run()
    except (subprocess.CalledProcessError, RuntimeError) as failed:
        said = f": {failed.stderr}" if isinstance(failed, subprocess.CalledProcessError) else ""
        print(f"\n{failed}{said}", file=sys.stderr)
        wrong.append(str(failed))
    show(f"\n{'Everything was right.' if not wrong else f'{len(wrong)} things were wrong.'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
