"""Warm pools with real sandboxes: what an agent does while it is nobody's stays its session's own, and gets it
nothing."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import SystemClock
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.environments.warm_pool_sizes import WARM_POOL_TAG
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.service.front import Front
from agentkeep.storage.valkey import ValkeyKeyValueStore

pytestmark = pytest.mark.sandbox

#: Remembers in its module, writes a file, and asks for credentials before it is anybody's.
AGENT = """
import http.server, json, os, secrets, urllib.request, urllib.error

NAME = secrets.token_hex(8)
SEEN = []

def credentials():
    try:
        with urllib.request.urlopen("http://169.254.170.2/credentials", timeout=10) as reply:
            return json.loads(reply.read())
    except OSError as error:
        return {"refused": repr(error)}

EARLY = credentials()
open("/tmp/early", "w").write(NAME)
print("early words of", NAME, flush=True)

class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"status": "Healthy"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        if self.path == "/load":
            SEEN.append("loaded")
            self.answer({})
            return
        SEEN.append(json.loads(body)["say"])
        self.answer({"name": NAME, "seen": SEEN, "early": EARLY, "now": credentials(),
                     "file": open("/tmp/early").read(),
                     "session": self.headers["x-amzn-bedrock-agentcore-runtime-session-id"]})

    def answer(self, reply):
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever()
"""


@pytest.fixture
async def sealed(store: ValkeyKeyValueStore, tmp_path: Path, make_platform: Any) -> AsyncIterator[Any]:
    clock = SystemClock()
    identity = IdentityPlane(store, FileMasterKey(b"k" * 32), make_platform.deployment, clock, IdentitySettings())
    driver = ProcessDriver(tmp_path / "driver")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await platform.plane.credentials_app(scope, receive, send)

    front = Front(application)
    await front.start()
    settings = RuntimeSettings(start_timeout=60, stop_grace=1)
    platform = make_platform(store, clock, tmp_path, identity, settings, driver, front.protocol)
    await platform.plane.start()
    await platform.upload(platform.bundle({"main.py": AGENT}))
    yield platform
    await platform.plane.stop()
    assert driver.environments == []
    await driver.close()
    await front.close()
    await identity.close()


async def _full(platform: Any, size: int) -> None:
    async with asyncio.timeout(60):
        while [pool["ready"] for pool in platform.plane._parts.warm_pools.describe(None)] != [size]:
            await asyncio.sleep(0.01)


async def _say(platform: Any, runtime_id: str, session_id: str, word: str) -> Any:
    output = await platform.call(
        "invoke_agent_runtime",
        agentRuntimeArn=runtime_id,
        runtimeSessionId=session_id,
        runtimeUserId="alice",
        payload=json.dumps({"say": word}).encode(),
    )
    return json.loads(b"".join([piece async for piece in output["response"]]))


async def test_what_waits_is_nobodys_and_then_one_sessions_only(sealed: Any) -> None:
    """EXE-1, IDN-4: no credentials before the claim; nothing of one session, or of the wait, in another."""
    made = await sealed.call(
        "create_agent_runtime",
        agentRuntimeName="waiting",
        tags={WARM_POOL_TAG: "3"},
        hooksConfiguration={"build": {"warmup": {"action": {"httpPost": {"path": "/load"}}}}},
        **sealed.definition(),
    )
    runtime_id = made["agentRuntimeId"]
    await sealed.ready(runtime_id)
    await _full(sealed, 3)
    waiting = {environment.id for environment in sealed.driver.environments}

    sessions = [str(uuid.uuid4()) for _ in range(4)]
    first = await asyncio.gather(*(_say(sealed, runtime_id, each, f"one to {each}") for each in sessions))
    again = await asyncio.gather(*(_say(sealed, runtime_id, each, f"two to {each}") for each in sessions))

    live = [sealed.plane._parts.sessions.live(SessionRef(runtime_id, each)) for each in sessions]
    assert waiting <= {session.environment.id for session in live}
    assert len({answer["name"] for answer in first}) == 4
    for session_id, one, two in zip(sessions, first, again, strict=True):
        assert one["name"] == two["name"] == one["file"]
        assert two["seen"] == ["loaded", f"one to {session_id}", f"two to {session_id}"]
        assert one["session"] == session_id
        key = await sealed.identity.keys.find(one["now"]["AccessKeyId"])
        assert key.caller.session == SessionRef(runtime_id, session_id)
    early = [answer["early"] for answer in first]
    assert sum("refused" in each for each in early) >= 3
    cold = [each for each in early if "refused" not in each]
    assert all("AccessKeyId" in each for each in cold)  # one that was its session's from the beginning

    for session_id, one in zip(sessions, first, strict=True):
        await sealed.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
        kept = (await sealed.plane._parts.logs.read(SessionRef(runtime_id, session_id))).decode()
        assert [line for line in kept.splitlines() if line.startswith("early")] == [f"early words of {one['name']}"]
        assert await sealed.identity.keys.find(one["now"]["AccessKeyId"]) is None


@pytest.mark.slow
async def test_fifty_first_calls_and_five_that_wait(sealed: Any) -> None:
    """EXE-1: fifty sandboxes, each with one session's words only."""
    made = await sealed.call(
        "create_agent_runtime", agentRuntimeName="waiting", tags={WARM_POOL_TAG: "5"}, **sealed.definition()
    )
    runtime_id = made["agentRuntimeId"]
    await sealed.ready(runtime_id)
    await _full(sealed, 5)
    waiting = {environment.id for environment in sealed.driver.environments}
    sessions = [str(uuid.uuid4()) for _ in range(50)]
    answers = await asyncio.gather(*(_say(sealed, runtime_id, each, each) for each in sessions))
    assert len({answer["name"] for answer in answers}) == 50
    assert [answer["seen"] for answer in answers] == [[each] for each in sessions]
    assert [answer["session"] for answer in answers] == sessions
    used = {sealed.plane._parts.sessions.live(SessionRef(runtime_id, each)).environment.id for each in sessions}
    assert len(used) == 50
    assert waiting <= used
    await _full(sealed, 5)
    assert len({environment.id for environment in sealed.driver.environments} - used) == 5
