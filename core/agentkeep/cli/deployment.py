"""The deployment a command talks to: found through the data folder that `agentkeep up` keeps.

<data dir>/platform.json    where the running platform listens; gone when it stops   (0600)
<data dir>/credentials      the operator's key, as an AWS shared credentials file    (0600)
<data dir>/logins.json      users' tokens from `agentkeep login`                     (0600)
"""

from __future__ import annotations

import configparser
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import psutil
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from agentkeep.cli.output import CommandError

PROFILE = "agentkeep"
SERVICES = ("BEDROCK_AGENTCORE", "BEDROCK_AGENTCORE_CONTROL", "BEDROCK_RUNTIME")


@dataclass(frozen=True, slots=True)
class Running:
    """What a running platform says of itself in platform.json. `started` tells its process from a later one with the
    same id. `pid` 0: it is no process of this machine's (containers, say), and was told of by who set it up."""

    endpoint: str
    pid: int
    started: float
    region: str
    account: str

    def write(self, data_dir: Path) -> None:
        write_private(data_dir / "platform.json", json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, data_dir: Path) -> Running | None:
        try:
            return cls(**json.loads((data_dir / "platform.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    @property
    def alive(self) -> bool:
        if not self.pid:
            return True
        try:
            process = psutil.Process(self.pid)
            return bool(process.create_time() == self.started) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def write_private(path: Path, text: str) -> None:
    """Writes a file only its owner can read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_credentials(data_dir: Path, access_key_id: str, secret: str) -> None:
    write_private(
        data_dir / "credentials",
        f"[{PROFILE}]\naws_access_key_id = {access_key_id}\naws_secret_access_key = {secret}\n",
    )


class Deployment:
    """Clients for the platform that keeps its data in `data_dir`."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        running = Running.read(self.data_dir)
        if running is None or not running.alive:
            raise CommandError(
                f"No platform is running with data folder {self.data_dir}.",
                "Start one with `agentkeep up`, or name the folder of a running one with --data-dir.",
            )
        self.running = running

    @cached_property
    def credentials(self) -> Credentials:
        file = configparser.ConfigParser()
        if not file.read(self.data_dir / "credentials"):
            raise CommandError(
                f"{self.data_dir / 'credentials'} cannot be read, so there is no operator key.",
                "Restart the platform with `agentkeep down` and `agentkeep up`: it writes the file anew.",
            )
        keys = file[PROFILE]
        return Credentials(keys["aws_access_key_id"], keys["aws_secret_access_key"])

    def environment(self) -> dict[str, str]:
        """What points boto3 and the AgentCore SDK here."""
        endpoint, region = self.running.endpoint, self.running.region
        return {
            **{f"AWS_ENDPOINT_URL_{service}": endpoint for service in SERVICES},
            # one client of the SDK (MemoryControlPlaneClient) knows only this variable
            "BEDROCK_AGENTCORE_CONTROL_ENDPOINT": endpoint,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            "AWS_ACCESS_KEY_ID": self.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_key,
        }

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.running.endpoint,
            region_name=self.running.region,
            aws_access_key_id=self.credentials.access_key,
            aws_secret_access_key=self.credentials.secret_key,
            config=Config(read_timeout=900, retries={"mode": "standard"}),
        )

    @cached_property
    def control(self) -> Any:
        return self.client("bedrock-agentcore-control")

    @cached_property
    def data(self) -> Any:
        return self.client("bedrock-agentcore")

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A signed request to one of the platform's own routes (artifacts, logs, sessions, usage)."""
        request = AWSRequest(method, self.running.endpoint + path, data=body)
        SigV4Auth(self.credentials, "bedrock-agentcore", self.running.region).add_auth(request)
        response = self._http.request(method, str(request.url), body=body, headers=dict(request.headers.items()))
        if response.status >= 300:
            raise refusal(response.status, response.data)
        return response.data

    def stream(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[Mapping[str, str], Iterator[bytes]]:
        """An unsigned POST (bearer callers sign nothing); the answer's headers and its pieces as they come."""
        response = self._http.request(
            "POST", self.running.endpoint + path, body=body, headers=dict(headers), preload_content=False
        )
        if response.status >= 300:
            raise refusal(response.status, response.read())
        return response.headers, response.stream(65536)

    @cached_property
    def _http(self) -> urllib3.PoolManager:
        return urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=5, read=900))


def refusal(status: int, body: bytes) -> CommandError:
    try:
        said = json.loads(body)
        message = str(said.get("message") or said["error_description"])  # the latter: OAuth, RFC 6749, 5.2
    except (ValueError, KeyError, TypeError, AttributeError):
        message = body.decode(errors="replace")[:500] or "no reason given"
    return CommandError(f"The platform answered {status}: {message}")
