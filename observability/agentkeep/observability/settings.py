"""Settings of the observability plane."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["ObservabilitySettings"]


class ObservabilitySettings(BaseSettings):
    """`AGENTKEEP_OBSERVABILITY_*`."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_OBSERVABILITY_", frozen=True, extra="ignore")

    usage_days: int = Field(90, gt=0, description="How long usage records are kept.")
    span_days: float = Field(30, gt=0, description="How long spans are kept.")
    spans_per_session: int = Field(20_000, gt=0, description="Spans kept of one session; later ones are turned away.")
    body_bytes: int = Field(4_194_304, gt=0, description="Largest OTLP request taken, as sent.")
    decoded_bytes: int = Field(16_777_216, gt=0, description="The same after decompression.")
