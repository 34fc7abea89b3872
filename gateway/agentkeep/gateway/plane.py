"""Puts the gateway plane together from its settings and what it asks of other planes."""

from __future__ import annotations

from agentkeep.core.clock import Clock
from agentkeep.core.ports import Budget, Usage
from agentkeep.gateway.models.bedrock import BedrockProvider, bedrock_client
from agentkeep.gateway.models.calls import ModelCalls
from agentkeep.gateway.models.chat_completions import Dialect
from agentkeep.gateway.models.demo import DemoProvider
from agentkeep.gateway.models.local import LocalProvider
from agentkeep.gateway.models.openai import OpenAIProvider
from agentkeep.gateway.models.provider import Provider
from agentkeep.gateway.models.routing import ModelRoutes
from agentkeep.gateway.operations import GatewayPlane
from agentkeep.gateway.settings import GatewaySettings

__all__ = ["gateway_plane", "model_routes"]


def gateway_plane(settings: GatewaySettings, usage: Usage, budget: Budget, clock: Clock) -> GatewayPlane:
    """The plane, ready to serve; close it. Raises ValueError where the settings contradict themselves. Nothing is
    loaded and nobody called before the first model call."""
    routes = model_routes(settings)
    return GatewayPlane(
        ModelCalls(
            routes,
            usage,
            budget,
            clock,
            answer_seconds=settings.answer_seconds,
            gap_seconds=settings.gap_seconds,
            answer_tokens=settings.answer_tokens,
        )
    )


def model_routes(settings: GatewaySettings) -> ModelRoutes:
    """The routes with the providers they lead to; what no route leads to is not made."""
    wanted = {rule.provider for rule in settings.routes}
    providers: dict[str, Provider] = {}
    if "bedrock" in wanted:
        client = bedrock_client(
            region=settings.bedrock_region,
            profile=settings.bedrock_profile,
            endpoint_url=settings.bedrock_endpoint_url,
            answer_seconds=settings.answer_seconds,
            concurrency=settings.bedrock_concurrency,
        )
        providers["bedrock"] = BedrockProvider(client, concurrency=settings.bedrock_concurrency)
    if "openai" in wanted and settings.openai_url is not None:
        providers["openai"] = OpenAIProvider(
            settings.openai_url,
            dialect=Dialect("openai", settings.openai_images, max_tokens_member=settings.openai_max_tokens_member),
            api_key=settings.openai_api_key.get_secret_value() if settings.openai_api_key else None,
            answer_seconds=settings.answer_seconds,
        )
    if wanted & {"local", "demo"}:
        local = LocalProvider(
            context=settings.local_context,
            threads=settings.local_threads,
            queue=settings.local_queue,
            answer_seconds=settings.answer_seconds,
        )
        providers |= {"local": local, "demo": DemoProvider(local)}
    return ModelRoutes(settings.routes, providers)
