"""Settings of the docker driver."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["DockerDriverSettings"]


class DockerDriverSettings(BaseSettings):
    """`AGENTKEEP_RUNTIME_DOCKER_*`. Whether the driver is used at all is `AGENTKEEP_RUNTIME_DOCKER`."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_RUNTIME_DOCKER_")

    socket: Path = Field(Path("/var/run/docker.sock"), description="The engine's Unix socket.")
    oci_runtime: str | None = Field(
        None, description="Name of an OCI runtime the engine knows, such as `runsc`; empty: the engine's default."
    )
    pull_timeout: float = Field(600, gt=0, description="Seconds for pulling an image.")
    image_root: bool = Field(
        False,
        description="Lets images that name no user run as root, without any capability. Off: each of their sessions "
        "runs as a user of its own.",
    )
