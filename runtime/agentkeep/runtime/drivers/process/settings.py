"""Settings of the process driver."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["ProcessDriverSettings"]


class ProcessDriverSettings(BaseSettings):
    """A fork server imports a version's libraries once and is forked for each session. It is replaced after
    `fork_server_sessions` sessions or `fork_server_age` seconds, since its sessions share its memory layout, and ends
    after `fork_server_idle` seconds without a session. `fork_servers` off: every session starts cold."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_RUNTIME_PROCESS_")

    fork_servers: bool = True
    fork_server_sessions: int = Field(default=1000, ge=1)
    fork_server_age: float = Field(default=24 * 3600, gt=0)
    fork_server_idle: float = Field(default=15 * 60, gt=0)
