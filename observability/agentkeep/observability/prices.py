"""What model calls cost, from prices known offline: the operator's own first, then the genai-prices package's.

Prices are never fetched over the network. A model without a price has an unknown cost, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from agentkeep.core.ports import UsageRecord

__all__ = ["Cost", "Price", "Prices", "money", "parse_prices"]

#: Our providers' names in genai-prices.
PROVIDERS = {"bedrock": "aws"}
PER_TOKEN = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens, for models `provider/model` that match `pattern` (`*` for any characters).
    Tokens read from or written to a prompt cache cost what input costs, where nothing else is said."""

    pattern: str
    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal

    def __str__(self) -> str:
        return f"{self.pattern}={self.input}/{self.output}/{self.cache_read}/{self.cache_write}"

    def of(self, record: UsageRecord) -> Decimal:
        return (
            self.input * record.input_tokens
            + self.output * record.output_tokens
            + self.cache_read * record.cache_read_tokens
            + self.cache_write * record.cache_write_tokens
        ) / PER_TOKEN


@dataclass(frozen=True, slots=True)
class Cost:
    """Of several calls. `usd`: of those with a price; `unpriced`: how many have none, so that the true cost is more."""

    usd: Decimal
    unpriced: int

    @classmethod
    def of(cls, costs: Iterable[Decimal | None]) -> Cost:
        known = list(costs)
        return cls(sum((cost for cost in known if cost is not None), Decimal(0)), known.count(None))

    def members(self) -> dict[str, object]:
        """As documents have it."""
        return {"cost_usd": money(self.usd), "calls_without_price": self.unpriced}


def money(amount: Decimal) -> str:
    """US dollars, exactly and without an exponent."""
    return f"{amount.normalize():f}" if amount else "0"


def parse_prices(text: str) -> tuple[Price, ...]:
    """`provider/model=input/output[/cache read[/cache write]]`, separated by commas. Raises ValueError."""
    return tuple(_price(part.strip()) for part in text.split(",") if part.strip())


def _price(text: str) -> Price:
    pattern, equals, amounts = text.rpartition("=")
    try:
        numbers = [Decimal(amount) for amount in amounts.split("/")]
    except InvalidOperation:
        numbers = []
    sane = all(number.is_finite() and 0 <= number < 10**9 for number in numbers)
    if not equals or "/" not in pattern or not 2 <= len(numbers) <= 4 or not sane:
        raise ValueError(
            f"{text!r} is no price: provider/model=input/output[/cache read[/cache write]], US dollars for a million "
            "tokens, e.g. openai/my-model=0.5/1.5"
        )
    read = numbers[2] if len(numbers) > 2 else numbers[0]
    return Price(pattern, numbers[0], numbers[1], read, numbers[3] if len(numbers) > 3 else numbers[0])


class Prices:
    def __init__(self, own: Iterable[Price] = ()) -> None:
        self._own = tuple(own)

    def cost(self, record: UsageRecord) -> Decimal | None:
        """US dollars, at the price of the time of the call; None: unknown. The first call of a process takes a third
        of a second: not for the event loop."""
        name = f"{record.provider}/{record.model_id}"
        for price in self._own:
            if fnmatchcase(name, price.pattern):
                return price.of(record)
        usage = PricedUsage(
            # There, unlike with Converse, the input's count includes what came from a cache or went to one.
            input_tokens=record.input_tokens + record.cache_read_tokens + record.cache_write_tokens,
            cache_read_tokens=record.cache_read_tokens,
            cache_write_tokens=record.cache_write_tokens,
            output_tokens=record.output_tokens,
        )
        try:
            priced = calc_price(
                usage,
                record.model_id,
                provider_id=PROVIDERS.get(record.provider, record.provider),
                genai_request_timestamp=record.at,
            )
        except (LookupError, ValueError):
            return None
        return priced.total_price
