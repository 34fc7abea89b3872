"""The token budget that an agent runtime, or one of its endpoints, gives each session: a tag, which AgentCore keeps and
passes over."""

from __future__ import annotations

from typing import Final

import orjson

from agentkeep.core.call import SessionRef
from agentkeep.core.ports import Budget
from agentkeep.runtime.agents.catalogue import TAGS, Catalogue

__all__ = ["BUDGET_TAG", "TaggedBudgets", "token_budget"]

BUDGET_TAG: Final = "agentkeep:session-token-budget"
_NONE: Final = "none"


def token_budget(text: str) -> int | None:
    """Of the tag's value: a number of tokens, or `none`. Raises ValueError."""
    if text == _NONE:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise ValueError(f"is the token budget of a session: a number of tokens, or {_NONE!r}; not {text!r}")
    return int(text)


class TaggedBudgets:
    def __init__(self, catalogue: Catalogue, budget: Budget) -> None:
        self._catalogue = catalogue
        self._budget = budget

    async def open(self, session: SessionRef, endpoint: str) -> None:
        """Gives the session the budget that its endpoint's tag says, or its runtime's; without one it has the
        deployment's. Raises StoreUnavailable: a session whose budget cannot be told must not begin."""
        arns = [
            self._catalogue.endpoint_arn(session.runtime_id, endpoint),
            self._catalogue.runtime_arn(session.runtime_id),
        ]
        for tags in await self._catalogue.store.get_many(TAGS, arns):
            if tags is not None and (text := orjson.loads(tags).get(BUDGET_TAG)) is not None:
                await self._budget.open(session, token_budget(text))
                return
