"""Bodies in memory have a limit, all together and of each session."""

from __future__ import annotations

import pytest

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import ThrottlingException
from agentkeep.service.body_memory import BodyMemory

ALICE, BOB = SessionRef("demo-0123456789", "a" * 33), SessionRef("demo-0123456789", "b" * 33)


def test_a_session_takes_no_more_than_its_part() -> None:
    """EXE-6"""
    memory = BodyMemory(100, 30)
    first, second = memory.share(ALICE), memory.share(ALICE)
    first.take(20)
    with pytest.raises(ThrottlingException, match="session"):
        second.take(11)
    memory.share(BOB).take(30)
    memory.share(None).take(50)
    with pytest.raises(ThrottlingException, match="Too many"):
        second.take(1)
    first.close()
    first.close()
    second.take(20)


def test_what_was_refused_is_not_counted() -> None:
    memory = BodyMemory(10, 5)
    share = memory.share(ALICE)
    for _ in range(3):
        with pytest.raises(ThrottlingException):
            share.take(6)
    share.take(5)
    share.close()
    memory.share(None).take(10)
