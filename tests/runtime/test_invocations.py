"""Who may invoke, what reaches the agent, what comes back."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest
from aiohttp import web

from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.core.errors import (
    AccessDeniedException,
    ResourceNotFoundException,
    RuntimeClientError,
    UnauthorizedException,
    ValidationException,
)

from .conftest import OPERATOR

ARN = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/"


def _id() -> str:
    return str(uuid.uuid4())


def _agent(runtime_id: str, user: str | None, session_id: str | None = None) -> Caller:
    session_id = session_id or _id()
    return Caller(
        CallerKind.SESSION,
        f"arn:aws:sts::123456789012:assumed-role/{runtime_id}/{session_id}",
        "ASIASESSION",
        None if user is None else User(user),
        SessionRef(runtime_id, session_id),
    )


def _headers(turn: Any) -> dict[str, str]:
    headers = [(name.decode(), value.decode("latin-1")) for name, value in turn.headers]
    assert len({name for name, _ in headers}) == len(headers), "a header was sent twice"
    return dict(headers)


# Operators who name users.


async def test_an_operator_names_a_user_by_a_key_for_it_and_on_record(platform: Any) -> None:
    """IDN-2: without the right nothing begins; each further invocation is counted, not waited for."""
    runtime_id, session_id = await platform.create(), _id()
    plain = Caller(CallerKind.OPERATOR, "arn:aws:iam::123456789012:user/plain", "AKIAPLAIN")
    with pytest.raises(AccessDeniedException, match="agentkeep keys create NAME --acts-for-users"):
        await platform.begin(runtime_id, session_id, user_id="alice", caller=plain)
    (await platform.begin(runtime_id, _id(), user_id=None, caller=plain)).end()  # for nobody he may
    (await platform.begin(runtime_id, session_id, user_id="alice")).end()
    acting = platform.plane._parts.acting
    known = ("InvokeAgentRuntime", f"runtime {runtime_id}")
    assert acting.admitted(OPERATOR, *known, "alice")
    assert not acting.admitted(OPERATOR, *known, "bob")


# Tokens.


async def test_a_token_runtime_takes_tokens_only(platform: Any, provider: Any) -> None:
    """IDN-5. The user is the token's; SigV4 callers are refused, operators too."""
    runtime_id, session_id = await platform.create(authorizerConfiguration=provider.authorizer), _id()
    turn = await platform.begin(runtime_id, session_id, bearer=provider.token("alice"))
    assert platform.plane._parts.sessions.live(SessionRef(runtime_id, session_id)).user == User("alice", provider.url)
    turn.end()
    for caller in (None, _agent("other-0000000000", "alice")):
        request = {"caller": caller} if caller else {}
        with pytest.raises(AccessDeniedException, match="token"):
            await platform.begin(runtime_id, session_id, user_id=None, **request)
    with pytest.raises(AccessDeniedException, match="another user"):
        await platform.begin(runtime_id, session_id, bearer=provider.token("bob"))
    # The header names nobody where a token does.
    (await platform.begin(runtime_id, session_id, bearer=provider.token("alice"), user_id="bob")).end()


@pytest.mark.parametrize("bearer", ["", "rubbish", "a.b.c"])
async def test_a_missing_or_bad_token_gets_the_challenge(platform: Any, provider: Any, bearer: str) -> None:
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer)
    with pytest.raises(UnauthorizedException) as refused:
        await platform.begin(runtime_id, _id(), bearer=bearer)
    quoted = (ARN + runtime_id).replace(":", "%3A").replace("/", "%2F")
    assert refused.value.challenge == (
        f'Bearer resource_metadata="http://127.0.0.1:4780/runtimes/{quoted}/invocations/.well-known/'
        'oauth-protected-resource?qualifier=DEFAULT"'
    )
    assert platform.driver.agents == []


async def test_tokens_that_do_not_pass(platform: Any, provider: Any, clock: Any) -> None:
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer)
    with pytest.raises(AccessDeniedException):
        await platform.begin(runtime_id, _id(), bearer=provider.token("alice", aud="else"))
    expired = provider.token("alice", exp=int(clock.now().timestamp()) - 3600)
    with pytest.raises(UnauthorizedException):
        await platform.begin(runtime_id, _id(), bearer=expired)


async def test_who_is_not_known_learns_of_no_runtime(platform: Any, provider: Any) -> None:
    """A token for a runtime that takes none, and for one that is not there: the same answer."""
    runtime_id = await platform.create()
    answers = []
    for name in (runtime_id, "nothing-0000000000"):
        with pytest.raises(AccessDeniedException) as refused:
            await platform.begin(name, _id(), bearer=provider.token("alice"))
        answers.append(refused.value.message)
    assert answers[0] == answers[1]


async def test_the_same_name_from_another_issuer_is_another_user(platform: Any, provider: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    (await platform.begin(runtime_id, session_id, user_id="alice")).end()
    await platform.call(
        "update_agent_runtime",
        agentRuntimeId=runtime_id,
        **platform.definition(authorizerConfiguration=provider.authorizer),
    )
    await platform.ready(runtime_id)
    with pytest.raises(AccessDeniedException, match="another user"):
        await platform.begin(runtime_id, session_id, bearer=provider.token("alice"))


# Agents calling agents.


def _allow(arn: str, principal: Any, effect: str = "Allow", action: str = "InvokeAgentRuntime") -> dict[str, str]:
    statement = {
        "Effect": effect,
        "Principal": principal,
        "Action": f"bedrock-agentcore:{action}",
        "Resource": arn,
    }
    return {"resourceArn": arn, "policy": json.dumps({"Version": "2012-10-17", "Statement": [statement]})}


async def test_agents_invoke_only_where_allowed_and_as_their_own_user(platform: Any) -> None:
    """IDN-2, GOV-4. Least privilege: nothing, until the other's resource policy says so; then the user goes along."""
    caller_id, runtime_id = await platform.create("caller"), await platform.create("target")
    arn, session_id = ARN + runtime_id, _id()
    with pytest.raises(AccessDeniedException, match="resource policy allows it"):
        await platform.begin(runtime_id, session_id, caller=_agent(caller_id, "alice"))
    for principal in (
        {"AWS": "arn:aws:iam::123456789012:role/agents"},  # the caller's roleArn
        {"AWS": f"arn:aws:iam::123456789012:role/{caller_id}"},
        {"AWS": ["999999999999", "123456789012"]},
        "*",
    ):
        await platform.call("put_resource_policy", **_allow(arn, principal))
        (await platform.begin(runtime_id, session_id, caller=_agent(caller_id, "alice"))).end()
    assert platform.plane._parts.sessions.live(SessionRef(runtime_id, session_id)).user == User("alice")
    with pytest.raises(AccessDeniedException, match="cannot name another"):
        await platform.begin(runtime_id, session_id, caller=_agent(caller_id, "alice"), user_id="bob")
    with pytest.raises(AccessDeniedException, match="another user"):
        await platform.begin(runtime_id, session_id, caller=_agent(caller_id, "bob"))
    with pytest.raises(AccessDeniedException, match="no user"):
        await platform.begin(runtime_id, _id(), caller=_agent(caller_id, None))
    await platform.call("put_resource_policy", **_allow(arn, {"AWS": "arn:aws:iam::123456789012:role/else"}))
    with pytest.raises(AccessDeniedException):
        await platform.begin(runtime_id, session_id, caller=_agent(caller_id, "alice"))


async def test_a_deny_holds_for_operators_and_on_the_warm_path(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    arn = ARN + runtime_id
    (await platform.begin(runtime_id, session_id)).end()
    for denied in (
        _allow(arn, {"AWS": "arn:aws:iam::123456789012:user/olivia"}, "Deny"),
        _allow(f"{arn}/runtime-endpoint/DEFAULT", "*", "Deny", "Invoke*"),
    ):
        await platform.call("put_resource_policy", **denied)
        for _ in range(2):
            with pytest.raises(AccessDeniedException, match="denied by its resource policy"):
                await platform.begin(runtime_id, session_id)
        await platform.call("delete_resource_policy", resourceArn=denied["resourceArn"])
        (await platform.begin(runtime_id, session_id)).end()
    # A WebSocket, and naming a user, are actions of their own.
    await platform.call("put_resource_policy", **_allow(arn, "*", "Deny", "InvokeAgentRuntimeWithWebSocketStream"))
    (await platform.begin(runtime_id, session_id)).end()
    with pytest.raises(AccessDeniedException):
        await platform.begin(runtime_id, session_id, operation="InvokeAgentRuntimeWithWebSocketStream")
    await platform.call("put_resource_policy", **_allow(arn, "*", "Deny", "InvokeAgentRuntimeForUser"))
    (await platform.begin(runtime_id, session_id)).end()
    with pytest.raises(AccessDeniedException):
        await platform.begin(runtime_id, _id(), user_id="alice")


async def test_who_may_stop(platform: Any, provider: Any) -> None:
    runtime_id, session_id = await platform.create(authorizerConfiguration=provider.authorizer), _id()
    (await platform.begin(runtime_id, session_id, bearer=provider.token("alice"))).end()
    stop = {"agentRuntimeArn": ARN + runtime_id, "runtimeSessionId": session_id}
    for user in ("bob", "alice"):
        with pytest.raises(AccessDeniedException, match="no session but its own"):
            await platform.call("stop_runtime_session", caller=_agent(runtime_id, user), **stop)

    async def by_token(token: str) -> None:
        labels = {"agentRuntimeArn": ARN + runtime_id}
        caller = await platform.plane.bearers.caller("StopRuntimeSession", labels, b"qualifier=DEFAULT", token)
        assert caller.kind is CallerKind.USER
        await platform.call("stop_runtime_session", caller=caller, **stop)

    with pytest.raises(AccessDeniedException, match="another user"):
        await by_token(provider.token("bob"))
    with pytest.raises(UnauthorizedException):
        await by_token("rubbish")
    await by_token(provider.token("alice"))
    with pytest.raises(ResourceNotFoundException):
        await by_token(provider.token("alice"))
    with pytest.raises(AccessDeniedException, match="another user"):
        await by_token(provider.token("bob"))
    (await platform.begin(runtime_id, session_id, bearer=provider.token("alice"))).end()
    await platform.call("stop_runtime_session", caller=_agent(runtime_id, "alice", session_id), **stop)


# What reaches the agent.


@pytest.mark.parametrize(
    ("sent", "trace_id"),
    [
        ({}, None),
        ({"traceparent": "00-abc", "tracestate": "vendor=1"}, None),
        ({"traceparent": f"00-{'0' * 32}-{'cd' * 8}-01"}, None),
        ({"traceparent": f"00-{'AB' * 16}-{'cd' * 8}-01"}, None),
        ({"x-amzn-trace-id": f"Root=1-{'5' * 8}-{'6' * 24};Parent={'7' * 16};Sampled=1"}, "5" * 8 + "6" * 24),
        ({"x-amzn-trace-id": f"Root=1-{'5' * 8}-{'6' * 24}"}, None),
    ],
)
async def test_a_trace_begins_where_the_caller_has_none(
    platform: Any, sent: dict[str, str], trace_id: str | None
) -> None:
    """OBS-1: the agent always has a span of the platform's to be a child of."""
    turn = await platform.begin(await platform.create(), _id(), headers=sent)
    headers = _headers(turn)
    _, begun, _, _ = headers["traceparent"].split("-")
    assert begun == trace_id if trace_id is not None else begun not in str(sent)
    assert "tracestate" not in headers


async def test_headers(platform: Any) -> None:
    runtime_id = await platform.create(
        requestHeaderConfiguration={
            "requestHeaderAllowlist": ["X-Tenant", "X-Amzn-Bedrock-AgentCore-Runtime-Custom-Color"]
        }
    )
    session_id = _id()
    sent = {
        "host": "platform",
        "authorization": "AWS4-HMAC-SHA256 Credential=...",
        "x-amz-date": "20260101T000000Z",
        "cookie": "secret",
        "user-agent": "boto3",
        "content-type": "text/plain",
        "accept": "text/event-stream",
        "x-tenant": "blue",
        "x-other": "dropped",
        "x-amzn-bedrock-agentcore-runtime-custom-color": "green",
        "x-amzn-bedrock-agentcore-runtime-custom-size": "not on the list",
        "x-amzn-bedrock-agentcore-runtime-user-id": "alice",
        "x-amzn-bedrock-agentcore-runtime-session-id": "forged",
        "x-amz-bedrock-agentcore-identity-wat": "forged",
        "workloadaccesstoken": "forged",
        "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-00",
        "tracestate": "vendor=1",
        "x-amzn-trace-id": "Root=1",
        "mcp-session-id": "m1",
        "baggage": "a=b,session.id=forged",
    }
    turn = await platform.begin(runtime_id, session_id, user_id="alice", headers=sent)
    headers = _headers(turn)
    token = headers.pop("workloadaccesstoken")
    assert headers.pop("x-amz-bedrock-agentcore-identity-wat") == token != "forged"
    assert headers.pop("x-amzn-bedrock-agentcore-runtime-request-id")
    # OBS-1: the caller's trace goes on, in a span of the platform's own; sampled, whatever the caller says.
    version, trace_id, span_id, flags = headers.pop("traceparent").split("-")
    assert (version, trace_id, flags) == ("00", "ab" * 16, "01")
    assert span_id != "cd" * 8
    assert headers == {
        "content-type": "text/plain",
        "accept": "text/event-stream",
        "x-amzn-bedrock-agentcore-runtime-session-id": session_id,
        "x-tenant": "blue",
        "x-amzn-bedrock-agentcore-runtime-custom-color": "green",
        "tracestate": "vendor=1",
        "x-amzn-trace-id": "Root=1",
        "mcp-session-id": "m1",
        "baggage": f"a=b,session.id={session_id}",
    }


async def test_no_user_no_token(platform: Any) -> None:
    """IDN-2, contract 4.3: SigV4 without a user id carries no workload access token."""
    headers = _headers(await platform.begin(await platform.create(), _id()))
    assert "workloadaccesstoken" not in headers
    assert headers["content-type"] == "application/json"


async def test_the_users_token_reaches_the_agent_only_where_allowed(platform: Any, provider: Any) -> None:
    for allowed in (True, False):
        allow = {"requestHeaderConfiguration": {"requestHeaderAllowlist": ["Authorization"]}} if allowed else {}
        runtime_id = await platform.create(f"a{int(allowed)}", authorizerConfiguration=provider.authorizer, **allow)
        token, session_id = provider.token("alice"), _id()
        sent = {"authorization": f"Bearer {token}"}
        for _ in range(2):
            headers = _headers(await platform.begin(runtime_id, session_id, bearer=token, headers=sent))
            assert headers.get("authorization") == (f"Bearer {token}" if allowed else None)
            assert headers["workloadaccesstoken"]


async def test_workload_tokens_are_shared_by_turns_for_a_while(platform: Any, clock: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    first = _headers(await platform.begin(runtime_id, session_id, user_id="alice"))
    second = _headers(await platform.begin(runtime_id, session_id, user_id="alice"))
    assert first["workloadaccesstoken"] == second["workloadaccesstoken"]
    await clock.move(301)
    third = _headers(await platform.begin(runtime_id, session_id, user_id="alice"))
    assert third["workloadaccesstoken"] != first["workloadaccesstoken"]


async def test_a_new_user_token_makes_a_new_workload_token(platform: Any, provider: Any) -> None:
    """The workload token carries the user's; the one of an earlier turn may have expired meanwhile."""
    runtime_id, session_id = await platform.create(authorizerConfiguration=provider.authorizer), _id()
    tokens = [provider.token("alice", jti="1"), provider.token("alice", jti="2")]
    seen = [_headers(await platform.begin(runtime_id, session_id, bearer=t))["workloadaccesstoken"] for t in tokens]
    assert seen[0] != seen[1]


@pytest.mark.parametrize("user_id", ["", "x" * 1025])
async def test_user_ids_are_bounded(platform: Any, user_id: str) -> None:
    runtime_id = await platform.create()
    with pytest.raises(ValidationException, match="runtimeUserId"):
        await platform.begin(runtime_id, _id(), user_id=user_id)


# The operation, in-process.


async def test_the_operation_streams(platform: Any) -> None:
    runtime_id = await platform.create()
    gate = asyncio.Event()

    async def answer(agent: Any, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "Mcp-Session-Id": "m"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await gate.wait()
        await response.write(b"data: 2\n\n")
        return response

    platform.driver.behaviour.answer = answer
    output = await platform.call(
        "invoke_agent_runtime",
        agentRuntimeArn=runtime_id,
        payload=b'{"prompt": "hi"}',
        contentType="application/json",
        traceParent=f"00-{'ab' * 16}-{'cd' * 8}-01",
    )
    assert output["contentType"] == "text/event-stream"
    assert output["mcpSessionId"] == "m"
    assert output["traceParent"].startswith(f"00-{'ab' * 16}-")
    session = platform.plane._parts.sessions.live(SessionRef(runtime_id, output["runtimeSessionId"]))
    pieces = aiter(output["response"])
    assert await anext(pieces) == b"data: 1\n\n"
    assert session.turns == 1
    gate.set()
    assert b"".join([piece async for piece in pieces]) == b"data: 2\n\n"
    assert session.turns == 0
    assert platform.driver.agents[0].requests[0]["body"] == b'{"prompt": "hi"}'


async def test_the_operation_may_be_given_up(platform: Any) -> None:
    runtime_id = await platform.create()
    output = await platform.call("invoke_agent_runtime", agentRuntimeArn=runtime_id, payload=b"{}")
    await output["response"].aclose()
    session = platform.plane._parts.sessions.live(SessionRef(runtime_id, output["runtimeSessionId"]))
    assert session.turns == 0


async def test_an_agents_error_is_424(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()

    async def answer(agent: Any, request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "boom"}, status=500)

    platform.driver.behaviour.answer = answer
    with pytest.raises(RuntimeClientError, match=r"Received error \(500\) from runtime"):
        await platform.call(
            "invoke_agent_runtime", agentRuntimeArn=runtime_id, runtimeSessionId=session_id, payload=b"{}"
        )

    async def cut(agent: Any, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    platform.driver.agents[0].behaviour.answer = cut
    with pytest.raises(RuntimeClientError, match="closed the connection"):
        await platform.call(
            "invoke_agent_runtime", agentRuntimeArn=runtime_id, runtimeSessionId=session_id, payload=b"{}"
        )
    assert platform.plane._parts.sessions.live(SessionRef(runtime_id, session_id)).turns == 0
