"""Where the platform departs from AWS's models, as data.

Each correction replaces traits of one shape (None removes a trait), and says why. docs/compatibility.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["CORRECTIONS", "Correction"]


@dataclass(frozen=True, slots=True)
class Correction:
    """`traits` as they are called in botocore's files."""

    traits: Mapping[str, Any]
    reason: str


_ANY_MODEL: Final = Correction(
    {"pattern": r"\S+", "max": 2048},
    "Models are any configured provider's, so their names are too (`meta-llama/Llama-3.1-8B`, `qwen3:8b`).",
)

CORRECTIONS: Final[Mapping[tuple[str, str], Correction]] = {
    ("bedrock-agentcore-control", "RuntimeContainerUri"): Correction(
        {"pattern": r"\S+"}, "An agent's image may come from any registry, not only from Amazon ECR."
    ),
    ("bedrock-agentcore-control", "McpServerTargetConfigurationEndpointString"): Correction(
        {"pattern": r"https?://.+", "max": 2048},
        "An MCP server inside one's own network may be called without TLS, where the operator allows its address.",
    ),
    ("bedrock-agentcore-control", "TaggableResourcesArn"): Correction(
        {"pattern": r"arn:(?:[^:]+)?:bedrock-agentcore:[a-z0-9-]+:[0-9]{12}:([a-z0-9-]+/[^/]+)(?:/[a-z0-9-]+/[^/]+)*"},
        "OAuth2 credential providers are created with tags, and the model's pattern keeps out the digit in their ARNs.",
    ),
    ("bedrock-runtime", "ConversationalModelId"): _ANY_MODEL,
    ("bedrock-runtime", "InvokeModelIdentifier"): _ANY_MODEL,
    ("bedrock-runtime", "FoundationModelVersionIdentifier"): _ANY_MODEL,
}
