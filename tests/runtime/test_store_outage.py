"""The store goes away and comes back: what runs goes on, what ends ends late but whole."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import StoreUnavailable
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.runtime.records import EndReason, SessionState
from agentkeep.storage.valkey import ValkeyKeyValueStore


@pytest.fixture
def own_valkey(tmp_path: Path) -> Any:
    server = EmbeddedValkey(tmp_path / "valkey")
    server.start_and_wait()
    yield server
    server.stop_and_wait()


@pytest.fixture
async def store(own_valkey: EmbeddedValkey) -> AsyncIterator[ValkeyKeyValueStore]:
    store = ValkeyKeyValueStore(own_valkey.url, time_limit=1)
    yield store
    await store.close()


async def test_an_outage(platform: Any, own_valkey: EmbeddedValkey, clock: Any) -> None:
    """EXE-6. A warm session is served without the store; its end waits for it, and then nothing is left."""
    runtime_id, session_id = await platform.create(), str(uuid.uuid4())
    (await platform.begin(runtime_id, session_id)).end()
    await asyncio.to_thread(own_valkey.stop_and_wait)

    turn = platform.plane.invocations.begin_now(platform.request(runtime_id, session_id))
    assert turn is not None
    connection = await turn.connect()
    connection.socket.close()
    connection.release()
    turn.end()
    with pytest.raises(StoreUnavailable):
        await platform.begin(runtime_id, str(uuid.uuid4()))

    # Whether a policy denies it cannot be known now.
    with pytest.raises(StoreUnavailable):
        await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    session = platform.plane._parts.sessions.live(SessionRef(runtime_id, session_id))
    ending = platform.plane._parts.sessions.end(session, EndReason.IDLE)
    async with asyncio.timeout(10):
        while platform.driver.living:
            await asyncio.sleep(0.01)
    assert not ending.done()
    await asyncio.to_thread(own_valkey.start_and_wait)
    async with asyncio.timeout(20):
        while not ending.done():
            await clock.move(2)
            await asyncio.sleep(0.05)
    record = (await platform.plane._parts.table.find(SessionRef(runtime_id, session_id))).record
    assert record.state is SessionState.STOPPED
    (await platform.begin(runtime_id, session_id)).end()
