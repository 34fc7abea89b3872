"""InvokeAgentRuntimeCommand: a line that a session's shell runs, and what it writes, as a stream of events."""

from __future__ import annotations

import asyncio
import codecs
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson

from agentkeep.core.clock import Clock
from agentkeep.core.errors import FieldError, RetryableConflictException, RuntimeClientError, ServiceError
from agentkeep.runtime.agents.rules import invalid
from agentkeep.runtime.drivers.driver import Execution
from agentkeep.runtime.invocations.invocations import RuntimeInvocations
from agentkeep.runtime.invocations.session_turn import SessionTurn
from agentkeep.runtime.sessions.turn import InvocationRequest
from agentkeep.wire.eventstream import CONTENT_TYPE
from agentkeep.wire.types import bedrock_agentcore as data

__all__ = ["DEFAULT_TIMEOUT", "CommandEvents", "Commands", "RunningCommand"]

DEFAULT_TIMEOUT: Final = 300
_LONGEST_TIMEOUT: Final = 3600  # seconds; the model's documentation
_LONGEST_LINE: Final = (128 << 10) - 1  # bytes that Linux takes as one argument
_EVENT_LIMIT: Final = 60_000  # bytes of a text in an event, which may have 64 KiB with all that is around it
#: How long what has been written waits for its reader when the command has ended; its session is busy until then.
_LAST_READ: Final = 60.0
_PLATFORM_ERROR: Final = -1
_REMEMBERED: Final = 4096
#: Members of the output that tell the caller's own trace.
_TRACE: Final = ("traceId", "traceState", "baggage")


class Commands:
    """`most`: of one session, at a time."""

    def __init__(self, invocations: RuntimeInvocations, clock: Clock, most: int) -> None:
        self._invocations = invocations
        self._clock = clock
        self._most = most
        self._attempts = _Attempts()

    async def run(self, request: InvocationRequest, line: str, timeout: int) -> RunningCommand:
        """Starts the line in the session, found or made as for an invocation; its timeout, in seconds, begins when it
        does. Raises ServiceError."""
        _check(line, timeout)
        attempt = self._attempts.enter(request)
        turn = await self._invocations.begin_here(request)
        try:
            attempt.begin()
            turn.span.sent(line.encode())
            execution = await turn.execute(line, self._most)
        except BaseException as error:
            attempt.begun = False
            turn.end(error if isinstance(error, ServiceError) else None)
            raise
        turn.span.answered(200)
        return RunningCommand(turn, CommandEvents(turn, execution, self._clock, timeout))


def _check(line: str, timeout: int) -> None:
    faults = []
    if "\0" in line:
        faults.append(FieldError("body.command", "holds no NUL character"))
    if len(line.encode(errors="replace")) > _LONGEST_LINE:
        faults.append(FieldError("body.command", f"takes at most {_LONGEST_LINE} bytes in UTF-8"))
    if not 1 <= timeout <= _LONGEST_TIMEOUT:
        faults.append(FieldError("body.timeout", f"must be between 1 and {_LONGEST_TIMEOUT} seconds"))
    if faults:
        raise invalid(*faults)


@dataclass(frozen=True, slots=True)
class RunningCommand:
    turn: SessionTurn
    events: CommandEvents

    def answer(self, request: Mapping[str, Any]) -> data.InvokeAgentRuntimeCommandResponse:
        """The operation's output; whoever gets it closes its stream."""
        own = dict(self.turn.span.headers)
        output: dict[str, Any] = {name: request[name] for name in _TRACE if name in request}
        output |= {"traceParent": own[b"traceparent"].decode(), "runtimeSessionId": self.turn.session_id}
        output |= {"contentType": CONTENT_TYPE.decode(), "statusCode": 200, "stream": self.events}
        return cast(data.InvokeAgentRuntimeCommandResponse, output)


class CommandEvents:
    """contentStart, a contentDelta for each piece as it comes, contentStop. The command is ended at its timeout, and
    when the stream is closed; the session is busy until then."""

    def __init__(self, turn: SessionTurn, execution: Execution, clock: Clock, timeout: float) -> None:
        self._turn = turn
        self._execution = execution
        self._clock = clock
        self._decoders = {error: codecs.getincrementaldecoder("utf-8")("replace") for error in (False, True)}
        self._events: deque[dict[str, Any]] = deque([{"contentStart": {}}])
        self._timed_out = False
        self._stopped = False
        self._failure: ServiceError | None = None
        self._closing: asyncio.Task[None] | None = None
        self._watching = asyncio.create_task(self._watch(timeout), name=f"command in {turn.session_id}")

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while not self._events:
            if self._stopped:
                await self.aclose()
                raise StopAsyncIteration
            if self._closing is not None:
                raise RuntimeClientError(f"The command's output was not read within {_LAST_READ:g} s of its end.")
            await self._read()
        return {"chunk": self._events.popleft()}

    async def _read(self) -> None:
        piece = await self._execution.read()
        if piece is not None:
            self._turn.span.received(piece.data)
            self._add(piece.error, self._decoders[piece.error].decode(piece.data))
            return
        code = await self._execution.wait()
        if not self._turn.lives:
            self._failure = RuntimeClientError("The session ended before the command did.")
            raise self._failure
        for error, decoder in self._decoders.items():
            self._add(error, decoder.decode(b"", final=True))
        status = "TIMED_OUT" if self._timed_out else "COMPLETED"
        code = _PLATFORM_ERROR if code is None else code
        self._turn.span.note({"agentkeep.command.exit_code": code, "agentkeep.command.status": status})
        self._events.append({"contentStop": {"exitCode": code, "status": status}})
        self._stopped = True

    def _add(self, error: bool, text: str) -> None:
        name = "stderr" if error else "stdout"
        self._events.extend({"contentDelta": {name: part}} for part in _parts(text))

    async def _watch(self, timeout: float) -> None:
        ending = asyncio.ensure_future(self._execution.wait())
        timer = asyncio.ensure_future(self._clock.sleep(timeout))
        try:
            await asyncio.wait([ending, timer], return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                self._timed_out = True
                await self._execution.kill()
                await ending
            await self._clock.sleep(_LAST_READ)
        finally:
            ending.cancel()
            timer.cancel()
        self._close()

    async def aclose(self) -> None:
        """Ends the command, if it runs. Safe to call more than once."""
        self._watching.cancel()
        await asyncio.shield(self._close())

    def _close(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._closing = asyncio.create_task(self._end(), name=f"end of a command in {self._turn.session_id}")
        return self._closing

    async def _end(self) -> None:
        try:
            await self._turn.end_command(self._execution)
        finally:
            self._turn.end(self._failure)


def _parts(text: str) -> list[str]:
    """Of a text, each short enough for an event as JSON has it: a control character takes six bytes there."""
    if not text:
        return []
    if len(text) * 6 <= _EVENT_LIMIT or len(orjson.dumps(text)) <= _EVENT_LIMIT:
        return [text]
    half = len(text) // 2
    return _parts(text[:half]) + _parts(text[half:])


class _Attempts:
    """Of one request a client may make several attempts (`amz-sdk-invocation-id`): the next when the answer to one is
    late, as while a session starts. A line runs once: an attempt that has not begun it gives way to the next, and once
    it has been begun no other does."""

    def __init__(self) -> None:
        self._newest: OrderedDict[_Key, _Attempt] = OrderedDict()

    def enter(self, request: InvocationRequest) -> _Attempt:
        """Raises RetryableConflictException if an earlier attempt has begun."""
        attempt = _Attempt()
        if request.invocation_id is None or request.session_id is None:
            return attempt
        who = request.bearer if request.caller is None else request.caller.principal
        key = (request.runtime, request.session_id, who or "", request.invocation_id)
        if (before := self._newest.get(key)) is not None:
            if before.begun:
                raise _again()
            before.replaced = True
        self._newest[key] = attempt
        if len(self._newest) > _REMEMBERED:
            self._newest.popitem(last=False)
        return attempt


_Key = tuple[str, str, str, str]


@dataclass(eq=False, slots=True)
class _Attempt:
    begun: bool = False
    replaced: bool = False  # by a newer one

    def begin(self) -> None:
        """Raises RetryableConflictException if there is a newer one."""
        if self.replaced:
            raise _again()
        self.begun = True


def _again() -> RetryableConflictException:
    return RetryableConflictException("Another attempt of this request runs the command; it is run once.")
