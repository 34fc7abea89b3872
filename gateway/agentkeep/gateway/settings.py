"""Settings of the gateway plane."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agentkeep.gateway.models.routing import Rule, parse_rules

__all__ = ["GatewaySettings"]


def _rules(value: Any) -> Any:
    return parse_rules(value) if isinstance(value, str) else value


def _list(value: Any) -> Any:
    return tuple(part for entry in value.split(",") if (part := entry.strip())) if isinstance(value, str) else value


class GatewaySettings(BaseSettings):
    """`routes`: which provider answers for which model id: `pattern=provider` or `pattern=provider:model`, separated by
    commas, the first that matches. Providers: `bedrock` (Amazon Bedrock), `openai` (the server of `openai_url`),
    `local` (a small model that runs here), `demo` (rules for the demonstration in front of `local`)."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_GATEWAY_", frozen=True, extra="ignore")

    routes: Annotated[tuple[Rule, ...], NoDecode, BeforeValidator(_rules)] = Field(
        (Rule("*", "demo"),),
        description="Which provider answers for which model id: `pattern=provider` or `pattern=provider:model`, "
        "separated by commas, the first that matches. Providers: bedrock, openai, local, demo.",
    )
    answer_seconds: float = Field(300, gt=0, description="Limit for a whole answer of a model.")
    gap_seconds: float = Field(60, gt=0, description="Limit for the silence between two events of a streaming answer.")

    answer_tokens: int = Field(
        8192,
        gt=0,
        description="What an answer may have, in a session with a token budget, where its request names no limit. The "
        "model is told, so that no answer passes the budget.",
    )

    bedrock_region: str | None = Field(None, description="Region of Amazon Bedrock; default: boto3's.")
    bedrock_profile: str | None = Field(None, description="Profile of the platform's AWS credentials; default: chain.")
    bedrock_endpoint_url: str | None = Field(None, description="Another endpoint of bedrock-runtime (a VPC endpoint).")
    bedrock_concurrency: int = Field(64, gt=0, description="Calls of Amazon Bedrock at once.")

    openai_url: str | None = Field(None, description="Base URL of an OpenAI-compatible server, e.g. https://host/v1.")
    openai_api_key: SecretStr | None = Field(None, description="Its key, sent as a bearer token.")
    openai_images: bool = Field(False, description="Whether its models take images.")
    openai_max_tokens_member: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What it calls the limit of an answer; OpenAI's newer models want the second."
    )

    local_context: int = Field(8192, ge=256, le=8192, description="Context of the local model, tokens.")
    local_threads: int = Field(2, gt=0, description="Threads the local model computes with.")
    local_queue: int = Field(16, ge=0, description="Calls that may wait for the local model; more are throttled.")

    allowed_target_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_list)] = Field(
        (),
        description="Host names and networks (`orders.internal,10.1.0.0/16`) targets may be at although they are not "
        "public, and over plain HTTP. Link-local addresses are never called. Embedded mode adds loopback.",
    )
    tool_seconds: float = Field(60, gt=0, le=900, description="Limit for a tool's answer, unless the catalogue says.")
    listing_seconds: float = Field(30, gt=0, description="Limit for a target to list its tools.")
    request_bytes: int = Field(6_000_000, gt=0, description="Largest MCP request, arguments included.")
    response_bytes: int = Field(6_000_000, gt=0, description="Largest answer of a target.")
    read_calls_per_session: int = Field(200, ge=0, description="Calls of one reading tool in a session, by default.")
    read_calls_per_minute: int = Field(120, ge=0, description="Calls of one reading tool by an agent, by default.")
    write_calls_per_session: int = Field(50, ge=0, description="Calls of one writing tool in a session, by default.")
    write_calls_per_minute: int = Field(30, ge=0, description="Calls of one writing tool by an agent, by default.")
    audit_days: int = Field(365, gt=0, description="How long the audit trail of tool calls is kept.")
    audit_bytes: int = Field(
        262_144, gt=0, description="Of arguments and of a result, each: what the trail keeps whole at audit level full."
    )

    @model_validator(mode="after")
    def _openai_has_an_address(self) -> Self:
        if self.openai_url is None and any(rule.provider == "openai" for rule in self.routes):
            raise ValueError("a model route leads to provider openai: set AGENTKEEP_GATEWAY_OPENAI_URL")
        return self
