"""How much memory request bodies may take at one time, so that no caller fills the platform's."""

from __future__ import annotations

from collections import Counter

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import ThrottlingException

__all__ = ["BodyMemory", "Share"]


class BodyMemory:
    """`limit`: bytes of all requests together; `of_session`: of one session's, which has keys and may be hostile."""

    def __init__(self, limit: int, of_session: int) -> None:
        self._limit = limit
        self._of_session = of_session
        self._used = 0
        self._by_session: Counter[SessionRef] = Counter()

    def share(self, session: SessionRef | None) -> Share:
        """Of one request. `session`: the listener's it came through."""
        return Share(self, session)

    def take(self, session: SessionRef | None, size: int) -> None:
        if self._used + size > self._limit:
            raise ThrottlingException("Too many large requests are under way. Try again later")
        if session is not None:
            if self._by_session[session] + size > self._of_session:
                raise ThrottlingException("This session has too many large requests under way. Try again later")
            self._by_session[session] += size
        self._used += size

    def give_back(self, session: SessionRef | None, size: int) -> None:
        self._used -= size
        if session is not None:
            self._by_session[session] -= size
            if not self._by_session[session]:
                del self._by_session[session]


class Share:
    """What one request has taken; `close` gives it back."""

    __slots__ = ("_memory", "_session", "_size")

    def __init__(self, memory: BodyMemory, session: SessionRef | None) -> None:
        self._memory = memory
        self._session = session
        self._size = 0

    def take(self, size: int) -> None:
        """Raises ThrottlingException."""
        if size:
            self._memory.take(self._session, size)
            self._size += size

    def close(self) -> None:
        if self._size:
            self._memory.give_back(self._session, self._size)
            self._size = 0
