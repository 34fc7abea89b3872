"""Which provider answers for a model id: ordered rules, the first that matches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from agentkeep.core.errors import ResourceNotFoundException
from agentkeep.gateway.models.provider import Provider

__all__ = ["ModelRoutes", "Rule", "Target", "parse_rules"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Model ids that match `pattern` (shell style, case matters) go to `provider`; as `model`, where one is named."""

    pattern: str
    provider: str
    model: str | None = None

    def __str__(self) -> str:
        return f"{self.pattern}={self.provider}" + (f":{self.model}" if self.model else "")


def parse_rules(text: str) -> tuple[Rule, ...]:
    """`pattern=provider[:model]`, separated by commas or blanks, in the order they are tried."""
    rules = []
    for part in text.replace(",", " ").split():
        pattern, _, target = part.partition("=")
        provider, _, model = target.partition(":")
        if not pattern or not provider:
            raise ValueError(f"{part!r} is not a route: write pattern=provider or pattern=provider:model")
        rules.append(Rule(pattern, provider, model or None))
    if not rules:
        raise ValueError("no model route: write at least *=<provider>")
    return tuple(rules)


@dataclass(frozen=True, slots=True)
class Target:
    provider: Provider
    model: str


class ModelRoutes:
    def __init__(self, rules: Sequence[Rule], providers: Mapping[str, Provider]) -> None:
        """Raises ValueError where a rule names a provider that is not configured."""
        for rule in rules:
            if rule.provider not in providers:
                known = ", ".join(sorted(providers))
                raise ValueError(f"model route {rule} names a provider that is not configured; configured are: {known}")
        self._rules = tuple(rules)
        self._providers = dict(providers)

    @property
    def providers(self) -> tuple[Provider, ...]:
        """Those that some rule leads to, in the rules' order."""
        return tuple({rule.provider: self._providers[rule.provider] for rule in self._rules}.values())

    def resolve(self, model_id: str) -> Target:
        for rule in self._rules:
            if fnmatchcase(model_id, rule.pattern):
                return Target(self._providers[rule.provider], rule.model or model_id)
        raise ResourceNotFoundException(
            f"No model {model_id!r} here. This deployment's routes: {', '.join(map(str, self._rules))}. "
            "An operator can add one with AGENTKEEP_GATEWAY_ROUTES."
        )

    async def close(self) -> None:
        for provider in self._providers.values():
            await provider.close()
