"""The platform as its users run it: a process of its own, started by the command, reached over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import command_server
from botocore.config import Config

REPOSITORY = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "agentkeep.cli")


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that would steer an AWS client or the platform."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BEDROCK_", "AGENTKEEP_"))} | {
        key: os.environ[key] for key in ("AWS_CA_BUNDLE",) if key in os.environ
    }


class PlatformProcess:
    """A running platform. `variables` is what `agentkeep env` prints."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def run(self, *arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """`agentkeep ARGUMENTS --data-dir ...`"""
        done = command_server.run((*arguments, "--data-dir", str(self.data_dir)), clean_environment(), timeout)
        if check and done.returncode:
            raise AssertionError(f"agentkeep {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    @cached_property
    def variables(self) -> dict[str, str]:
        found: dict[str, str] = self.json("env")
        return found

    @property
    def environment(self) -> dict[str, str]:
        return clean_environment() | self.variables

    @property
    def endpoint(self) -> str:
        return self.variables["AWS_ENDPOINT_URL_BEDROCK_AGENTCORE"]

    @property
    def pid(self) -> int:
        return int(json.loads((self.data_dir / "platform.json").read_text())["pid"])

    def client(self, service: str, **config: Any) -> Any:
        """An unmodified boto3 client, pointed here by its endpoint."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=self.variables["AWS_REGION"],
            aws_access_key_id=self.variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.variables["AWS_SECRET_ACCESS_KEY"],
            config=Config(**({"read_timeout": 120} | config)),
        )


@contextmanager
def running_platform(data_dir: Path, port: int = 0, **settings: str) -> Iterator[PlatformProcess]:
    """`agentkeep up --detach` on `port` (0: a free one), `agentkeep down` at the end. `settings`: AGENTKEEP_...
    variables."""
    platform = PlatformProcess(data_dir)
    arguments = ("up", "--detach", "--port", str(port), "--data-dir", str(data_dir))
    started = command_server.run(arguments, clean_environment() | settings, 90)
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        yield platform
    finally:
        platform.run("down", check=False)
