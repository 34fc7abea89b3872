"""Fixtures every test may use."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
from containers import container_engine, keycloak_url, opensearch_url, valkey_container_url  # noqa: F401 -- fixtures

from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.storage.valkey import ValkeyKeyValueStore


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A real Valkey server for the whole test run (of one worker)."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"), appendfsync="no")
    server.start_and_wait()
    yield server
    server.stop_and_wait()


@pytest.fixture
async def store(valkey: EmbeddedValkey) -> AsyncIterator[ValkeyKeyValueStore]:
    """An empty key-value store."""
    store = ValkeyKeyValueStore(valkey.url, prefix=f"{{test-{secrets.token_hex(8)}}}")
    yield store
    await store.close()
