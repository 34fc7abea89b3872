"""Settings of the memory plane."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict

from agentkeep.memory.embedding import EmbeddingSettings

__all__ = ["MemorySettings"]


def _list(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class MemorySettings(EmbeddingSettings):
    """`namespace_templates`: where the actor stands in namespaces of which no strategy of their memory says it."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_MEMORY_", frozen=True, extra="ignore")

    reranking: bool = Field(
        False,
        description="Whether the best records are looked at again by a fitted form, which prefers of what people said "
        "longer turns and those that ask nothing. Scores mean something else then: the odds that a record answers.",
    )
    issuers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_list)] = Field(
        (),
        description="Identity providers (`iss` of users' tokens, separated by commas) whose users may use memories; "
        "they must give no two users the same subject. Empty: a memory is for users of the provider whose user used it "
        "first. A memory's tag agentkeep:issuers goes before this.",
    )
    search_cache_mb: int = Field(
        256,
        ge=0,
        description="Memory, in MB, for records of users lately searched, where these are kept in SQLite: some 2 KB a "
        "record. A user with more than all of it has them read from the disk for each search.",
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
    extraction_model: str = Field(
        "",
        description="The model that makes long-term records of events for memories with strategies (any id the gateway "
        "has a route for). Empty: no model; what was said is kept word for word, by rules.",
    )
    extraction_seconds: float = Field(120, gt=0, description="Limit for one answer of that model.")
    extraction_attempts: int = Field(
        3, ge=1, le=10, description="How often it is asked before the extraction is listed as a failed job."
    )
    extraction_debounce: float = Field(
        1.0, ge=0, description="Seconds without a new event in a session before what came is extracted; 10 at the most."
    )
    extraction_at_once: int = Field(4, ge=1, description="How many actors' events one replica extracts at once.")
    compaction_interval_days: int = Field(
        0, ge=0, description="Days after which a memory's old records are compacted again; 0: only when asked for."
    )
    compaction_age_days: int = Field(90, ge=1, description="Age from which records are old, to such compactions.")
    compaction_model: str = Field(
        "",
        description="The model that merges old records, a name the gateway knows. Empty: duplicates alone are merged.",
    )
    report_days: int = Field(
        365, ge=1, description="Days for which reports of erasures and compactions are kept after their end."
    )
