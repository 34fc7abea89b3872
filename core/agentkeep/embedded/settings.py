"""Settings of embedded mode."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["EmbeddedSettings"]


class EmbeddedSettings(BaseSettings):
    """`AGENTKEEP_*`. Port and data folder are options of `agentkeep up`."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_", extra="ignore")

    region: str = Field(
        "us-east-1", pattern=r"^[a-z]{2}(-[a-z]+)+-\d$", description="The region in every ARN made here."
    )
    account: str = Field("000000000000", pattern=r"^\d{12}$", description="The account in every ARN made here.")
    operator_acts_for_users: bool = Field(
        True,
        description="Whether the key that `agentkeep up` writes for this machine's operator acts for users: reads and "
        "writes their memory, names them in invocations. Each use is on record (`agentkeep audit`).",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Of the platform's own log.")
    stop_timeout: float = Field(
        20, gt=0, description="Seconds for which running answers may go on when the platform is stopped."
    )
