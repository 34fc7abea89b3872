"""The counters on a real Valkey."""

import asyncio
import secrets

import pytest
from redis.asyncio import Redis

from agentkeep.core.errors import StoreUnavailable
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.storage.counters import Counter, CounterStore
from agentkeep.storage.interface import Put
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.testing.counters import CounterStoreContract


@pytest.fixture
def counters(store: ValkeyKeyValueStore) -> CounterStore:
    return store


class TestValkeyCounters(CounterStoreContract):
    pass


async def test_replicas_count_together(valkey: EmbeddedValkey) -> None:
    """GOV-3: exactly as many as the limit, though the callers come by eight connections."""
    prefix = f"{{test-{secrets.token_hex(8)}}}"
    replicas = [ValkeyKeyValueStore(valkey.url, prefix=prefix) for _ in range(8)]
    answers = await asyncio.gather(*(replicas[n % 8].take([Counter("a", 1, 25)]) for n in range(200)))
    assert answers.count(None) == 25
    for replica in replicas:
        await replica.close()


async def test_counters_and_partitions_never_meet(store: ValkeyKeyValueStore) -> None:
    names = ["p", "c::p", "h:p", ":p"]
    for name in names:
        await store.transact([Put(name, "value", b"3")])
        assert await store.take([Counter(name, 1, 10)]) is None
    for name in names:
        assert await store.value(name) == 1
        assert [item.value for item in await store.query(name)] == [b"3"]
        assert await store.delete_partition(name) == 1
        assert await store.value(name) == 1


async def test_each_call_is_one_command_and_its_keys_of_one_slot(valkey: EmbeddedValkey) -> None:
    prefix = f"{{test-{secrets.token_hex(8)}}}"
    store = ValkeyKeyValueStore(valkey.url, prefix=prefix)
    await store.value("a")  # connects
    async with Redis.from_url(valkey.url) as redis:

        async def commands() -> int:
            info = await redis.info("commandstats")
            return sum(int(info.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "eval"))

        before = await commands()
        await store.take([Counter("a{x}", 1, 1), Counter("b", 1, 1, window_ms=60_000), Counter("c", 1, 1)])
        await store.give_back("a{x}", 1, "token")
        await store.value("c")
        assert await commands() - before == 3
        keys = [key async for key in redis.scan_iter(f"{prefix}*")]
        assert len(keys) == 3
        assert len({await redis.execute_command("CLUSTER", "KEYSLOT", key) for key in keys}) == 1
        assert all([await redis.pttl(key) > 0 for key in keys]), "each is forgotten some day"
    await store.close()


async def test_away_is_an_error(valkey: EmbeddedValkey) -> None:
    """So that callers can refuse: a limit nobody can count is not kept."""
    store = ValkeyKeyValueStore("unix:///nowhere/valkey.sock", time_limit=0.2)
    with pytest.raises(StoreUnavailable):
        await store.take([Counter("a", 1, 1)])
    await store.close()
