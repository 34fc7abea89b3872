"""Fixtures every test may use."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
from containers import container_engine, keycloak_url, opensearch_url, valkey_container_url  # noqa: F401 -- fixtures

from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.storage.valkey import ValkeyKeyValueStore


def pytest_collection_finish(session: pytest.Session) -> None:
    """Groups of tests that share what there is but once (`--dist loadgroup`) are kept together by a name that
    pytest-xdist appends to their ids. A pytest where it does not reach the ids would deal them out like any others."""
    if not getattr(session.config.option, "loadgroup", False):
        return
    for item in session.items:
        if item.get_closest_marker("xdist_group") is not None and "@" not in item.nodeid:
            raise pytest.UsageError(f"this pytest-xdist does not keep groups together with pytest {pytest.__version__}")


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
