"""The plane with real sandboxes: from an uploaded zip to a session of the process driver, and its end."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import ResourceNotFoundException, RetryableConflictException, RuntimeClientError
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.service.front import Front
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.testing.driver import AGENT

pytestmark = pytest.mark.sandbox


@pytest.fixture
async def sealed(store: ValkeyKeyValueStore, tmp_path: Path, make_platform: Any) -> AsyncIterator[Any]:
    """A platform whose sessions are sandboxes, with their session endpoint served by the real front."""
    clock = SystemClock()
    identity = IdentityPlane(store, FileMasterKey(b"k" * 32), make_platform.deployment, clock, IdentitySettings())
    driver = ProcessDriver(tmp_path / "driver")
    settings = RuntimeSettings(start_timeout=60, stop_grace=1)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await platform.plane.credentials_app(scope, receive, send)

    front = Front(application)
    await front.start()
    platform = make_platform(store, clock, tmp_path, identity, settings, driver, front.protocol)
    await platform.plane.start()
    await platform.upload(platform.bundle({"main.py": AGENT.read_text()}))
    yield platform
    await platform.plane.stop()
    await driver.close()
    await front.close()
    await identity.close()


async def _do(platform: Any, runtime_id: str, session_id: str, what: str, **given: Any) -> Any:
    output = await platform.call(
        "invoke_agent_runtime",
        agentRuntimeArn=runtime_id,
        runtimeSessionId=session_id,
        runtimeUserId="alice",
        payload=json.dumps({"do": what, **given}).encode(),
    )
    return json.loads(b"".join([piece async for piece in output["response"]]))


async def _create(platform: Any, **settings: Any) -> str:
    made = await platform.call("create_agent_runtime", agentRuntimeName="sealed", **platform.definition(**settings))
    await platform.ready(made["agentRuntimeId"])
    return str(made["agentRuntimeId"])


async def test_the_life_of_a_session(sealed: Any) -> None:
    """EXE-1, EXE-3, IDN-4."""
    runtime_id, session_id = await _create(sealed, environmentVariables={"MODE": "test"}), str(uuid.uuid4())
    ref = SessionRef(runtime_id, session_id)

    seen = await _do(sealed, runtime_id, session_id, "environment")
    assert seen["MODE"] == "test"
    assert seen["AWS_ENDPOINT_URL_BEDROCK_AGENTCORE"] == "http://169.254.170.2"
    assert seen["DOCKER_CONTAINER"] == "1"
    assert not any(name.startswith("AGENTKEEP") for name in seen)

    document = json.loads(
        await _do(sealed, runtime_id, session_id, "endpoint", path=seen["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"])
    )
    key = await sealed.identity.keys.find(document["AccessKeyId"])
    assert (key.caller.session, key.caller.user) == (ref, User("alice"))

    await _do(sealed, runtime_id, session_id, "write", text="words of the agent\n")
    await sealed.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    assert sealed.driver.environments == []
    assert await sealed.identity.keys.find(document["AccessKeyId"]) is None
    log = await sealed.plane._parts.logs.read(ref)
    assert b"words of the agent" in log
    assert b"ended: stopped by StopRuntimeSession" in log


async def test_a_crash_in_a_turn_is_424_and_the_next_turn_begins_anew(sealed: Any) -> None:
    runtime_id, session_id = await _create(sealed), str(uuid.uuid4())
    first = await _do(sealed, runtime_id, session_id, "environment")
    with pytest.raises(RuntimeClientError):
        await _do(sealed, runtime_id, session_id, "exit", code=3)
    for attempt in range(50):
        try:
            assert await _do(sealed, runtime_id, session_id, "environment") == first
            break
        except (RetryableConflictException, RuntimeClientError):  # it is dying, and has not been seen to
            assert attempt < 49
            await asyncio.sleep(0.01)


async def test_fifty_first_calls_make_one_sandbox(sealed: Any) -> None:
    """EXE-1. Timed, since every one of them waits for the same start."""
    runtime_id, session_id = await _create(sealed), str(uuid.uuid4())
    began = time.monotonic()
    turns = await asyncio.gather(*(sealed.begin(runtime_id, session_id, user_id="alice") for _ in range(50)))
    assert time.monotonic() - began < 30
    assert len(sealed.driver.environments) == 1
    for turn in turns:
        turn.end()


async def test_an_agent_that_cannot_start_says_why_in_its_log(sealed: Any) -> None:
    await sealed.upload(sealed.bundle({"main.py": "import no_such_module\n"}))
    runtime_id, session_id = await _create(sealed), str(uuid.uuid4())
    with pytest.raises(RuntimeClientError, match=f"agentkeep logs {session_id}"):
        await sealed.begin(runtime_id, session_id, user_id="alice")
    async with asyncio.timeout(10):
        while sealed.plane._parts.sessions.live(SessionRef(runtime_id, session_id)) is not None:
            await asyncio.sleep(0.01)
    log = await sealed.plane._parts.logs.read(SessionRef(runtime_id, session_id))
    assert b"no_such_module" in log


async def test_stop_while_a_sandbox_is_being_made(sealed: Any) -> None:
    runtime_id = await _create(sealed)
    for delay in (0.0, 0.005, 0.02, 0.05, 0.1):
        session_id = str(uuid.uuid4())
        waiting = asyncio.create_task(sealed.begin(runtime_id, session_id, user_id="alice"))
        await asyncio.sleep(delay)
        if sealed.plane._parts.sessions.live(SessionRef(runtime_id, session_id)) is None:
            await asyncio.wait([waiting])
        stop = {"agentRuntimeArn": runtime_id, "runtimeSessionId": session_id}
        await sealed.call("stop_runtime_session", **stop)
        [result] = await asyncio.gather(waiting, return_exceptions=True)
        if isinstance(result, BaseException):
            assert isinstance(result, RuntimeClientError)
        else:
            result.end()
            with suppress(ResourceNotFoundException):  # the call came after the stop, to a session begun anew
                await sealed.call("stop_runtime_session", **stop)
        assert sealed.driver.environments == []
