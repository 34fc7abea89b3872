"""InvokeAgentRuntimeCommand: its events, its timeout, its attempts, and what its session makes of it. That a command
runs where it should is the drivers' to show (agentkeep.testing.driver_commands)."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import orjson
import pytest

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import (
    RetryableConflictException,
    RuntimeClientError,
    ThrottlingException,
    ValidationException,
)
from agentkeep.runtime.drivers.driver import Written
from agentkeep.runtime.sessions.session import Session

ARN = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/"
INVOCATION_ID = "amz-sdk-invocation-id"


class Execution:
    """One whose output and end a test says."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[Written | None] = asyncio.Queue()
        self._ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.closed = False

    def write(self, data: bytes, error: bool = False) -> None:
        self._pieces.put_nowait(Written(data, error))

    def end(self, status: int | None) -> None:
        if not self._ended.done():
            self._ended.set_result(status)
            self._pieces.put_nowait(None)

    async def read(self) -> Written | None:
        return await self._pieces.get()

    async def wait(self) -> int | None:
        return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        self.end(137)

    async def close(self) -> None:
        self.closed = True
        await self.kill()


class Shell:
    """What runs the lines of a platform's sessions."""

    def __init__(self, platform: Any) -> None:
        self.lines: list[str] = []
        self.executions: list[Execution] = []
        platform.driver.behaviour.execute = self.execute

    async def execute(self, line: str) -> Execution:
        self.lines.append(line)
        self.executions.append(Execution())
        return self.executions[-1]


@pytest.fixture
def shell(platform: Any) -> Shell:
    return Shell(platform)


def _id() -> str:
    return f"session-{uuid.uuid4()}"


async def _run(platform: Any, runtime_id: str, session_id: str, line: str = "line", **more: Any) -> Any:
    headers = {INVOCATION_ID: more.pop("attempt_of")} if "attempt_of" in more else {}
    answer = await platform.call(
        "invoke_agent_runtime_command",
        agentRuntimeArn=ARN + runtime_id,
        runtimeSessionId=session_id,
        body={"command": line, **more},
        headers=headers,
    )
    return answer["stream"]


async def _rest(stream: Any) -> list[dict[str, Any]]:
    return [event["chunk"] async for event in stream]


def _session(platform: Any, runtime_id: str, session_id: str) -> Session:
    session: Session = platform.plane._parts.sessions.live(SessionRef(runtime_id, session_id))
    return session


async def test_output_is_text_in_events_of_their_size(platform: Any, shell: Shell) -> None:
    stream = await _run(platform, await platform.create(), _id())
    written = bytes(range(256)) * 64 + "ü€😀".encode() * 900
    for start in range(0, len(written), 1001):  # somewhere in the middle of a character, too
        shell.executions[0].write(written[start : start + 1001])
    shell.executions[0].write(b"\1" * 16_384, error=True)
    shell.executions[0].write(b"\xe2\x82", error=True)
    shell.executions[0].end(0)
    events = await _rest(stream)
    assert events[0] == {"contentStart": {}}
    assert events[-1] == {"contentStop": {"exitCode": 0, "status": "COMPLETED"}}
    said = {"stdout": "", "stderr": ""}
    for event in events[1:-1]:
        ((name, text),) = event["contentDelta"].items()
        assert text
        assert len(orjson.dumps(event)) < 64_000
        said[name] += text
    assert said["stdout"] == written.decode(errors="replace")
    assert said["stderr"] == "\1" * 16_384 + "�"
    assert shell.executions[0].closed


async def test_a_host_that_is_lost_is_a_platform_error(platform: Any, shell: Shell) -> None:
    stream = await _run(platform, await platform.create(), _id())
    shell.executions[0].end(None)
    assert (await _rest(stream))[-1] == {"contentStop": {"exitCode": -1, "status": "COMPLETED"}}


async def test_the_timeout_ends_it_read_or_not(platform: Any, shell: Shell, clock: Any) -> None:
    runtime_id = await platform.create()
    unread = await _run(platform, runtime_id, _id(), timeout=7)
    default = await _run(platform, runtime_id, _id())
    await clock.move(6.9)
    assert not shell.executions[0]._ended.done()
    await clock.move(0.2)
    assert shell.executions[0]._ended.done()
    await clock.move(290)
    assert not shell.executions[1]._ended.done()
    await clock.move(10)
    assert (await _rest(default))[-1] == {"contentStop": {"exitCode": 137, "status": "TIMED_OUT"}}
    await unread.aclose()


async def test_a_session_is_busy_until_its_commands_end(platform: Any, shell: Shell, clock: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    stream = await _run(platform, runtime_id, session_id)
    session = _session(platform, runtime_id, session_id)
    assert (session.turns, session.commands) == (1, 1)
    shell.executions[0].end(0)
    await _rest(stream)
    assert (session.turns, session.commands) == (0, 0)
    stream = await _run(platform, runtime_id, session_id)
    await stream.aclose()  # its client has left before the first event
    await stream.aclose()
    assert (session.turns, session.commands) == (0, 0)
    assert shell.executions[1].closed


async def test_a_stream_that_nobody_reads_keeps_no_session(platform: Any, shell: Shell, clock: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    stream = await _run(platform, runtime_id, session_id)
    assert await anext(stream) == {"chunk": {"contentStart": {}}}
    shell.executions[0].write(b"unread")
    shell.executions[0].end(0)
    await clock.move(0)  # its end is seen
    await clock.move(59)
    session = _session(platform, runtime_id, session_id)
    assert session.turns == 1
    await clock.move(2)
    assert session.turns == 0
    with pytest.raises(RuntimeClientError, match="not read within 60 s"):
        await _rest(stream)


async def test_the_end_of_the_session_is_told(platform: Any, shell: Shell) -> None:
    runtime_id, session_id = await platform.create(), _id()
    stream = await _run(platform, runtime_id, session_id)
    await platform.call("stop_runtime_session", agentRuntimeArn=ARN + runtime_id, runtimeSessionId=session_id)
    with pytest.raises(RuntimeClientError, match="session ended before"):
        await _rest(stream)
    await stream.aclose()


async def test_too_many_at_once_are_throttled_and_may_try_again(platform: Any, shell: Shell) -> None:
    runtime_id, session_id = await platform.create(), _id()
    streams = [await _run(platform, runtime_id, session_id) for _ in range(8)]
    with pytest.raises(ThrottlingException, match="8 commands run in this session"):
        await _run(platform, runtime_id, session_id, attempt_of="one request")
    session = _session(platform, runtime_id, session_id)
    assert (session.turns, session.commands) == (8, 8)
    await streams[0].aclose()
    streams.append(await _run(platform, runtime_id, session_id, attempt_of="one request"))
    for stream in streams:
        await stream.aclose()
    assert (session.turns, session.commands) == (0, 0)


async def test_a_command_that_cannot_be_run_leaves_the_session_idle(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    with pytest.raises(RuntimeClientError, match="there is no shell here"):
        await _run(platform, runtime_id, session_id)
    session = _session(platform, runtime_id, session_id)
    assert (session.turns, session.commands) == (0, 0)


async def test_a_line_runs_once_whatever_the_attempts(platform: Any, shell: Shell) -> None:
    """EXE-7: boto3 tries again after 60 seconds without an answer, as while a session starts."""
    runtime_id, session_id = await platform.create(), _id()
    starting = asyncio.Event()
    platform.driver.behaviour.listen = starting.wait
    attempts = [asyncio.create_task(_run(platform, runtime_id, session_id, attempt_of="one request")) for _ in range(3)]
    while len(platform.driver.agents) < 1:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    starting.set()
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert [type(result) for result in results[:2]] == [RetryableConflictException] * 2
    assert shell.lines == ["line"]
    with pytest.raises(RetryableConflictException, match="run once"):
        await _run(platform, runtime_id, session_id, attempt_of="one request")
    other = await _run(platform, runtime_id, session_id, attempt_of="another request")
    assert shell.lines == ["line"] * 2
    for stream in (results[2], other):
        await stream.aclose()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"line": "a\0b"}, "body.command"),
        ({"line": "ü" * 65_536}, "body.command"),
        ({"timeout": 0}, "body.timeout"),
        ({"timeout": 3601}, "body.timeout"),
        ({"timeout": -1}, "body.timeout"),
    ],
)
async def test_what_no_shell_could_run_starts_no_session(platform: Any, body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationException) as refused:
        await _run(platform, await platform.create(), _id(), **body)
    assert [fault.name for fault in refused.value.fields] == [field]
    assert platform.driver.agents == []
