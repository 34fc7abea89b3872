"""InvokeAgentRuntime as an operation like the others, for callers in this process (the backend seam); clients of the
HTTP endpoint are served by the pump, over the same turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, cast

import orjson

from agentkeep.core.call import Call, CallerKind
from agentkeep.core.errors import RuntimeClientError
from agentkeep.runtime.environments.exchange import AgentAnswer, AgentProtocolError, request
from agentkeep.runtime.invocations.headers import SESSION_HEADER, USER_HEADER
from agentkeep.runtime.invocations.invocations import RuntimeInvocations
from agentkeep.runtime.invocations.session_turn import SessionTurn
from agentkeep.runtime.records import DEFAULT_ENDPOINT
from agentkeep.runtime.sessions.turn import InvocationRequest
from agentkeep.wire.types import bedrock_agentcore as data

__all__ = ["AnswerStream", "agent_card", "invocation_request", "invoke"]

#: Where an A2A agent has its card, whatever the path of its messages (guide, "runtime-a2a-protocol-contract").
CARD_PATH: Final = "/.well-known/agent-card.json"
CARD_LIMIT: Final = 1 << 20

#: Members of the operation's input and output that are headers.
_SENT: Final = {
    "contentType": "content-type",
    "accept": "accept",
    "mcpSessionId": "mcp-session-id",
    "mcpProtocolVersion": "mcp-protocol-version",
    "mcpMethod": "mcp-method",
    "mcpName": "mcp-name",
    "traceId": "x-amzn-trace-id",
    "traceParent": "traceparent",
    "traceState": "tracestate",
    "baggage": "baggage",
}
_RETURNED: Final = {
    "contentType": "content-type",
    "mcpSessionId": "mcp-session-id",
    "mcpProtocolVersion": "mcp-protocol-version",
    "traceId": "x-amzn-trace-id",
    "traceParent": "traceparent",
    "traceState": "tracestate",
    "baggage": "baggage",
}


class AnswerStream:
    """The agent's answer, piece by piece. The session is busy until it has been read to its end or closed."""

    def __init__(self, answer: AgentAnswer, held: AsyncExitStack) -> None:
        self._answer = answer
        self._held = held

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._answer:
                yield piece
        except (AgentProtocolError, OSError):
            raise RuntimeClientError("The agent's answer was cut short.") from None
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        await self._held.aclose()


async def invoke(
    invocations: RuntimeInvocations, call: Call, document: Mapping[str, Any]
) -> data.InvokeAgentRuntimeResponse:
    """The operation's output; `response` is an `AnswerStream`. Raises ServiceError."""
    turn = await invocations.begin_here(invocation_request(call, document))
    async with AsyncExitStack() as held:
        held.callback(turn.end)
        answer = await _exchange(held, turn, "POST", turn.path, document.get("payload", b""))
        headers = dict(answer.headers)
        if turn.mcp is not None and answer.status < 400:
            given = headers.setdefault("mcp-session-id", turn.mcp.session_id)
            if not turn.mcp.knows(given):
                await turn.mcp.bind(given)
        if "traceparent" not in headers:
            headers = {name.decode(): value.decode("latin-1") for name, value in turn.span.headers} | headers
        output: dict[str, Any] = {name: headers[header] for name, header in _RETURNED.items() if header in headers}
        output.setdefault("contentType", "application/json")
        output |= {"runtimeSessionId": turn.session_id, "statusCode": answer.status}
        output["response"] = AnswerStream(answer, held.pop_all())
        return cast(data.InvokeAgentRuntimeResponse, output)


async def agent_card(
    invocations: RuntimeInvocations, call: Call, document: Mapping[str, Any]
) -> data.GetAgentCardResponse:
    """What the session's agent says of itself. Raises ServiceError."""
    turn = await invocations.begin_here(invocation_request(call, document, call.operation))
    async with AsyncExitStack() as held:
        held.callback(turn.end)
        answer = await _exchange(held, turn, "GET", CARD_PATH, b"")
        try:
            card = orjson.loads(await answer.read(CARD_LIMIT))
        except (AgentProtocolError, OSError, orjson.JSONDecodeError) as error:
            raise RuntimeClientError(f"The agent's card cannot be read: {error}") from None
        if not isinstance(card, dict):
            raise RuntimeClientError("The agent's card is not a JSON object")
        return {"runtimeSessionId": turn.session_id, "agentCard": card, "statusCode": 200}


async def _exchange(held: AsyncExitStack, turn: SessionTurn, method: str, path: str, payload: bytes) -> AgentAnswer:
    connection = await turn.connect()
    try:
        answer = await held.enter_async_context(request(connection, method, path, turn.headers, payload))
    except (AgentProtocolError, OSError):
        raise RuntimeClientError(
            f"The agent closed the connection before it answered. Its output: agentkeep logs {turn.session_id}"
        ) from None
    turn.span.answered(answer.status)
    if answer.status >= 400:
        raise RuntimeClientError(
            f"Received error ({answer.status}) from runtime. Please check your CloudWatch logs for more information. "
            f"(agentkeep logs {turn.session_id})"
        )
    return answer


def invocation_request(call: Call, document: Mapping[str, Any], operation: str = "") -> InvocationRequest:
    """Of an operation on a session. One that does not model the user's header is told the user by it nevertheless."""
    headers = {name: value for name, value in call.headers.items() if name != SESSION_HEADER}
    headers |= {header: document[name] for name, header in _SENT.items() if name in document}
    authorization = call.headers.get("authorization", "")
    # Who comes with a token is whom the runtime's authorizer says, whatever was found out before.
    by_token = call.caller.kind is CallerKind.USER
    return InvocationRequest(
        runtime=document["agentRuntimeArn"],
        qualifier=document.get("qualifier") or DEFAULT_ENDPOINT,
        account_id=document.get("accountId"),
        session_id=document.get("runtimeSessionId"),
        user_id=document.get("runtimeUserId", call.headers.get(USER_HEADER)),
        invocation_id=call.headers.get("amz-sdk-invocation-id"),
        caller=None if by_token else call.caller,
        bearer=authorization[7:].strip() if by_token and authorization[:7].lower() == "bearer " else None,
        request_id=call.request_id,
        headers=headers,
        operation=operation,
    )
