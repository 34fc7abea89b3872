"""What every counter store must do. Subclass in a test module whose `counters` fixture gives an empty store:

class TestMyCounters(CounterStoreContract): ...
"""

from __future__ import annotations

import asyncio

import pytest

from agentkeep.storage.counters import Counter, CounterStore, Exceeded

__all__ = ["CounterStoreContract"]

#: Long enough for no test to see its end, but by the rarest chance (`in_one_window`).
DAY_MS = 24 * 3_600_000


class CounterStoreContract:
    async def test_a_counter_begins_at_zero(self, counters: CounterStore) -> None:
        assert await counters.value("a") == 0
        assert await counters.take([]) is None

    async def test_what_fits_is_added_and_no_more(self, counters: CounterStore) -> None:
        assert await counters.take([Counter("a", 7, 10)]) is None
        assert await counters.take([Counter("a", 4, 10)]) == Exceeded(0, 7, None)
        assert await counters.value("a") == 7
        assert await counters.take([Counter("a", 3, 10)]) is None
        assert await counters.take([Counter("a", 0, 10)]) is None
        assert await counters.take([Counter("a", 1, 10)]) == Exceeded(0, 10, None)
        assert await counters.value("a") == 10

    async def test_the_limit_is_that_of_each_call(self, counters: CounterStore) -> None:
        await counters.take([Counter("a", 7, 10)])
        assert await counters.take([Counter("a", 1, 5)]) == Exceeded(0, 7, None)
        assert await counters.take([Counter("a", 0, 5)]) == Exceeded(0, 7, None)
        assert await counters.take([Counter("a", 5, 12)]) is None

    async def test_all_are_added_or_none(self, counters: CounterStore) -> None:
        """The first without room is named; those before it stand as they stood."""
        await counters.take([Counter("b", 9, 10), Counter("c", 9, 10)])
        wanted = [Counter("a", 1, 10), Counter("b", 2, 10), Counter("c", 2, 10), Counter("d", 1, 10, window_ms=DAY_MS)]
        assert await counters.take(wanted) == Exceeded(1, 9, None)
        assert [await counters.value(key) for key in "abc"] == [0, 9, 9]

    async def test_one_counter_twice_in_a_call_counts_twice(self, counters: CounterStore) -> None:
        assert await counters.take([Counter("a", 6, 10), Counter("a", 5, 10)]) == Exceeded(1, 6, None)
        assert await counters.value("a") == 0
        assert await counters.take([Counter("a", 6, 10), Counter("a", 4, 10)]) is None
        assert await counters.value("a") == 10

    async def test_amounts_are_never_negative(self, counters: CounterStore) -> None:
        with pytest.raises(ValueError, match="0 or more"):
            await counters.take([Counter("a", -1, 10)])

    @pytest.mark.parametrize("most", [2**53 - 1, 10**15])
    async def test_large_counts_are_exact(self, counters: CounterStore, most: int) -> None:
        assert await counters.take([Counter("a", most - 1, most)]) is None
        assert await counters.take([Counter("a", 2, most)]) == Exceeded(0, most - 1, None)
        assert await counters.take([Counter("a", 1, most)]) is None
        assert await counters.value("a") == most

    # --- giving back

    async def test_given_back_is_free_again(self, counters: CounterStore) -> None:
        await counters.take([Counter("a", 10, 10)])
        await counters.give_back("a", 4, "first")
        assert await counters.value("a") == 6
        assert await counters.take([Counter("a", 4, 10)]) is None

    async def test_a_token_gives_back_once(self, counters: CounterStore) -> None:
        await counters.take([Counter("a", 10, 10), Counter("b", 10, 10)])
        for _ in range(3):
            await counters.give_back("a", 4, "first")
        assert await counters.value("a") == 6
        await counters.give_back("a", 1, "second")
        await counters.give_back("b", 4, "first")  # another counter's token
        assert [await counters.value("a"), await counters.value("b")] == [5, 6]

    async def test_never_below_zero(self, counters: CounterStore) -> None:
        await counters.take([Counter("a", 3, 10)])
        await counters.give_back("a", 4, "first")
        assert await counters.value("a") == 0
        await counters.give_back("never counted", 4, "first")
        assert await counters.value("never counted") == 0

    async def test_more_than_was_taken_may_be_owed(self, counters: CounterStore) -> None:
        """A negative amount adds, beyond the limit too, also once for its token; then nothing fits."""
        await counters.take([Counter("a", 10, 10)])
        for _ in range(2):
            await counters.give_back("a", -5, "first")
        assert await counters.take([Counter("a", 0, 10)]) == Exceeded(0, 15, None)

    # --- windows

    async def test_a_window_limits_and_says_when_it_ends(self, counters: CounterStore) -> None:
        one = Counter("a", 1, 2, window_ms=DAY_MS)
        refused = None
        for _ in range(4):  # a day may end between two of them, once
            refused = await counters.take([one])
        assert refused is not None
        assert (refused.index, refused.value) == (0, 2)
        assert refused.retry_after_ms is not None
        assert 0 < refused.retry_after_ms <= DAY_MS

    async def test_each_window_begins_at_zero(self, counters: CounterStore) -> None:
        """As many as the limit in each window; after waiting as long as it was told to, the caller gets through."""
        counter = Counter("a", 1, 3, window_ms=200)
        for _ in range(3):
            for _ in range(3):
                await counters.take([counter])
            refused = await counters.take([counter])
            while refused is None:  # a window ended meanwhile
                refused = await counters.take([counter])
            assert refused.retry_after_ms is not None
            await asyncio.sleep((refused.retry_after_ms + 2) / 1000)
            assert await counters.take([counter]) is None

    async def test_windows_are_counters_of_their_own(self, counters: CounterStore) -> None:
        assert await counters.take([Counter("a", 1, 1)]) is None
        assert await counters.take([Counter("a", 1, 1, window_ms=DAY_MS)]) is None
        assert await counters.take([Counter("a", 1, 1, window_ms=2 * DAY_MS)]) is None
        assert await counters.value("a") == 1

    async def test_a_counter_is_forgotten_after_its_time(self, counters: CounterStore) -> None:
        await counters.take([Counter("a", 1, 1, keep_ms=50), Counter("b", 1, 1)])
        for _ in range(100):
            if await counters.value("a") == 0:
                break
            await asyncio.sleep(0.02)
        assert [await counters.value("a"), await counters.value("b")] == [0, 1]

    # --- many at once

    async def test_of_many_callers_exactly_the_limit_get_through(self, counters: CounterStore) -> None:
        """GOV-3: 200 callers at once of what is limited to 37: 37 get through."""
        answers = await asyncio.gather(*(counters.take([Counter("a", 1, 37)]) for _ in range(200)))
        assert answers.count(None) == 37
        assert {answer for answer in answers if answer is not None} == {Exceeded(0, 37, None)}
        assert await counters.value("a") == 37

    async def test_taken_and_given_back_by_many_is_exact(self, counters: CounterStore) -> None:
        """Never over the limit, and nothing is left over when all have given back, each of them twice."""
        limit, most = 50, 0

        async def one(number: int) -> int:
            nonlocal most
            if await counters.take([Counter("a", 5, limit)]) is not None:
                return 0
            most = max(most, await counters.value("a"))
            await asyncio.gather(*(counters.give_back("a", 5, str(number)) for _ in range(2)))
            return 1

        ran = sum(await asyncio.gather(*(one(number) for number in range(200))))
        assert ran >= 10
        assert 5 <= most <= limit
        assert await counters.value("a") == 0

    @pytest.mark.parametrize("key", ["", "a:b", "a/b", "{x}", "ä ∑", "a" * 2000, "h:p", "spent:x"])
    async def test_any_text_is_a_key(self, counters: CounterStore, key: str) -> None:
        assert await counters.take([Counter(key, 1, 1)]) is None
        assert await counters.take([Counter(key, 1, 1)]) == Exceeded(0, 1, None)
        assert await counters.value(key + "x") == 0
