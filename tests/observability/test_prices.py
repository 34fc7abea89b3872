"""OBS-2: what model calls cost, offline; unknown where there is no price, never 0 by accident."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from pydantic import ValidationError

from agentkeep.core.ports import UsageRecord
from agentkeep.observability.prices import Cost, Prices, money, parse_prices
from agentkeep.observability.settings import ObservabilitySettings

SONNET = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"


def record(
    model: str, provider: str = "bedrock", *, input: int = 1_000_000, output: int = 0, read: int = 0
) -> UsageRecord:
    at = datetime(2026, 11, 23, tzinfo=UTC)
    return UsageRecord(None, None, model, provider, input, output, read, 0, 1.0, at, "request-1")


def test_known_models_are_priced_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """OBS-2: Bedrock's names, regional prefixes included; 3.30 and 16.50 dollars a million in the US regions."""

    def no_network(*_: object) -> None:
        raise AssertionError("prices are known offline")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    prices = Prices()
    assert prices.cost(record(SONNET)) == Decimal("3.3")
    assert prices.cost(record(SONNET, input=0, output=1_000_000)) == Decimal("16.5")


def test_cached_tokens_are_not_paid_twice() -> None:
    """Converse's input count leaves out what came from the cache; genai-prices' includes it."""
    whole, cached = Prices().cost(record(SONNET)), Prices().cost(record(SONNET, input=0, read=1_000_000))
    assert whole is not None and cached is not None
    assert 0 < cached < whole / 5


@pytest.mark.parametrize(("model", "provider"), [("no-such-model", "bedrock"), ("qwen", "somewhere")])
def test_an_unknown_model_has_an_unknown_cost(model: str, provider: str) -> None:
    assert Prices().cost(record(model, provider)) is None


def test_the_operators_own_prices_come_first() -> None:
    prices = Prices(parse_prices(f"bedrock/{SONNET}=1/2, openai/my-*=0.5/1.5/0.05/0.6"))
    assert prices.cost(record(SONNET)) == 1
    assert prices.cost(record("my-llama", "openai", input=0, read=1_000_000)) == Decimal("0.05")
    assert prices.cost(record("your-llama", "openai")) is None


def test_what_runs_here_costs_nothing_and_says_so() -> None:
    prices = Prices(ObservabilitySettings().prices)
    assert prices.cost(record("SmolLM2-135M-Instruct", "demo")) == 0


@pytest.mark.parametrize(
    "wrong", ["gpt=1/2", "openai/gpt", "openai/gpt=1", "openai/gpt=a/b", "openai/gpt=-1/2", "a/b=NaN/1"]
)
def test_a_wrong_price_stops_the_platform_by_name(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("AGENTKEEP_OBSERVABILITY_PRICES", wrong)
    with pytest.raises(ValidationError, match="US dollars for a million tokens"):
        ObservabilitySettings()


def test_a_total_tells_what_it_leaves_out() -> None:
    total = Cost.of([Decimal("0.25"), None, Decimal("0.000001"), None])
    assert total.members() == {"cost_usd": "0.250001", "calls_without_price": 2}
    assert money(Decimal("1E-7")) == "0.0000001"
    assert Cost.of([]).members() == {"cost_usd": "0", "calls_without_price": 0}
