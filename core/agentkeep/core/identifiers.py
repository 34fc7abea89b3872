"""Identifiers as AgentCore forms them: ids with a random end, ARNs."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass

ALPHANUMERIC = string.ascii_letters + string.digits
LOWER_ALPHANUMERIC = string.ascii_lowercase + string.digits


def suffix(alphabet: str = ALPHANUMERIC, length: int = 10) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def resource_id(name: str, alphabet: str = ALPHANUMERIC) -> str:
    """`<name>-<10 characters>`, the form of runtime, memory, strategy and gateway ids."""
    return f"{name}-{suffix(alphabet)}"


@dataclass(frozen=True, slots=True)
class Arn:
    """An ARN taken apart. `resource` is all behind the account, e.g. `runtime/id/runtime-endpoint/DEFAULT`."""

    service: str
    region: str
    account: str
    resource: str
    partition: str = "aws"

    @classmethod
    def parse(cls, text: str) -> Arn | None:
        """None where `text` is not an ARN (callers usually accept a bare id as well)."""
        parts = text.split(":", 5)
        if len(parts) != 6 or parts[0] != "arn" or not parts[5]:
            return None
        _, partition, service, region, account, resource = parts
        return cls(service, region, account, resource, partition)

    def __str__(self) -> str:
        return f"arn:{self.partition}:{self.service}:{self.region}:{self.account}:{self.resource}"

    @property
    def kind(self) -> str:
        """The resource's type: `runtime`, `runtime-endpoint`, `memory`, `workload-identity`, ..."""
        parts = self.resource.split("/")
        return parts[-2] if len(parts) > 1 else parts[0]

    @property
    def id(self) -> str:
        """The last segment."""
        return self.resource.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Deployment:
    """Which account and region this deployment answers for; every ARN it makes says so."""

    region: str = "us-east-1"
    account: str = "000000000000"

    def arn(self, resource: str, service: str = "bedrock-agentcore") -> str:
        return str(Arn(service, self.region, self.account, resource))
