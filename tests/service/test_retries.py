"""A client that gives up waiting and asks again gets the answer of the turn it began (contract 1.8)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from botocore.credentials import Credentials
from service_stack import RUNTIME, SESSION_ID, Stack, status

INVOCATION = "6f1f9e0e-3e55-4fd9-9ea4-7f0d9d0f1b11"


def attempt(stack: Stack, number: int, body: bytes, greatest: int = 3, **options: Any) -> bytes:
    headers = {"amz-sdk-invocation-id": INVOCATION, "amz-sdk-request": f"attempt={number}; max={greatest}"}
    return stack.signed(body, headers=headers, **options)


async def test_boto3_with_a_short_read_timeout(stack: Stack) -> None:
    """The agent takes longer than boto3 waits: it works once, and boto3 gets the answer."""

    def call() -> bytes:
        client = stack.client(read_timeout=1, retries={"total_max_attempts": 6, "mode": "standard"})
        answer: bytes = client.invoke_agent_runtime(agentRuntimeArn=RUNTIME, payload=b"sleep 3")["response"].read()
        return answer

    assert await asyncio.to_thread(call) == b'{"n":7}'
    assert len(stack.agent.received) == 1


async def test_a_retry_while_the_session_is_made(stack: Stack) -> None:
    stack.sessions.start_seconds = 0.3
    await stack.raw(attempt(stack, 1, b"hi"), wait=0.1)
    assert b'{"n":2}' in await stack.raw(attempt(stack, 2, b"hi"))
    assert len(stack.sessions.turns) == 1


async def test_a_retry_after_the_answer(stack: Stack) -> None:
    """The answer came when nobody was there: it waits. It also waits where it may have been lost on its way."""
    await stack.raw(attempt(stack, 1, b"sleep 0.2"), wait=0.1)
    await asyncio.sleep(0.3)
    assert b'{"n":9}' in await stack.raw(attempt(stack, 2, b"sleep 0.2"))
    assert b'{"n":9}' in await stack.raw(attempt(stack, 3, b"sleep 0.2"))
    assert len(stack.agent.received) == 1


async def test_an_answer_is_not_kept_once_it_is_known_to_have_come(stack: Stack) -> None:
    """The next request on the same connection shows it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    writer.write(attempt(stack, 1, b"hi"))
    await reader.readuntil(b'{"n":2}')
    writer.write(stack.signed(b"other"))
    await reader.readuntil(b'{"n":5}')
    writer.close()
    await stack.raw(attempt(stack, 2, b"hi"))
    assert len(stack.agent.received) == 3


async def test_a_retry_takes_over_from_a_connection_that_hangs(stack: Stack) -> None:
    """The client's old connection need not have been seen to end."""
    old = asyncio.create_task(stack.raw(attempt(stack, 1, b"wait")))
    while not stack.agent.received:
        await asyncio.sleep(0.01)
    new = asyncio.create_task(stack.raw(attempt(stack, 2, b"wait")))
    assert await old in (b"", b"<reset>")
    stack.agent.go_on.set()
    assert b'{"n":4}' in await new
    assert len(stack.agent.received) == 1


async def test_a_large_retry(stack: Stack) -> None:
    """Its body is compared by digest, and goes nowhere."""
    body = b"wait " + b"x" * 1_000_000
    await stack.raw(attempt(stack, 1, body), wait=0.3)
    new = asyncio.create_task(stack.raw(attempt(stack, 2, body)))
    await asyncio.sleep(0.1)
    stack.agent.go_on.set()
    assert b'{"n":1000005}' in await new
    assert len(stack.agent.received) == 1


async def test_another_payload_is_no_retry(stack: Stack) -> None:
    await stack.raw(attempt(stack, 1, b"sleep 0.3"), wait=0.1)
    for body in (b"something else", b"x" * 1_000_000):
        answer = await stack.raw(attempt(stack, 2, body))
        assert status(answer) == 400
        assert b"IdempotentParameterMismatchException" in answer
    assert len(stack.agent.received) == 1


async def test_nobody_else_gets_the_answer(stack: Stack) -> None:
    """Neither another caller, nor another session, nor a first attempt."""
    await stack.raw(attempt(stack, 1, b"sleep 0.3"), wait=0.1)
    other = await stack.keys.issue_operator_key("other")
    await stack.raw(attempt(stack, 2, b"sleep 0.3", credentials=Credentials(other.id, other.secret)))
    await stack.raw(attempt(stack, 2, b"sleep 0.3", session_id="another-" + "0" * 32))
    await stack.raw(attempt(stack, 1, b"sleep 0.3"))
    assert len(stack.agent.received) == 4


@pytest.mark.parametrize("request_of", ["last", "plain"])
async def test_a_client_that_will_not_retry_ends_the_turn(stack: Stack, request_of: str) -> None:
    request = attempt(stack, 3, b"sleep 30") if request_of == "last" else stack.signed(b"sleep 30")
    await stack.raw(request, wait=0.1)
    await asyncio.wait_for(stack.agent.left.wait(), 2)


async def test_an_answer_that_began_is_given_up_with_its_client(stack: Stack) -> None:
    await stack.raw(attempt(stack, 1, b"hang"), wait=0.2)
    await asyncio.wait_for(stack.agent.left.wait(), 2)


async def test_an_awaited_retry_that_never_comes(make_stack: Any) -> None:
    stack = await make_stack(retry_grace=0.3, sweep_seconds=0.05)
    await stack.raw(attempt(stack, 1, b"sleep 30"), wait=0.1)
    await asyncio.wait_for(stack.agent.left.wait(), 3)
    await stack.raw(attempt(stack, 1, b"hi", session_id="another-" + "0" * 32))
    await asyncio.sleep(0.6)
    assert not stack.route.pump.runs._by_key
    assert not stack.route.pump.runs._kept


async def test_failures(stack: Stack) -> None:
    """An agent that failed once is told of, not asked again; a refusal before it worked is asked again."""
    await stack.raw(attempt(stack, 1, b"wait"), wait=0.1)
    for task in stack.agent._tasks:
        task.cancel()
    await asyncio.sleep(0.1)
    assert status(await stack.raw(attempt(stack, 2, b"wait"))) == 424
    assert len(stack.agent.received) == 1
    # The client has heard of it: what it asks now is asked anew.
    stack.agent.go_on.set()
    assert status(await stack.raw(attempt(stack, 3, b"wait"))) == 200


async def test_kept_answers_are_bounded(make_stack: Any) -> None:
    stack = await make_stack(kept_answer=1000, kept_answers=5000)
    await stack.raw(attempt(stack, 1, b"flood 1"))
    await stack.raw(attempt(stack, 2, b"flood 1"))
    assert len(stack.agent.received) == 2, "too large to keep"
    for number in range(20):
        await stack.raw(attempt(stack, 1, b"hi", session_id=f"kept-{number}-" + "0" * 32))
    assert len(stack.route.pump.runs._kept) <= 4
    assert stack.route.pump.runs._kept_size <= 5000
    assert len(stack.route.pump.runs._by_key) <= 4


async def test_a_detached_answer_is_bounded(make_stack: Any) -> None:
    """An agent that streams without end to nobody is stopped until the retry comes, then goes on."""
    stack = await make_stack(kept_answer=200_000)
    stack.sessions.start_seconds = 0.2
    await stack.raw(attempt(stack, 1, b"flood 200"), wait=0.05)
    await asyncio.sleep(0.8)
    (run,) = stack.route.pump.runs._active
    assert run.recorded_size < 2_000_000
    answer = await stack.raw(attempt(stack, 2, b"flood 200"))
    assert answer.count(b"x") > 200 * 65536
    assert answer.endswith(b"0\r\n\r\n<open>")


async def test_session_ids_of_boto3_are_stable_over_attempts(stack: Stack) -> None:
    """What makes retries recognisable: boto3 fills in a session id once per call."""
    await stack.raw(attempt(stack, 1, b"hi"))
    assert stack.sessions.requests[0].session_id == SESSION_ID
    assert stack.sessions.requests[0].invocation_id == INVOCATION
