"""Settings of the filtering proxy before the Docker socket."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["DockerGuardSettings"]


class DockerGuardSettings(BaseSettings):
    """`AGENTKEEP_DOCKER_GUARD_*`. What a session may be given it reads from the runtime plane's own settings:
    `AGENTKEEP_RUNTIME_SESSION_*`, `AGENTKEEP_RUNTIME_DOCKER_OCI_RUNTIME`, `AGENTKEEP_RUNTIME_DOCKER_IMAGE_ROOT`."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_DOCKER_GUARD_")

    engine: Path = Field(Path("/var/run/docker.sock"), description="The engine's Unix socket.")
    listen: Path = Field(
        Path("/run/agentkeep-docker/docker.sock"), description="Where the runtime plane reaches the proxy."
    )
    images: str = Field(
        "",
        description="Names of the images that may be pulled and run as sessions: patterns with `*`, separated by "
        "commas, such as `registry.example.com/agents/*`. Empty: none.",
    )
    log_level: str = Field("INFO", description="Of the proxy's own log.")
