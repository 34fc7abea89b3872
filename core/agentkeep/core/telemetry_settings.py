"""Settings of what the platform's spans say."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["TelemetrySettings"]


class TelemetrySettings(BaseSettings):
    """`AGENTKEEP_TELEMETRY_*`, the same for every plane."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_TELEMETRY_", frozen=True, extra="ignore")

    content: bool = Field(
        True,
        description="Whether traces have what users, agents and models wrote: an invocation's input and output, a "
        "model call's messages and reasoning, what was looked for in memory. Tools have their own audit level.",
    )
    content_bytes: int = Field(
        8192, ge=64, le=1_048_576, description="The most that is kept of one input, output or list of messages."
    )
