"""Settings of the observability plane."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentkeep.observability.spans import SpanLimits

__all__ = ["ObservabilitySettings"]


class ObservabilitySettings(BaseSettings):
    """`AGENTKEEP_OBSERVABILITY_*`."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_OBSERVABILITY_", frozen=True, extra="ignore")

    session_token_budget: int = Field(
        1_000_000,
        ge=0,
        description="Tokens a session's model calls may use, input and output together; 0: no budget. A runtime's tag "
        "agentkeep:session-token-budget says otherwise for its sessions.",
    )
    usage_days: int = Field(90, gt=0, description="How long usage records are kept.")
    span_days: float = Field(30, gt=0, description="How long spans are kept.")
    spans_per_session: int = Field(
        20_000, gt=0, description="Spans kept of what one session's agent sends; later ones are turned away."
    )
    platform_spans_per_session: int = Field(
        100_000, gt=0, description="The same of what the platform itself says of one session."
    )
    spans_without_session: int = Field(100_000, gt=0, description="Spans kept that belong to no session, the newest.")
    body_bytes: int = Field(4_194_304, gt=0, description="Largest OTLP request taken, as sent.")
    decoded_bytes: int = Field(16_777_216, gt=0, description="The same after decompression.")

    @property
    def span_limits(self) -> SpanLimits:
        return SpanLimits(
            self.span_days, self.spans_per_session, self.platform_spans_per_session, self.spans_without_session
        )
