"""Which provider answers for a model id, and settings that lead nowhere."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pydantic import ValidationError

from agentkeep.core.errors import ResourceNotFoundException
from agentkeep.gateway.models.provider import Provider
from agentkeep.gateway.models.routing import ModelRoutes, Rule, parse_rules
from agentkeep.gateway.plane import model_routes
from agentkeep.gateway.settings import GatewaySettings

CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"


def routes(text: str) -> ModelRoutes:
    providers = {name: cast(Provider, name) for name in ("bedrock", "openai", "local")}
    return ModelRoutes(parse_rules(text), providers)


@pytest.mark.parametrize(
    ("model_id", "provider", "model"),
    [
        ("gpt-oss-20b", "openai", "gpt-oss-20b"),
        ("small", "local", "small"),
        ("fast", "bedrock", CLAUDE),
        (CLAUDE, "bedrock", CLAUDE),
        ("arn:aws:bedrock:us-east-1:123456789012:inference-profile/x", "openai", "profile"),
    ],
)
def test_first_rule_that_matches(model_id: str, provider: str, model: str) -> None:
    rules = f"gpt-*=openai,small=local  fast=bedrock:{CLAUDE}, arn:*=openai:profile *=bedrock"
    target = routes(rules).resolve(model_id)
    assert (target.provider, target.model) == (provider, model)


def test_unknown_model_is_told_what_there_is() -> None:
    with pytest.raises(ResourceNotFoundException, match=r"'other'.*gpt-\*=openai, x=bedrock:y"):
        routes("gpt-*=openai,x=bedrock:y").resolve("other")


@pytest.mark.parametrize("text", ["", " , ", "bedrock", "=bedrock", "x=", "x=:m"])
def test_a_rule_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="route"):
        parse_rules(text)


def test_a_rule_that_leads_nowhere() -> None:
    with pytest.raises(ValueError, match=r"\*=azure .* bedrock, local, openai"):
        routes("*=azure")


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTKEEP_GATEWAY_ROUTES", "gpt-*=openai, *=demo")
    monkeypatch.setenv("AGENTKEEP_GATEWAY_OPENAI_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("AGENTKEEP_GATEWAY_OPENAI_API_KEY", "sk-secret")
    settings = GatewaySettings()
    assert settings.routes == (Rule("gpt-*", "openai"), Rule("*", "demo"))
    assert "sk-secret" not in repr(settings)
    assert [provider.name for provider in model_routes(settings).providers] == ["openai", "demo"]


def test_by_default_everything_leads_to_the_demonstration() -> None:
    assert model_routes(GatewaySettings()).resolve(CLAUDE).provider.name == "demo"


@pytest.mark.parametrize("routes", ["*=openai", "nonsense"])
def test_settings_that_cannot_work_are_refused_at_start(routes: Any) -> None:
    with pytest.raises(ValidationError):
        GatewaySettings(routes=routes)
