"""What every key-value store must do. Subclass in a test module whose `store` fixture gives an empty store:

class TestMyStore(KeyValueStoreContract): ...
"""

from __future__ import annotations

import asyncio
import time

import pytest

from agentkeep.core.errors import ConditionFailed, ValidationException
from agentkeep.storage.interface import (
    ABSENT,
    ANY,
    PRESENT,
    Check,
    Clear,
    Delete,
    Ensure,
    Item,
    KeyValueStore,
    Once,
    Put,
    Replayed,
    partition,
)

__all__ = ["KeyValueStoreContract"]


def now_ms() -> int:
    return int(time.time() * 1000)


def later_ms(seconds: float = 3600) -> int:
    return now_ms() + int(seconds * 1000)


async def fill(store: KeyValueStore, where: str, *sorts: str) -> None:
    await store.transact([Put(where, sort, sort.encode()) for sort in sorts])


async def sorts(store: KeyValueStore, where: str, **bounds: str | int | bool) -> list[str]:
    return [item.sort for item in await store.query(where, **bounds)]  # type: ignore[arg-type]


class KeyValueStoreContract:
    # --- items

    async def test_nothing_is_there_before_a_write(self, store: KeyValueStore) -> None:
        assert await store.get("p", "a") is None
        assert await store.get_many("p", ["a", "b"]) == [None, None]
        assert await store.get_many("p", []) == []
        assert await store.query("p") == []
        assert await store.delete_partition("p") == 0

    async def test_a_put_is_read_back_and_replaced(self, store: KeyValueStore) -> None:
        await store.transact([Put("p", "a", b"1")])
        await store.transact([Put("p", "a", b"2"), Put("q", "a", b"3")])
        assert await store.get("p", "a") == b"2"
        assert await store.get("q", "a") == b"3"
        assert await store.get_many("p", ["x", "a", "a"]) == [None, b"2", b"2"]

    async def test_a_delete_leaves_nothing(self, store: KeyValueStore) -> None:
        await fill(store, "p", "a", "b")
        await store.transact([Delete("p", "a"), Delete("p", "never there")])
        assert await store.get("p", "a") is None
        assert await sorts(store, "p") == ["b"]

    @pytest.mark.parametrize("value", [b"", b"\0", b"\0\r\n$-1\r\n\xff", bytes(range(256)), b"-1", b"(nil)"])
    async def test_values_are_opaque_bytes(self, store: KeyValueStore, value: bytes) -> None:
        await store.transact([Put("p", "a", value)])
        assert await store.get("p", "a") == value
        assert await store.query("p") == [Item("a", value)]
        await store.transact([Put("p", "a", b"new", expect=value)])

    async def test_a_value_of_ten_megabytes(self, store: KeyValueStore) -> None:
        value = bytes(range(256)) * 40_000
        await store.transact([Put("p", "a", value)])
        assert await store.get("p", "a") == value
        assert (await store.query("p"))[0].value == value

    async def test_partitions_do_not_touch(self, store: KeyValueStore) -> None:
        """MEM-2: names made by `partition` cannot reach into one another."""
        names = [partition("a", "b/c"), partition("a/b", "c"), partition("a", "b", "c"), partition("a%2Fb", "c")]
        assert len(set(names)) == len(names)
        for name in names:
            await store.transact([Put(name, "s", name.encode())])
        for name in names:
            assert await store.query(name) == [Item("s", name.encode())]

    async def test_delete_partition_counts_live_items(self, store: KeyValueStore) -> None:
        await fill(store, "p", "a", "b")
        await store.transact([Put("p", "c", b"", expires_ms=later_ms()), Put("p", "d", b"", expires_ms=now_ms() + 5)])
        await asyncio.sleep(0.01)
        assert await store.delete_partition("p") == 3
        assert await store.query("p") == []

    # --- order and pages

    async def test_order_is_bytewise(self, store: KeyValueStore) -> None:
        names = ["", "0", "10", "9", "A", "a", "a b", "a\0", "aa", "é", "z", "ü", "\uffff", "😀"]
        await fill(store, "p", *reversed(names))
        expected = sorted(names, key=str.encode)
        assert await sorts(store, "p") == expected
        assert await sorts(store, "p", reverse=True) == expected[::-1]

    async def test_bounds_are_exclusive(self, store: KeyValueStore) -> None:
        await fill(store, "p", "a", "b", "c", "d")
        assert await sorts(store, "p", after="a", before="d") == ["b", "c"]
        assert await sorts(store, "p", after="a", before="d", reverse=True) == ["c", "b"]
        assert await sorts(store, "p", after="b") == ["c", "d"]
        assert await sorts(store, "p", before="b", reverse=True) == ["a"]
        assert await sorts(store, "p", after="d") == []
        assert await sorts(store, "p", after="aa", before="az") == []
        assert await sorts(store, "p", limit=2, reverse=True) == ["d", "c"]

    async def test_pages_cover_everything_once(self, store: KeyValueStore) -> None:
        expected = [f"{number:05}" for number in range(1234)]
        await fill(store, "p", *expected)
        seen: list[str] = []
        while page := await sorts(store, "p", after=seen[-1] if seen else "", limit=100):
            seen += page
        assert seen == expected
        assert await sorts(store, "p", limit=5000) == expected

    async def test_pages_are_stable_under_writes(self, store: KeyValueStore) -> None:
        """What was there all the time is seen exactly once, whatever comes and goes meanwhile."""
        lasting = [f"{number:04}" for number in range(300)]
        await fill(store, "p", *lasting)
        done = asyncio.Event()

        async def disturb() -> None:
            number = 0
            while not done.is_set():
                name = f"{number % 300:04}+{number}"
                await store.transact([Put("p", name, b"")])
                await store.transact([Delete("p", name)] if number % 2 else [])
                number += 1

        task = asyncio.create_task(disturb())
        seen: list[str] = []
        last: str | None = None
        while (
            page := await sorts(store, "p", before=last, limit=7, reverse=True)
            if last
            else await sorts(store, "p", limit=7, reverse=True)
        ):
            seen += page
            last = page[-1]
        done.set()
        await task
        assert [sort for sort in seen if "+" not in sort] == lasting[::-1]
        assert len(set(seen)) == len(seen)

    async def test_a_page_ends_at_its_size(self, store: KeyValueStore) -> None:
        await store.transact([Put("p", name, bytes(1000)) for name in "abcdef"])
        assert await sorts(store, "p", max_bytes=2500) == ["a", "b", "c"]
        assert await sorts(store, "p", max_bytes=1) == ["a"]
        assert await sorts(store, "p", max_bytes=6001) == list("abcdef")

    # --- expiry

    async def test_an_expired_item_is_gone_for_every_reader(self, store: KeyValueStore) -> None:
        ends = now_ms() + 80
        await fill(store, "p", "a", "c")
        await store.transact([Put("p", "b", b"1", expires_ms=ends), Put("q", "b", b"1", expires_ms=ends)])
        while now_ms() < ends - 20:
            assert await store.get("p", "b") == b"1"
            assert await sorts(store, "p") == ["a", "b", "c"]
            await asyncio.sleep(0.005)
        await asyncio.sleep((ends - now_ms() + 1) / 1000)
        assert await store.get("p", "b") is None
        assert await store.get_many("p", ["a", "b"]) == [b"a", None]
        assert await sorts(store, "p") == ["a", "c"]
        assert await sorts(store, "p", limit=2) == ["a", "c"]  # the page is filled from behind what expired
        assert await store.query("q") == []
        await store.transact([Check("p", "b", ABSENT), Check("p", "a", PRESENT)])
        with pytest.raises(ConditionFailed):
            await store.transact([Check("p", "b", PRESENT)])
        with pytest.raises(ConditionFailed):
            await store.transact([Check("p", "b", b"1")])
        await store.transact([Put("p", "b", b"2", expect=ABSENT)])
        assert await store.get("p", "b") == b"2"

    async def test_a_put_in_the_past_is_not_there(self, store: KeyValueStore) -> None:
        await fill(store, "p", "a")
        await store.transact([Put("p", "a", b"2", expires_ms=now_ms() - 1), Put("p", "b", b"2", expires_ms=1)])
        assert await store.query("p") == []

    async def test_a_later_put_decides_the_end(self, store: KeyValueStore) -> None:
        soon = now_ms() + 60
        await store.transact([Put("p", "a", b"", expires_ms=soon), Put("p", "b", b"", expires_ms=soon)])
        await store.transact([Put("p", "a", b""), Put("p", "b", b"", expires_ms=later_ms())])
        await store.transact([Put("p", "c", b""), Put("p", "d", b"", expires_ms=later_ms())])
        await store.transact([Put("p", "c", b"", expires_ms=soon), Put("p", "d", b"", expires_ms=soon)])
        await asyncio.sleep(0.08)
        assert await sorts(store, "p") == ["a", "b"]

    async def test_many_expired_items_hide_nothing(self, store: KeyValueStore) -> None:
        ends = now_ms() + 50
        await store.transact([Put("p", f"m{number:04}", b"", expires_ms=ends) for number in range(700)])
        await fill(store, "p", "a", "z")
        await asyncio.sleep(0.06)
        assert await sorts(store, "p", limit=2) == ["a", "z"]
        assert await sorts(store, "p", limit=2, reverse=True) == ["z", "a"]

    # --- conditions

    async def test_all_or_nothing(self, store: KeyValueStore) -> None:
        await fill(store, "p", "a")
        with pytest.raises(ConditionFailed) as failed:
            await store.transact([Put("p", "b", b"1"), Delete("p", "a"), Put("q", "c", b"1", expect=b"x")])
        assert (failed.value.index, failed.value.current) == (2, None)
        assert await sorts(store, "p") == ["a"]
        assert await store.query("q") == []

    async def test_each_expectation(self, store: KeyValueStore) -> None:
        await store.transact([Put("p", "a", b"1", expect=ABSENT), Put("p", "b", b"1", expect=ANY)])
        await store.transact([Put("p", "a", b"2", expect=b"1"), Check("p", "b", PRESENT)])
        for write in (
            Put("p", "a", b"3", expect=ABSENT),
            Put("p", "a", b"3", expect=b"1"),
            Delete("p", "a", expect=b"1"),
            Check("p", "a", b""),
            Check("p", "a", ABSENT),
        ):
            with pytest.raises(ConditionFailed) as failed:
                await store.transact([write])
            assert failed.value.current == b"2"
        for missing in (
            Put("p", "x", b"3", expect=b""),
            Delete("p", "x", expect=PRESENT),
            Check("p", "x", PRESENT),
        ):
            with pytest.raises(ConditionFailed) as failed:
                await store.transact([missing])
            assert failed.value.current is None
        await store.transact([Delete("p", "a", expect=b"2")])
        assert await sorts(store, "p") == ["b"]

    async def test_the_first_wrong_expectation_is_named(self, store: KeyValueStore) -> None:
        await fill(store, "p", "a", "b")
        with pytest.raises(ConditionFailed) as failed:
            await store.transact([Check("p", "a", PRESENT), Check("p", "a", b"no"), Check("p", "b", ABSENT)])
        assert (failed.value.index, failed.value.current) == (1, b"a")

    async def test_conditions_see_the_state_before(self, store: KeyValueStore) -> None:
        await store.transact([Put("p", "a", b"1", expect=ABSENT), Put("p", "a", b"2", expect=ABSENT)])
        assert await store.get("p", "a") == b"2"

    async def test_one_of_fifty_wins(self, store: KeyValueStore) -> None:
        async def race(number: int) -> bool:
            try:
                await store.transact([Put("p", "lease", str(number).encode(), expect=ABSENT)])
            except ConditionFailed:
                return False
            return True

        won = await asyncio.gather(*map(race, range(50)))
        assert won.count(True) == 1
        assert await store.get("p", "lease") == str(won.index(True)).encode()

    async def test_compare_and_set_loses_no_update(self, store: KeyValueStore) -> None:
        await store.transact([Put("p", "count", b"0")])

        async def increment() -> None:
            while True:
                value = await store.get("p", "count")
                assert value is not None
                try:
                    await store.transact([Put("p", "count", b"%d" % (int(value) + 1), expect=value)])
                except ConditionFailed:
                    continue
                return

        await asyncio.gather(*(increment() for _ in range(20)))
        assert await store.get("p", "count") == b"20"

    # --- ensure

    async def test_clear_removes_all_of_a_partition(self, store: KeyValueStore) -> None:
        await fill(store, "p", *(f"{i:04}" for i in range(2000)))
        await fill(store, "q", "a")
        await store.transact([Clear("p"), Clear("not there"), Check("q", "a", PRESENT)])
        assert await store.query("p") == []
        assert await sorts(store, "q") == ["a"]
        await store.transact([Put("p", "b", b"1", expires_ms=later_ms())])
        assert await sorts(store, "p") == ["b"]

    async def test_clear_stands_among_the_other_writes(self, store: KeyValueStore) -> None:
        await fill(store, "p", "a")
        await store.transact([Put("p", "b", b"1"), Clear("p"), Put("p", "c", b"1")])
        assert await sorts(store, "p") == ["c"]

    async def test_a_transaction_that_fails_clears_nothing(self, store: KeyValueStore) -> None:
        await fill(store, "p", "a")
        with pytest.raises(ConditionFailed):
            await store.transact([Clear("p"), Check("p", "a", ABSENT)])
        assert await sorts(store, "p") == ["a"]

    async def test_ensure_keeps_what_is_there(self, store: KeyValueStore) -> None:
        await store.transact([Ensure("p", "a", b"1"), Ensure("p", "b", b"1", expires_ms=later_ms())])
        await store.transact([Ensure("p", "a", b"2"), Ensure("p", "b", b"2"), Ensure("p", "c", b"2")])
        assert await store.query("p") == [Item("a", b"1"), Item("b", b"1"), Item("c", b"2")]

    async def test_ensure_only_moves_the_end_later(self, store: KeyValueStore) -> None:
        soon = now_ms() + 60
        await store.transact([Ensure("p", name, b"1", expires_ms=soon) for name in "abc"])
        await store.transact([Put("p", "d", b"1", expires_ms=later_ms()), Put("p", "e", b"1")])
        await store.transact(
            [
                Ensure("p", "a", b"2", expires_ms=later_ms()),
                Ensure("p", "b", b"2"),
                Ensure("p", "c", b"2", expires_ms=soon - 10),
                Ensure("p", "d", b"2", expires_ms=soon),
                Ensure("p", "e", b"2", expires_ms=soon),
            ]
        )
        await asyncio.sleep(0.08)
        assert await sorts(store, "p") == ["a", "b", "d", "e"]
        await store.transact([Ensure("p", "c", b"3", expires_ms=later_ms())])
        assert await store.get_many("p", ["a", "c"]) == [b"1", b"3"]

    # --- client tokens

    async def test_an_equal_request_is_replayed(self, store: KeyValueStore) -> None:
        once = Once("token", b"\0print", b"\xffid-1", later_ms())
        assert await store.transact([Put("p", "a", b"1")], once=once) is None
        again = Once("token", b"\0print", b"id-2", later_ms())
        assert await store.transact([Put("p", "b", b"1")], once=again) == Replayed(b"\xffid-1")
        assert await sorts(store, "p") == ["a"]

    async def test_a_different_request_is_refused(self, store: KeyValueStore) -> None:
        await store.transact([Put("p", "a", b"1")], once=Once("token", b"x", b"id-1", later_ms()))
        with pytest.raises(ValidationException) as refused:
            await store.transact([Put("p", "b", b"1")], once=Once("token", b"y", b"id-1", later_ms()))
        assert refused.value.reason == "IdempotentParameterMismatchException"
        assert await sorts(store, "p") == ["a"]

    async def test_a_replay_is_told_before_conditions(self, store: KeyValueStore) -> None:
        create = [Put("p", "a", b"1", expect=ABSENT)]
        await store.transact(create, once=Once("token", b"x", b"id", later_ms()))
        assert await store.transact(create, once=Once("token", b"x", b"id", later_ms())) == Replayed(b"id")

    async def test_a_failed_transaction_spends_no_token(self, store: KeyValueStore) -> None:
        once = Once("token", b"x", b"id", later_ms())
        with pytest.raises(ConditionFailed):
            await store.transact([Put("p", "a", b"1", expect=PRESENT)], once=once)
        assert await store.transact([Put("p", "a", b"1")], once=once) is None

    async def test_a_token_ends(self, store: KeyValueStore) -> None:
        await store.transact([Put("p", "a", b"1")], once=Once("token", b"x", b"id", now_ms() + 30))
        await asyncio.sleep(0.05)
        assert await store.transact([Put("p", "a", b"2")], once=Once("token", b"y", b"id", later_ms())) is None

    async def test_of_fifty_equal_requests_one_is_done(self, store: KeyValueStore) -> None:
        async def attempt(number: int) -> Replayed | None:
            name = f"{number}"
            return await store.transact([Put("p", name, b"")], once=Once("token", b"x", name.encode(), later_ms()))

        answers = await asyncio.gather(*map(attempt, range(50)))
        (done,) = await sorts(store, "p")
        assert [number for number, answer in enumerate(answers) if answer is None] == [int(done)]
        assert {answer.reference for answer in answers if answer} == {done.encode()}
