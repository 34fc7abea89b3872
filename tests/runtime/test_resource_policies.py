"""Resource policies over every operation on a runtime's sessions: the runtime's and the endpoint's both count, an
explicit deny wins, whoever the caller is (contract 1.7)."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.core.errors import (
    AccessDeniedException,
    ResourceNotFoundException,
    RuntimeClientError,
    ValidationException,
)

ARN = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/"
OLIVIA = "arn:aws:iam::123456789012:user/olivia"
ACCOUNT = "123456789012"
WEB_SOCKET = "InvokeAgentRuntimeWithWebSocketStream"


def _policy(resource: str, action: str, effect: str = "Deny", principal: Any = "*") -> dict[str, str]:
    """PutResourcePolicy's members; the endpoint written as the developer guide does, which the API does not."""
    statement = {
        "Effect": effect,
        "Principal": principal,
        "Action": f"bedrock-agentcore:{action}",
        "Resource": resource.replace("/runtime-endpoint/", "/endpoint/"),
    }
    return {"resourceArn": resource, "policy": json.dumps({"Version": "2012-10-17", "Statement": [statement]})}


def _agent(runtime_id: str, session_id: str, user: str | None = "alice") -> Caller:
    return Caller(
        CallerKind.SESSION,
        f"arn:aws:sts::{ACCOUNT}:assumed-role/{runtime_id}/{session_id}",
        "ASIASESSION",
        None if user is None else User(user),
        SessionRef(runtime_id, session_id),
    )


Operation = Callable[[Any, str, str], Awaitable[None]]


async def _invoke(platform: Any, runtime_id: str, session_id: str, **more: Any) -> None:
    (await platform.begin(runtime_id, session_id, **more)).end()


async def _invoke_for_user(platform: Any, runtime_id: str, session_id: str) -> None:
    await _invoke(platform, runtime_id, session_id, user_id="alice")


async def _web_socket(platform: Any, runtime_id: str, session_id: str) -> None:
    await _invoke(platform, runtime_id, session_id, operation=WEB_SOCKET)


async def _web_socket_for_user(platform: Any, runtime_id: str, session_id: str) -> None:
    await _invoke(platform, runtime_id, session_id, user_id="alice", operation=WEB_SOCKET)


async def _stop(platform: Any, runtime_id: str, session_id: str, **more: Any) -> None:
    request = {"agentRuntimeArn": ARN + runtime_id, "runtimeSessionId": session_id}
    await platform.call("stop_runtime_session", **request, **more)


async def _command(platform: Any, runtime_id: str, session_id: str, **more: Any) -> None:
    """Through: that no command can be run in what stands for an environment here comes after the policy."""
    request = {"agentRuntimeArn": ARN + runtime_id, "runtimeSessionId": session_id, "body": {"command": "true"}}
    with pytest.raises(RuntimeClientError):
        await platform.call("invoke_agent_runtime_command", **request, **more)


async def _card(platform: Any, runtime_id: str, session_id: str) -> None:
    """Through: that it is no A2A agent comes after the policy."""
    with pytest.raises(ValidationException, match="agent cards"):
        await platform.call("get_agent_card", agentRuntimeArn=ARN + runtime_id, runtimeSessionId=session_id)


#: An operation, the actions that a policy may deny it by, and one that it must not be denied by.
OPERATIONS: dict[str, tuple[Operation, tuple[str, ...], str]] = {
    "invoke": (_invoke, ("InvokeAgentRuntime",), "InvokeAgentRuntimeForUser"),
    "invoke for a user": (
        _invoke_for_user,
        ("InvokeAgentRuntime", "InvokeAgentRuntimeForUser"),
        "InvokeAgentRuntimeWithWebSocketStreamForUser",
    ),
    "WebSocket": (_web_socket, ("InvokeAgentRuntimeWithWebSocketStream",), "InvokeAgentRuntime"),
    "WebSocket for a user": (
        _web_socket_for_user,
        ("InvokeAgentRuntimeWithWebSocketStream", "InvokeAgentRuntimeWithWebSocketStreamForUser"),
        "InvokeAgentRuntimeForUser",
    ),
    "command": (_command, ("InvokeAgentRuntimeCommand",), "InvokeAgentRuntime"),
    "agent card": (_card, ("GetAgentCard",), "InvokeAgentRuntime"),
    "stop": (_stop, ("StopRuntimeSession",), "InvokeAgentRuntimeCommand"),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_deny_of_either_resource_holds(platform: Any, name: str) -> None:
    """IDN-5, GOV-4"""
    operation, actions, other = OPERATIONS[name]
    runtime_id = await platform.create()
    endpoint = f"{ARN}{runtime_id}/runtime-endpoint/DEFAULT"

    async def attempt() -> None:
        session_id = str(uuid.uuid4())
        if operation is _stop:
            await _invoke(platform, runtime_id, session_id)
        await operation(platform, runtime_id, session_id)

    for resource in (ARN + runtime_id, endpoint):
        for denied in (*actions, "*"):
            for principal in ("*", {"AWS": OLIVIA}, {"AWS": ACCOUNT}, {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}):
                if operation is _stop and denied == "*":
                    continue  # nothing could be invoked, to be stopped
                await platform.call("put_resource_policy", **_policy(resource, denied, principal=principal))
                with pytest.raises(AccessDeniedException, match="denied by its resource policy"):
                    await attempt()
        for allowed in (
            _policy(resource, actions[0], principal={"AWS": f"arn:aws:iam::{ACCOUNT}:user/somebody"}),
            _policy(resource, other),
            _policy(resource, "*", "Allow"),
        ):
            await platform.call("put_resource_policy", **allowed)
            await attempt()
        await platform.call("delete_resource_policy", resourceArn=resource)
    # A header does not make another operation of it.
    await platform.call("put_resource_policy", **_policy(endpoint, actions[0]))
    if operation is _invoke:
        with pytest.raises(AccessDeniedException):
            await _invoke(platform, runtime_id, str(uuid.uuid4()), headers={"upgrade": "websocket"})
    # An allow of the one does not outweigh a deny of the other.
    await platform.call("put_resource_policy", **_policy(ARN + runtime_id, "*", "Allow"))
    await platform.call("put_resource_policy", **_policy(endpoint, actions[0]))
    with pytest.raises(AccessDeniedException):
        await attempt()


@pytest.mark.parametrize("name", ["invoke", "WebSocket", "stop"])
async def test_a_deny_holds_for_users_tokens(platform: Any, provider: Any, name: str) -> None:
    """IDN-5: on runtimes with an authorizer policies name everyone."""
    _, (action, *_), _ = OPERATIONS[name]
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer)
    session_id, token = str(uuid.uuid4()), provider.token("alice")

    async def attempt() -> None:
        if name != "stop":
            operation = WEB_SOCKET if name == "WebSocket" else ""
            await _invoke(platform, runtime_id, session_id, bearer=token, operation=operation)
            return
        await _invoke(platform, runtime_id, session_id, bearer=token)
        labels = {"agentRuntimeArn": ARN + runtime_id}
        caller = await platform.plane.bearers.caller("StopRuntimeSession", labels, b"", token)
        await _stop(platform, runtime_id, session_id, caller=caller)

    await attempt()
    for resource in (ARN + runtime_id, f"{ARN}{runtime_id}/runtime-endpoint/DEFAULT"):
        await platform.call("put_resource_policy", **_policy(resource, action))
        for _ in range(2):
            with pytest.raises(AccessDeniedException, match="denied by its resource policy"):
                await attempt()
        await platform.call("delete_resource_policy", resourceArn=resource)
    await attempt()


async def test_a_deny_holds_for_an_agent_and_its_own_session(platform: Any) -> None:
    """GOV-4: by every name that an agent goes by."""
    runtime_id, session_id = await platform.create(), str(uuid.uuid4())
    await _invoke(platform, runtime_id, session_id, user_id="alice")
    caller = _agent(runtime_id, session_id)
    for principal in (
        {"AWS": "arn:aws:iam::123456789012:role/agents"},  # its roleArn
        {"AWS": f"arn:aws:iam::{ACCOUNT}:role/{runtime_id}"},
        {"AWS": caller.principal},
        "*",
    ):
        await platform.call(
            "put_resource_policy", **_policy(ARN + runtime_id, "StopRuntimeSession", principal=principal)
        )
        with pytest.raises(AccessDeniedException, match="denied by its resource policy"):
            await _stop(platform, runtime_id, session_id, caller=caller)
    await platform.call("delete_resource_policy", resourceArn=ARN + runtime_id)
    await _stop(platform, runtime_id, session_id, caller=caller)


async def test_a_stop_under_another_qualifier_is_denied_all_the_same(platform: Any) -> None:
    """What counts is the endpoint through which the session was opened, and the one that is named."""
    runtime_id, session_id = await platform.create(), str(uuid.uuid4())
    await platform.call("create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name="live")
    found: Any = {}
    while found.get("status") != "READY":
        await asyncio.sleep(0.01)
        found = await platform.call("get_agent_runtime_endpoint", agentRuntimeId=runtime_id, endpointName="live")
    await _invoke(platform, runtime_id, session_id, qualifier="live")
    denied = _policy(f"{ARN}{runtime_id}/runtime-endpoint/live", "StopRuntimeSession")
    await platform.call("put_resource_policy", **denied)
    for qualifier in ({}, {"qualifier": "DEFAULT"}, {"qualifier": "live"}, {"qualifier": "nothing"}):
        with pytest.raises(AccessDeniedException, match="denied by its resource policy"):
            await _stop(platform, runtime_id, session_id, **qualifier)
    await platform.call("delete_resource_policy", resourceArn=denied["resourceArn"])
    await _stop(platform, runtime_id, session_id, qualifier="live")
    with pytest.raises(ResourceNotFoundException):
        await _stop(platform, runtime_id, session_id)
