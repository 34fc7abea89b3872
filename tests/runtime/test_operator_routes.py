"""The plain routes: credentials for sessions; artifacts, sessions and logs for operators."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.identity.settings import IdentitySettings
from agentkeep.runtime.sessions.logs import Logs

OPERATOR = Caller(CallerKind.OPERATOR, "arn:aws:iam::123456789012:user/olivia", "AKIAOPERATOR")


async def _ask(app: Any, method: str, path: str, body: bytes = b"", query: bytes = b"", **scope: Any) -> Any:
    """One request, as an ASGI server makes it; the body in pieces."""
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
        for number, piece in enumerate(pieces)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = path.encode()
    whole = {"type": "http", "method": method, "path": path, "raw_path": raw, "query_string": query, **scope}
    await app(whole, receive, send)
    return sent[0]["status"], sent[1]["body"]


def _id() -> str:
    return str(uuid.uuid4())


# Credentials.


@pytest.fixture
def identity_settings() -> IdentitySettings:
    return IdentitySettings(session_key_life=180)


async def test_a_session_gets_keys_of_its_own(platform: Any, clock: Any) -> None:
    """IDN-4. Bound to agent, user and session; dead when the session ends."""
    runtime_id, session_id = await platform.create(), _id()
    (await platform.begin(runtime_id, session_id, user_id="alice")).end()
    ref = SessionRef(runtime_id, session_id)
    app = platform.plane.credentials_app
    status, body = await _ask(app, "GET", "/credentials", **{"agentkeep.session": ref})
    document = json.loads(body)
    assert status == 200
    assert set(document) == {"AccessKeyId", "SecretAccessKey", "Token", "Expiration", "RoleArn"}
    assert document["RoleArn"] == "arn:aws:iam::123456789012:role/agents"
    assert document["Expiration"].endswith("Z")
    key = await platform.identity.keys.find(document["AccessKeyId"])
    assert key.caller.user == User("alice")
    assert key.caller.session == ref
    # Asked again and again: the same keys, until half their life has gone.
    again = [await _ask(app, "GET", "/credentials", **{"agentkeep.session": ref}) for _ in range(20)]
    assert {json.loads(body)["AccessKeyId"] for _, body in again} == {document["AccessKeyId"]}
    await platform.begin(runtime_id, session_id, user_id="alice")  # stays busy
    await clock.move(95)  # of 180 seconds
    renewed = json.loads((await _ask(app, "GET", "/credentials", **{"agentkeep.session": ref}))[1])
    assert renewed["AccessKeyId"] != document["AccessKeyId"]

    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    assert (await _ask(app, "GET", "/credentials", **{"agentkeep.session": ref}))[0] == 403
    for gone in (document, renewed):
        assert await platform.identity.keys.find(gone["AccessKeyId"]) is None


async def test_an_agent_may_fetch_its_keys_while_it_starts(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    answers = []

    async def start(spec: Any) -> None:
        ref = SessionRef(runtime_id, session_id)
        answers.append(await _ask(platform.plane.credentials_app, "GET", "/credentials", **{"agentkeep.session": ref}))

    platform.driver.behaviour.start = start
    await platform.begin(runtime_id, session_id)
    assert answers[0][0] == 200


async def test_keys_issued_at_the_moment_of_the_end_are_dead(platform: Any) -> None:
    """IDN-4. However the two cross."""
    for delay in range(6):
        runtime_id = await platform.create(f"agent{delay}")
        session_id = _id()
        (await platform.begin(runtime_id, session_id, user_id="alice")).end()
        ref = SessionRef(runtime_id, session_id)

        async def stop(runtime_id: str = runtime_id, session_id: str = session_id, delay: int = delay) -> None:
            for _ in range(delay * 3):
                await asyncio.sleep(0)
            await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)

        (status, body), _ = await asyncio.gather(
            _ask(platform.plane.credentials_app, "GET", "/credentials", **{"agentkeep.session": ref}), stop()
        )
        if status == 200:
            assert await platform.identity.keys.find(json.loads(body)["AccessKeyId"]) is None
        else:
            assert status == 403


@pytest.mark.parametrize("session", [None, SessionRef("agent-0000000000", "x" * 40)])
async def test_no_session_no_keys(platform: Any, session: SessionRef | None) -> None:
    status, body = await _ask(platform.plane.credentials_app, "GET", "/credentials", **{"agentkeep.session": session})
    assert status in (403, 404)
    assert b"Secret" not in body


# Operators' routes.


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"agentkeep.caller": Caller(CallerKind.USER, "alice", user=User("alice"))},
        {"agentkeep.caller": Caller(CallerKind.SESSION, "agent", session=SessionRef("a", "b"))},
        {"agentkeep.caller": OPERATOR, "agentkeep.session": SessionRef("a", "b")},
    ],
)
async def test_operators_only(platform: Any, scope: dict[str, Any]) -> None:
    """IDN-5."""
    for app, method, path in (
        (platform.plane.admin_app, "GET", "/sessions"),
        (platform.plane.admin_app, "GET", "/logs/x"),
        (platform.plane.artifacts_app, "PUT", "/artifacts/code/agent.zip"),
    ):
        status, _ = await _ask(app, method, path, b"content", **scope)
        assert status == 403


async def test_artifacts_are_uploaded(platform: Any) -> None:
    status, body = await _ask(
        platform.plane.artifacts_app,
        "PUT",
        "/artifacts/code/a/b%2Fc.zip",
        b"some content",
        **{"agentkeep.caller": OPERATOR},
    )
    stored = json.loads(body)
    assert status == 200
    assert (stored["bucket"], stored["key"], stored["size"]) == ("code", "a/b/c.zip", 12)
    assert (await platform.artifacts.head("code", "a/b/c.zip")).version_id == stored["versionId"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/artifacts/code", 400),
        ("PUT", "/artifacts/UPPER/key", 400),
        ("PUT", "/artifacts/../key", 400),
        ("PUT", "/artifacts/code/" + "k" * 1025, 400),
        ("GET", "/artifacts/code/agent.zip", 405),
    ],
)
async def test_bad_uploads(platform: Any, method: str, path: str, status: int) -> None:
    answer = await _ask(platform.plane.artifacts_app, method, path, b"x", **{"agentkeep.caller": OPERATOR})
    assert answer[0] == status


async def test_sessions_are_listed(platform: Any) -> None:
    runtime_id, alive, ended = await platform.create(), _id(), _id()
    for session_id in (alive, ended):
        (await platform.begin(runtime_id, session_id, user_id="alice")).end()
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=ended)
    ask = {"agentkeep.caller": OPERATOR}
    _, body = await _ask(platform.plane.admin_app, "GET", "/sessions", **ask)
    [found] = json.loads(body)["sessions"]
    assert found["sessionId"] == alive
    assert found["user"] == "alice"
    assert found["status"] == "READY"
    _, body = await _ask(platform.plane.admin_app, "GET", "/sessions", query=f"runtimeId={runtime_id}".encode(), **ask)
    both = {session["sessionId"]: session["endReason"] for session in json.loads(body)["sessions"]}
    assert both == {alive: None, ended: "stopped by StopRuntimeSession"}
    _, body = await _ask(platform.plane.admin_app, "GET", "/sessions", query=b"runtimeId=other-0000000000", **ask)
    assert json.loads(body)["sessions"] == []


async def test_output_is_kept_after_the_end(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    turn = await platform.begin(runtime_id, session_id)
    platform.driver.agents[0].spec.log(b"hello from the agent\n")
    turn.end()
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    for path in (f"/logs/{session_id}", f"/logs/{runtime_id}/{session_id}"):
        status, body = await _ask(platform.plane.admin_app, "GET", path, **{"agentkeep.caller": OPERATOR})
        assert status == 200
        assert b"hello from the agent" in body
        assert b"ended: stopped by StopRuntimeSession" in body
    for path in (f"/logs/{_id()}", f"/logs/../{session_id}", "/logs/a/b/c", "/else"):
        status, _ = await _ask(platform.plane.admin_app, "GET", path, **{"agentkeep.caller": OPERATOR})
        assert status == 404


async def test_logs_are_bounded_and_keep_the_newest(tmp_path: Path, clock: Any) -> None:
    logs = Logs(tmp_path, 10_000, 3600, clock)
    ref = SessionRef("agent-0000000000", "s" * 40)
    log = logs.open(ref)
    for number in range(2000):
        log.write(f"line {number}\n".encode())
        if number % 100 == 0:
            await log.close()
    await log.close()
    text = await logs.read(ref)
    assert text is not None
    assert len(text) <= 10_000
    assert text.endswith(b"line 1999\n")
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.log")) <= 10_000
    logs.close()


async def test_output_that_floods_is_dropped_not_held(tmp_path: Path, clock: Any) -> None:
    logs = Logs(tmp_path, 32 << 20, 3600, clock)
    ref = SessionRef("agent-0000000000", "s" * 40)
    log = logs.open(ref)
    for _ in range(100):
        log.write(b"x" * (1 << 20))  # without ever letting the writer run
    await log.close()
    text = await logs.read(ref)
    assert text is not None
    assert len(text) < 6 << 20
    assert b"were dropped" in text
    logs.close()


async def test_old_logs_are_removed(tmp_path: Path, clock: Any) -> None:
    import os

    logs = Logs(tmp_path, 10_000, 3600, clock)
    for name, age in (("old", 7200), ("new", 0)):
        ref = SessionRef(f"{name}-0000000000", "s" * 40)
        log = logs.open(ref)
        log.write(b"text")
        await log.close()
        for file in (tmp_path / ref.runtime_id).iterdir():
            moment = file.stat().st_mtime - age
            os.utime(file, (moment, moment))
    await logs.collect()
    assert [folder.name for folder in tmp_path.iterdir()] == ["new-0000000000"]
    logs.close()
