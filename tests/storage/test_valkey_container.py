"""The stores on Valkey as the compose deployment has it: in a container, by TCP, with a password."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest
from containers import PASSWORD

from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.testing.counters import CounterStoreContract
from agentkeep.testing.key_value import KeyValueStoreContract

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
async def store(valkey_container_url: str) -> AsyncIterator[ValkeyKeyValueStore]:
    store = ValkeyKeyValueStore(valkey_container_url, prefix=f"{{test-{secrets.token_hex(8)}}}")
    yield store
    await store.close()


@pytest.fixture
def counters(store: ValkeyKeyValueStore) -> ValkeyKeyValueStore:
    return store


class TestKeyValue(KeyValueStoreContract):
    pass


class TestCounters(CounterStoreContract):
    pass


@pytest.mark.parametrize("password", ["", ":wrong-and-secret@"])
async def test_the_password_is_wanted_and_not_told(valkey_container_url: str, password: str) -> None:
    url = valkey_container_url.replace(f":{PASSWORD}@", password)
    assert url != valkey_container_url
    store = ValkeyKeyValueStore(url)
    with pytest.raises(StoreUnavailable) as refused:
        await store.get("p", "s")
    assert "secret" not in str(refused.value)
    await store.close()
