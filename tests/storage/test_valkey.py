"""The key-value store on a real Valkey."""

import asyncio
import os
import secrets
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis

from agentkeep.core.errors import ConditionFailed, StoreUnavailable
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.storage.interface import ABSENT, Delete, Ensure, KeyValueStore, Once, Put
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.testing.key_value import KeyValueStoreContract, later_ms, now_ms


class TestValkey(KeyValueStoreContract):
    pass


class SetClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.moment = datetime(2020, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


def own_store(valkey: EmbeddedValkey, **options: object) -> tuple[ValkeyKeyValueStore, str]:
    prefix = f"{{test-{secrets.token_hex(8)}}}"
    return ValkeyKeyValueStore(valkey.url, prefix=prefix, **options), prefix  # type: ignore[arg-type]


async def keys_of(valkey: EmbeddedValkey, prefix: str) -> dict[str, int]:
    """Each key with its end in epoch ms; -1: it has none."""
    async with Redis.from_url(valkey.url) as redis:
        return {
            key.decode().removeprefix(prefix): await redis.pexpiretime(key)
            async for key in redis.scan_iter(f"{prefix}*")
        }


async def test_a_partition_ends_with_its_last_item(valkey: EmbeddedValkey) -> None:
    """Nothing outlives its items for ever, even if nobody comes by to tidy."""
    store, prefix = own_store(valkey)
    last = later_ms(120)
    await store.transact([Put("p", "a", b"", expires_ms=later_ms(60)), Put("p", "b", b"", expires_ms=last)])
    keys = await keys_of(valkey, prefix)
    assert set(keys) == {"h:p", "z:p", "x:p"}
    (end,) = set(keys.values())
    assert last < end < last + 2 * 3_600_000

    last = later_ms(86400)
    await store.transact([Ensure("p", "b", b"", expires_ms=last)])
    (end,) = set((await keys_of(valkey, prefix)).values())
    assert end > last

    await store.transact([Put("p", "c", b"")])
    assert set((await keys_of(valkey, prefix)).values()) == {-1}

    await store.transact([Delete("p", "c")])
    (end,) = set((await keys_of(valkey, prefix)).values())
    assert end > last

    await store.transact([Delete("p", "a"), Delete("p", "b")])
    assert await keys_of(valkey, prefix) == {}
    await store.close()


async def test_writes_tidy_what_expired(valkey: EmbeddedValkey) -> None:
    """A partition written to for ever holds no more than what is alive, and a few."""
    clock = SetClock()
    store, prefix = own_store(valkey, clock=clock)
    for _ in range(100):
        ends = int(clock.now().timestamp() * 1000) + 5000
        await store.transact([Put("p", secrets.token_hex(8), b"", expires_ms=ends), Put("p", "for ever", b"")])
        await clock.sleep(1)
    async with Redis.from_url(valkey.url) as redis:
        assert [await redis.hlen(f"{prefix}h:p"), await redis.zcard(f"{prefix}z:p")] == [6, 6]
    await store.close()


async def test_the_clock_may_be_the_callers(valkey: EmbeddedValkey) -> None:
    clock = SetClock()
    store, _ = own_store(valkey, clock=clock)
    ends = int(clock.now().timestamp() * 1000) + 1000
    await store.transact([Put("p", "a", b"1", expires_ms=ends)])
    assert await store.get("p", "a") == b"1"
    await clock.sleep(0.999)
    assert await store.get("p", "a") == b"1"
    await clock.sleep(0.001)
    assert await store.get("p", "a") is None
    assert await store.query("p") == []
    await store.close()


async def test_keys_are_of_one_cluster_slot(valkey: EmbeddedValkey) -> None:
    store, prefix = own_store(valkey)
    await store.transact([Put("p", "a", b"1"), Put("q{x}", "a", b"1")], once=Once("k", b"", b"", later_ms()))
    async with Redis.from_url(valkey.url) as redis:
        slots = {
            await redis.execute_command("CLUSTER", "KEYSLOT", prefix + key) for key in await keys_of(valkey, prefix)
        }
    assert len(slots) == 1
    await store.close()


async def test_each_operation_is_one_command(valkey: EmbeddedValkey) -> None:
    """The hot path promises one round trip."""
    store, _ = own_store(valkey)
    await store.get("p", "a")  # connects
    async with Redis.from_url(valkey.url) as redis:

        async def commands() -> int:
            info = await redis.info("commandstats")
            return sum(int(info.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "eval"))

        before = await commands()
        await store.transact([Put("p", "a", b"1"), Put("q", "b", b"1")], once=Once("k1", b"", b"", later_ms()))
        await store.get("p", "a")
        await store.get_many("p", ["a", "b"])
        await store.query("p")
        await store.delete_partition("p")
        assert await commands() - before == 5
    await store.close()


async def test_flushed_scripts_are_loaded_again(valkey: EmbeddedValkey, store: KeyValueStore) -> None:
    await store.transact([Put("p", "a", b"1")])
    async with Redis.from_url(valkey.url) as redis:
        await redis.script_flush()
    await store.transact([Put("p", "b", b"2")])
    assert [item.sort for item in await store.query("p")] == ["a", "b"]


async def test_nothing_acknowledged_is_lost_by_kill(tmp_path: Path) -> None:
    """EXE-6: kill -9 of Valkey under load, again and again; every acknowledged write is there afterwards, and the
    store goes on by itself."""
    async with EmbeddedValkey(tmp_path) as valkey:
        store = ValkeyKeyValueStore(valkey.url)
        acknowledged: set[str] = set()
        running = True

        async def write(writer: int) -> None:
            number = 0
            while running:
                name = f"{writer}-{number}"
                number += 1
                try:
                    await store.transact([Put("p", name, name.encode()), Put(f"by-{writer}", name, b"")])
                except StoreUnavailable:
                    continue
                acknowledged.add(name)

        writers = [asyncio.create_task(write(number)) for number in range(8)]
        for _ in range(3):
            await asyncio.sleep(0.15)
            killed = valkey.pid
            os.kill(killed, signal.SIGKILL)
            before = len(acknowledged)
            while valkey.pid == killed or len(acknowledged) < before + 20:
                await asyncio.sleep(0.01)
        running = False
        await asyncio.gather(*writers)
        present = {item.sort for item in await store.query("p", limit=10**6)}
        assert acknowledged <= present
        for writer in range(8):
            listed = {item.sort for item in await store.query(f"by-{writer}", limit=10**6)}
            assert listed == {name for name in present if name.startswith(f"{writer}-")}  # both writes or neither
        await store.close()

    async with EmbeddedValkey(tmp_path) as valkey:  # and after an ordered stop
        store = ValkeyKeyValueStore(valkey.url)
        assert {item.sort for item in await store.query("p", limit=10**6)} == present
        await store.close()


async def test_a_token_makes_a_write_repeatable(tmp_path: Path) -> None:
    """With a client token the store may send a transaction again after a lost connection: it is done once."""
    async with EmbeddedValkey(tmp_path) as valkey:
        store = ValkeyKeyValueStore(valkey.url)
        stop = time.monotonic() + 1.0
        number = 0
        kills = 0

        async def kill() -> None:
            nonlocal kills
            while time.monotonic() < stop:
                killed = valkey.pid
                os.kill(killed, signal.SIGKILL)
                kills += 1
                while valkey.pid == killed:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)

        killer = asyncio.create_task(kill())
        while time.monotonic() < stop:
            name = f"{number:06}"
            await store.transact([Put("p", name, b"", expect=ABSENT)], once=Once(name, b"x", name.encode(), later_ms()))
            number += 1
        await killer
        assert kills
        assert [item.sort for item in await store.query("p", limit=10**6)] == [f"{n:06}" for n in range(number)]
        await store.close()


async def test_a_full_store_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path, appendfsync="no") as valkey:
        store = ValkeyKeyValueStore(valkey.url)
        await store.transact([Put("p", "a", b"1", expires_ms=later_ms())])
        async with Redis.from_url(valkey.url) as redis:
            await redis.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailable, match="OOM"):
                await store.transact([Put("p", "b", b"1"), Put("q", "b", b"1")])
            await redis.config_set("maxmemory", 0)
        assert await store.get("p", "a") == b"1"
        assert await store.query("q") == []
        await store.transact([Put("p", "b", b"1")])
        await store.close()


async def test_expiry_survives_a_restart(tmp_path: Path) -> None:
    ends = now_ms() + 1500
    async with EmbeddedValkey(tmp_path, appendfsync="no") as valkey:
        store = ValkeyKeyValueStore(valkey.url)
        await store.transact([Put("p", "a", b"1", expires_ms=ends), Put("p", "b", b"1", expires_ms=later_ms())])
        await store.close()
    async with EmbeddedValkey(tmp_path, appendfsync="no") as valkey:
        store = ValkeyKeyValueStore(valkey.url)
        assert await store.get("p", "a") == b"1"
        while now_ms() < ends:
            await asyncio.sleep(0.02)
        assert await store.get_many("p", ["a", "b"]) == [None, b"1"]
        with pytest.raises(ConditionFailed):
            await store.transact([Delete("p", "a", expect=b"1")])
        await store.close()
