"""`make run`: the platform from nothing to users whose agent acts for them, with each step looked up from outside.

It uses the `agentkeep` command and unmodified boto3, nothing else. Exit status 0 only if everything was right.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import urllib3
from botocore.credentials import Credentials
from deployment import Deployment
from scenario import Scenario
from shop import NAME

FOLDER = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("agentkeep")
SERVICES = ("BEDROCK_AGENTCORE", "BEDROCK_AGENTCORE_CONTROL", "BEDROCK_RUNTIME")
AUDIENCE = "agentkeep"


class Platform:
    """The platform of embedded mode, which keeps its data in `data_dir`."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.started = False
        self.tokens: dict[str, str] = {}

    def agentkeep(self, *arguments: str) -> Any:
        """The command's answer. Raises CalledProcessError with what it said."""
        return json.loads(self.printed(*arguments, "--json"))

    def printed(self, *arguments: str) -> str:
        done = subprocess.run([COMMAND, *arguments, "--data-dir", self.data_dir], capture_output=True, text=True)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, ["agentkeep", *arguments], done.stdout, done.stderr)
        return done.stdout

    def start(self) -> Any:
        state = self.data_dir / "platform.json"
        if state.exists():
            try:
                self.agentkeep("sessions")
                print("  it is running already")
                return json.loads(state.read_text())
            except subprocess.CalledProcessError:
                pass
        running = self.agentkeep("up", "--detach", "--port", str(self.port))
        self.started = True
        return running

    def stop(self) -> None:
        if self.started:
            self.agentkeep("down")

    def token(self, user: str) -> str:
        if user not in self.tokens:
            self.tokens[user] = self.agentkeep("login", "--user", user)["access_token"]
        return self.tokens[user]

    def deploy(self, variables: Mapping[str, str]) -> str:
        pairs = [text for name, value in variables.items() for text in ("--env", f"{name}={value}")]
        return str(self.agentkeep("deploy", str(FOLDER / NAME), *pairs)["agentRuntimeId"])

    def deployment(self, order_service: str, order_log: Path) -> Deployment:
        variables = self.agentkeep("env")
        endpoint = variables["AWS_ENDPOINT_URL_BEDROCK_AGENTCORE"]
        return Deployment(
            endpoint,
            variables["AWS_REGION"],
            Credentials(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]),
            discovery_url=f"{endpoint}/oidc/.well-known/openid-configuration",
            audience=AUDIENCE,
            token=self.token,
            deploy=self.deploy,
            order_service=order_service,
            order_log=order_log.read_text,
            command=self.printed,
        )


class OrderService:
    """The shop's order service, in a process of its own. It accepts the development issuer's tokens."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "order-service.log"
        self.pid_file = folder / "order-service.pid"

    def start(self, endpoint: str) -> str:
        """Its URL. One that an earlier run left is stopped."""
        self.stop()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with self.log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port), "--log-level", "warning"],
                cwd=FOLDER / "order_service",
                stdout=output,
                start_new_session=True,  # it may stay when this script ends
                env={
                    "PATH": os.environ["PATH"],
                    "ORDER_SERVICE_ISSUER": f"{endpoint}/oidc",
                    "ORDER_SERVICE_JWKS_URL": f"{endpoint}/oidc/jwks.json",
                    "ORDER_SERVICE_AUDIENCE": AUDIENCE,
                },
            )
        self.pid_file.write_text(str(process.pid))
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib3.request("GET", f"{url}/openapi.json", retries=False, timeout=5)
                return url
            except urllib3.exceptions.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the order service did not start") from None
                time.sleep(0.1)

    def stop(self) -> None:
        try:
            process = psutil.Process(int(self.pid_file.read_text()))
            if "main:app" in process.cmdline():  # and not somebody who has its number by now
                process.terminate()
                process.wait(10)
        except (FileNotFoundError, psutil.NoSuchProcess):
            pass
        self.pid_file.unlink(missing_ok=True)


def heading(text: str) -> None:
    print(f"\n▸ {text}", flush=True)


def three_lines(platform: Platform, orders: OrderService) -> None:
    variables = platform.agentkeep("env")
    endpoint, region = variables["AWS_ENDPOINT_URL_BEDROCK_AGENTCORE"], variables["AWS_REGION"]
    heading("The platform stays up. Point boto3 at it:")
    print("  export " + " ".join(f"AWS_ENDPOINT_URL_{service}={endpoint}" for service in SERVICES))
    print(f"  export AWS_REGION={region} AWS_DEFAULT_REGION={region}")
    print(f"  export AWS_SHARED_CREDENTIALS_FILE={platform.data_dir / 'credentials'} AWS_PROFILE=agentkeep")
    print(
        f'\nTalk on:   .venv/bin/agentkeep invoke {NAME} "Where is A-1001?" --user alice --data-dir {platform.data_dir}'
    )
    print(f"Stop it:   .venv/bin/agentkeep down --data-dir {platform.data_dir}; kill $(cat {orders.pid_file})")


def show(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=4780)
    parser.add_argument("--stay-up", action="store_true", help="leave the platform running")
    options = parser.parse_args()
    platform = Platform(options.data_dir, options.port)
    orders = OrderService(platform.data_dir)
    wrong: list[str] = []
    try:
        heading("Start the platform")
        began = time.monotonic()
        running = platform.start()
        print(f"  {running['endpoint']}, ready in {time.monotonic() - began:.1f} s, data in {platform.data_dir}")
        url = orders.start(running["endpoint"])
        scenario = Scenario(platform.deployment(url, orders.log), show)
        wrong = scenario.wrong
        scenario.run()
    except subprocess.CalledProcessError as failed:
        print(f"\n{' '.join(map(str, failed.cmd))} failed: {failed.stderr}", file=sys.stderr)
        wrong.append(f"{failed.cmd} failed")
    finally:
        if not options.stay_up:
            orders.stop()
    if options.stay_up and not wrong:
        three_lines(platform, orders)
        return 0
    orders.stop()
    platform.stop()
    print(f"\n{'Everything was right.' if not wrong else f'{len(wrong)} things were wrong.'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
