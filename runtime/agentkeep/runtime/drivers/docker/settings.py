"""Settings of the docker driver."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["DockerDriverSettings"]


class DockerDriverSettings(BaseSettings):
    """`AGENTKEEP_RUNTIME_DOCKER_*`. Whether the driver is used at all is `AGENTKEEP_RUNTIME_DOCKER`."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_RUNTIME_DOCKER_")

    socket: Path = Field(
        Path("/var/run/docker.sock"), description="The engine's Unix socket, or the filtering proxy's before it."
    )
    platform: Literal["host", "container"] = Field(
        "host",
        description="Where the runtime plane runs: on the machine itself, whose firewall it then keeps, or in a "
        "container on the network of sessions, beside the session edge and the firewall service.",
    )
    sessions_folder: Path = Field(
        Path("/run/agentkeep-sessions"),
        description="Where the session edge finds the replica that has a session, and replicas agree on sessions' "
        "addresses: a folder that all of them on this machine have; used if the platform is a container.",
    )
    firewall_report: Path = Field(
        Path("/run/agentkeep-firewall/report"),
        description="Where the firewall service says that its rules are in force; read if the platform is a container.",
    )
    probe_image: str = Field(
        "agentkeep:latest",
        description="An image with python3, in whose containers the isolation of sessions is tried before the first; "
        "used if the platform is a container.",
    )
    oci_runtime: str | None = Field(
        None, description="Name of an OCI runtime the engine knows, such as `runsc`; empty: the engine's default."
    )
    pull_timeout: float = Field(600, gt=0, description="Seconds for pulling an image.")
    image_root: bool = Field(
        False,
        description="Lets images that name no user run as root, without any capability. Off: each of their sessions "
        "runs as a user of its own.",
    )
