"""Settings of the observability plane."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agentkeep.observability.prices import Price, parse_prices
from agentkeep.observability.spans import SpanLimits

__all__ = ["ObservabilitySettings"]


def _prices(value: Any) -> Any:
    return parse_prices(value) if isinstance(value, str) else value


class ObservabilitySettings(BaseSettings):
    """`AGENTKEEP_OBSERVABILITY_*`."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_OBSERVABILITY_", frozen=True, extra="ignore")

    session_token_budget: int = Field(
        1_000_000,
        ge=0,
        description="Tokens a session's model calls may use, input and output together; 0: no budget. A runtime's tag "
        "agentkeep:session-token-budget says otherwise for its sessions.",
    )
    prices: Annotated[tuple[Price, ...], NoDecode, BeforeValidator(_prices)] = Field(
        parse_prices("local/*=0/0,demo/*=0/0"),
        description="Prices of your own, before those that are known (package genai-prices, offline): "
        "`provider/model=input/output[/cache read[/cache write]]`, US dollars for a million tokens, `*` for any "
        "characters, separated by commas. What runs on this machine costs nothing; a model without a price has an "
        "unknown cost.",
    )
    alert_days: int = Field(90, gt=0, description="How long alerts are kept.")
    audit_days: int = Field(
        365,
        gt=0,
        description="How long audit records are kept: who acted for whom, and what was refused. A user's erasure "
        "leaves them, since they say who did what; they hold nothing of what a user said.",
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
