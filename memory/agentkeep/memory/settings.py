"""Settings of the memory plane."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["MemorySettings"]


def _list(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class MemorySettings(BaseSettings):
    """`namespace_templates`: where the actor stands in namespaces of which no strategy of their memory says it."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_MEMORY_", frozen=True, extra="ignore")

    embedding: Literal["minilm", "none"] = Field(
        "minilm",
        description="What makes texts comparable by meaning: a small model that runs here, or none (search by words).",
    )
    namespace_templates: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_list)] = Field(
        (
            "/strategies/{memoryStrategyId}/actors/{actorId}/",
            "/strategies/{memoryStrategyId}/actors/{actorId}/sessions/{sessionId}/",
            "/custom/{actorId}/{sessionId}/",
            "/facts/{actorId}/",
            "/preferences/{actorId}/",
            "/summaries/{actorId}/{sessionId}/",
        ),
        description="Templates, separated by commas, by which records written without a strategy are found to be an "
        "actor's, and which agents may use beside their memory's own.",
    )
    report_days: int = Field(
        365, ge=1, description="Days for which reports of erasures and compactions are kept after their end."
    )
