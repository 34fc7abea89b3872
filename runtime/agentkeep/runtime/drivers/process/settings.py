"""Settings of the process driver."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["ProcessDriverSettings"]


class ProcessDriverSettings(BaseSettings):
    """`AGENTKEEP_RUNTIME_PROCESS_*`."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_RUNTIME_PROCESS_")

    fork_servers: bool = Field(
        True, description="Sessions are forked from a process that has imported the version's libraries. "
        "Off: every session starts a fresh process (cold).",
    )  # fmt: skip
    fork_server_sessions: int = Field(
        1000, ge=1, description="Sessions after which a fork server is replaced: they share its memory layout."
    )
    fork_server_age: float = Field(24 * 3600, gt=0, description="Seconds after which a fork server is replaced.")
    fork_server_idle: float = Field(15 * 60, gt=0, description="Seconds without a session after which it ends.")
