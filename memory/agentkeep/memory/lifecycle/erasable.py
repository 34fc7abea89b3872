"""What holds data of actors, and can forget one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Erasable"]


class Erasable(Protocol):
    """Whoever keeps anything by actor implements it, and is named in `MemoryPlane`'s list of them."""

    async def erase_actor(self, memory_id: str, actor_id: str) -> Mapping[str, int]:
        """Removes all it has of that actor in that memory, and of nobody else; what was removed, by kind (`events`).

        May happen twice, after a crash anywhere in it or beside another replica: what is not there any more is not
        counted. The actor's writes are refused meanwhile (`Barrier`). A memory that is gone holds nothing. Raises
        StoreUnavailable; then it will be called again.
        """
        ...
