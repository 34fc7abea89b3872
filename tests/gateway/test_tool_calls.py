"""Tools through a gateway, as unmodified MCP clients call them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from mcp import MCPError
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from tool_stack import ToolStack, mcp_client, tool_stack
from tool_stand_ins import OrdersService, notes_server, openapi, orders_service, server, serving_mcp

from agentkeep.core import telemetry_export
from agentkeep.core.call import SessionRef, User
from agentkeep.storage.valkey import ValkeyKeyValueStore

SESSION = SessionRef("support-0123456789", "session-" + "1" * 32)


@pytest.fixture
async def stack(store: ValkeyKeyValueStore) -> AsyncIterator[ToolStack]:
    async with tool_stack(store) as stack:
        yield stack


@pytest.fixture
async def orders() -> AsyncIterator[OrdersService]:
    async with orders_service() as service:
        yield service


@pytest.fixture
async def notes() -> AsyncIterator[str]:
    async with serving_mcp(notes_server()) as url:
        yield url


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_official_client_lists_and_calls_tools_of_both_kinds_of_target(
    stack: ToolStack, orders: OrdersService, notes: str, mode: str
) -> None:
    """GOV-1"""
    gateway = await stack.gateway({"Orders": openapi(orders), "Notes": server(notes)})
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice"), mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert {"Orders___get_order", "Orders___request_refund", "Notes___add"} <= tools.keys()
        assert tools["Orders___get_order"].input_schema["required"] == ["order_id"]
        order = await client.call_tool("Orders___get_order", {"order_id": "A/1", "fields": ["a", "b"]})
        total = await client.call_tool("Notes___add", {"a": 2, "b": 3})
    assert not order.is_error and order.structured_content == {
        "order": "A/1",
        "status": "shipped",
        "fields": ["a", "b"],
    }
    assert orders.asked[0][1] == "/orders/A%2F1?fields=a&fields=b"
    assert total.structured_content == {"total": 5}


async def calls_of(stack: ToolStack, query: str) -> list[dict[str, object]]:
    status, answer = await stack.operate("GET", f"/audit?{query}")
    assert status == 200
    return list(answer["calls"])


async def test_nothing_may_be_called_and_nothing_is_seen_without_a_policy(
    stack: ToolStack, orders: OrdersService
) -> None:
    """GOV-1, GOV-2"""
    gateway = await stack.gateway({"Orders": openapi(orders)}, policies=())
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        assert (await client.list_tools()).tools == []
        result = await client.call_tool("Orders___get_order", {"order_id": "A-1"})
    assert result.is_error
    assert result.content[0].text.startswith("AuthorizeActionException - Tool Execution Denied: ")
    assert result.structured_content["error"]["code"] == "AuthorizeActionException"
    assert orders.asked == []
    (call,) = await calls_of(stack, f"gateway={gateway.id}")
    assert (call["status"], call["decision"], call["user"]) == ("REFUSED", "DENY", "alice")


async def test_policies_decide_by_user_and_by_arguments(stack: ToolStack, orders: OrdersService) -> None:
    """GOV-2, GOV-4: the same gateway, two users; one of them is shown and allowed less."""
    gateway = await stack.gateway(
        {"Orders": openapi(orders)},
        policies=(
            'permit(principal, action == AgentCore::Action::"Orders___get_order", '
            'resource == AgentCore::Gateway::"GATEWAY_ARN");',
            'permit(principal == AgentCore::OAuthUser::"alice", '
            'action == AgentCore::Action::"Orders___request_refund", '
            'resource == AgentCore::Gateway::"GATEWAY_ARN") when { context.input.order_id like "A-*" };',
        ),
    )
    seen = {}
    for user in ("alice", "bob"):
        async with mcp_client(stack.mcp_url(gateway), token=await stack.token(user)) as client:
            seen[user] = {tool.name for tool in (await client.list_tools()).tools}
            refund = await client.call_tool("Orders___request_refund", {"order_id": "A-1", "amount": 5})
            assert refund.is_error == (user == "bob")
    assert seen == {
        "alice": {"Orders___get_order", "Orders___request_refund"},
        "bob": {"Orders___get_order"},
    }
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        assert (await client.call_tool("Orders___request_refund", {"order_id": "B-1", "amount": 5})).is_error
    assert [(method, path) for method, path, _, _ in orders.asked] == [("POST", "/refunds")]
    assert orders.asked[0][3] == {"order_id": "A-1", "amount": 5}


async def test_arguments_are_checked_before_anything_is_called(stack: ToolStack, orders: OrdersService) -> None:
    """GOV-2"""
    gateway = await stack.gateway({"Orders": openapi(orders)})
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        missing = await client.call_tool("Orders___request_refund", {"order_id": "A-1"})
        wrong = await client.call_tool("Orders___request_refund", {"order_id": "A-1", "amount": "all", "as": "admin"})
        with pytest.raises(MCPError, match="Unknown tool: Orders___drop") as unknown:
            await client.call_tool("Orders___drop", {})
    assert missing.content[0].text == (
        "ValidationException - Parameter validation failed: Invalid request parameters:\n"
        "- Missing required field(s): 'amount'"
    )
    assert "- Field '/amount' has invalid type: string found, number expected" in wrong.content[0].text
    assert "- Unknown field(s): 'as'" in wrong.content[0].text
    assert unknown.value.error.code == -32602
    assert orders.asked == []
    assert [call["status"] for call in await calls_of(stack, f"gateway={gateway.id}")] == ["REFUSED"] * 3


async def test_an_agent_signs_with_its_sessions_keys_and_the_trail_says_all_of_it(
    stack: ToolStack, orders: OrdersService
) -> None:
    """GOV-4, GOV-7, IDN-4: agent, session and user are the session's, whatever an agent says."""
    gateway = await stack.gateway({"Orders": openapi(orders)}, jwt=False)
    alice = User("alice", "https://issuer.example")
    inside = f"{await stack.listen(SESSION, alice)}/gateways/{gateway.id}/mcp"
    keys = await stack.session_keys(SESSION, alice)
    async with mcp_client(inside, keys=keys) as client:
        result = await client.call_tool("Orders___request_refund", {"order_id": "A-1", "amount": 5, "reason": None})
    assert not result.is_error
    sent = orders.asked[0][2]
    assert not {"authorization", "x-amz-security-token", "x-amz-date", "cookie"} & sent.keys()
    for query in (
        f"gateway={gateway.id}",
        f"session={SESSION.session_id}",
        f"session={SESSION.session_id}&gateway={gateway.id}",
    ):
        (call,) = await calls_of(stack, query)
        assert call["user"] == "alice" and call["issuer"] == "https://issuer.example"
        assert (call["agentRuntimeId"], call["sessionId"]) == (SESSION.runtime_id, SESSION.session_id)
        assert call["tool"] == "Orders___request_refund"
        assert call["arguments"] == {"order_id": "A-1", "amount": 5, "reason": None}
        assert call["policies"] == ["policy-0"] and call["decision"] == "ALLOW"
        assert call["status"] == "SUCCEEDED" and call["result"]["structuredContent"]["refund"] == "R-1"
    # Keys stolen from the session are of no use outside of it.
    with pytest.raises(BaseExceptionGroup):
        async with mcp_client(stack.mcp_url(gateway), keys=keys):
            pass


async def test_a_read_is_audited_without_what_was_said(stack: ToolStack, orders: OrdersService) -> None:
    """GOV-2: metadata only for low-risk tools."""
    gateway = await stack.gateway({"Orders": openapi(orders)})
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        await client.call_tool("Orders___get_order", {"order_id": "SECRET-7"})
    (call,) = await calls_of(stack, f"gateway={gateway.id}")
    assert call["auditLevel"] == "metadata" and call["argumentNames"] == ["order_id"]
    assert "SECRET-7" not in json.dumps(call)
    assert str(call["argumentsDigest"]).startswith("sha256:") and str(call["resultDigest"]).startswith("sha256:")


async def test_a_session_sends_its_own_users_token_and_no_others(stack: ToolStack, orders: OrdersService) -> None:
    """GOV-4"""
    gateway = await stack.gateway({"Orders": openapi(orders)})
    alice = User("alice", stack.issuer.url)
    inside = f"{await stack.listen(SESSION, alice)}/gateways/{gateway.id}/mcp"
    async with mcp_client(inside, token=await stack.token("alice")) as client:
        assert not (await client.call_tool("Orders___get_order", {"order_id": "A-1"})).is_error
    (call,) = await calls_of(stack, f"session={SESSION.session_id}")
    assert (call["user"], call["agentRuntimeId"]) == ("alice", SESSION.runtime_id)
    status, error = await raw_call(stack, inside, {"authorization": f"Bearer {await stack.token('bob')}"})
    assert status == 403 and "not of the user" in error["error"]["message"]


async def raw_call(stack: ToolStack, url: str, headers: dict[str, str]) -> tuple[int, dict[str, dict[str, str]]]:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    accept = {"accept": "application/json, text/event-stream"}
    async with stack.http.post(url, json=message, headers=accept | headers) as response:
        return response.status, await response.json()


async def test_who_is_not_known_learns_nothing(stack: ToolStack, orders: OrdersService) -> None:
    """IDN-5: a gateway of either kind, and one that is not there, say the same."""
    gateways = [await stack.gateway({"Orders": openapi(orders)}, jwt=jwt) for jwt in (True, False)]
    ids = [gateway.id for gateway in gateways] + ["gw-0123456789"]
    for headers in ({}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic YTpi"}):
        answers = []
        for id_ in ids:
            url = f"{stack.url}/gateways/{id_}/mcp"
            async with stack.http.post(url, json={}, headers=headers) as response:
                challenge = response.headers["www-authenticate"].replace(id_, "ID")
                answers.append((response.status, challenge, await response.json()))
        assert answers[0][0] == 401 and answers[1:] == answers[:1] * 2
    assert await calls_of(stack, f"gateway={ids[0]}") == []


async def test_a_gateway_with_authorizer_none_serves_nobody(stack: ToolStack, orders: OrdersService) -> None:
    """IDN-5: not the unknown, not a user, not even an operator; what is behind it is never called."""
    gateway = await stack.gateway({"Orders": openapi(orders)}, secured=False)
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for headers in ({}, {"authorization": f"Bearer {await stack.token('alice')}"}):
        async with stack.http.post(stack.mcp_url(gateway), json=body, headers=headers) as response:
            assert response.status == 401
    status, _ = await stack.operate("POST", f"/gateways/{gateway.id}/mcp", body)
    assert status == 401 and orders.asked == []


async def test_clients_find_out_where_to_get_a_token(stack: ToolStack, orders: OrdersService) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)})
    async with stack.http.post(stack.mcp_url(gateway), json={}) as response:
        url = response.headers["www-authenticate"].partition('resource_metadata="')[2].rstrip('"')
    for place in (url, f"{stack.url}/.well-known/oauth-protected-resource/gateways/{gateway.id}/mcp"):
        async with stack.http.get(place) as response:
            metadata = await response.json()
        assert metadata["resource"] == stack.mcp_url(gateway)
        assert metadata["authorization_servers"] == [stack.issuer.url]


async def test_a_token_without_the_scope_is_told_which(stack: ToolStack, orders: OrdersService) -> None:
    """IDN-5: RFC 6750, 3.1; by the names that clients ask the provider for. Of what is in a token nothing is said."""
    scopes = {"allowedScopes": ["tools", "api/read"], "advertisedScopeMapping": {"api/read": "https://api/read"}}
    gateway = await stack.gateway({"Orders": openapi(orders)}, authorizer=scopes)
    place = f'resource_metadata="{stack.url}/gateways/{gateway.id}/.well-known/oauth-protected-resource"'
    for headers, status, code, told in (
        ({}, 401, -32001, f'Bearer {place}, scope="tools https://api/read"'),
        ({"authorization": f"Bearer {await stack.token('alice')}"}, 403, -32002,
         f'Bearer error="insufficient_scope", scope="tools https://api/read", {place}'),
    ):  # fmt: skip
        async with stack.http.post(stack.mcp_url(gateway), json={}, headers=headers) as response:
            answer = await response.json()
            assert (response.status, response.headers["www-authenticate"]) == (status, told)
        assert answer["error"]["code"] == code
    async with stack.http.get(place.split('"')[1]) as response:
        assert (await response.json())["scopes_supported"] == ["tools", "https://api/read"]
    assert orders.asked == []


async def test_a_gateway_is_found_by_its_host_name_too(stack: ToolStack, orders: OrdersService) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)})
    token = await stack.token("alice")
    host = {
        "host": f"{gateway.id}.gateway.bedrock-agentcore.us-east-1.amazonaws.com",
        "authorization": f"Bearer {token}",
    }
    status, answer = await raw_call(stack, f"{stack.url}/mcp", host)
    assert status == 200 and "tools" in answer["result"]


async def test_a_signature_covers_the_body(stack: ToolStack, orders: OrdersService) -> None:
    """IDN-5"""
    gateway = await stack.gateway({"Orders": openapi(orders)}, jwt=False)
    async with mcp_client(stack.mcp_url(gateway), keys=stack.operator) as client:
        assert (await client.list_tools()).tools
    for wrong in (Credentials(stack.operator.access_key, "x" * 40), Credentials("AKIA" + "A" * 16, "x" * 40)):
        with pytest.raises(BaseExceptionGroup):
            async with mcp_client(stack.mcp_url(gateway), keys=wrong):
                pass
    url = stack.mcp_url(gateway)
    request = AWSRequest("POST", url, data=b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}')
    SigV4Auth(stack.operator, "bedrock-agentcore", "us-east-1").add_auth(request)
    forged = b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}'
    async with stack.http.post(url, data=forged, headers=dict(request.headers.items())) as response:
        assert response.status == 401


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_there_are_no_sessions_to_listen_to_or_to_end(
    stack: ToolStack, orders: OrdersService, method: str
) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)})
    headers = {"authorization": f"Bearer {await stack.token('alice')}", "accept": "text/event-stream"}
    async with stack.http.request(method, stack.mcp_url(gateway), headers=headers) as response:
        assert (response.status, response.headers["allow"]) == (405, "POST")


async def test_only_versions_the_gateway_supports_are_spoken(stack: ToolStack, orders: OrdersService) -> None:
    document = {"protocolConfiguration": {"mcp": {"supportedVersions": ["2025-06-18"], "instructions": "Be kind."}}}
    gateway = await stack.gateway({"Orders": openapi(orders)}, document=document)
    token = await stack.token("alice")
    with pytest.raises(BaseException) as failure:
        async with mcp_client(stack.mcp_url(gateway), token=token):
            pass
    assert "Unsupported MCP protocol version: 2025-11-25" in repr(leaf(failure.value))
    initialize = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}},
    }  # fmt: skip
    headers = {"authorization": f"Bearer {token}", "accept": "application/json, text/event-stream"}
    async with stack.http.post(stack.mcp_url(gateway), json=initialize, headers=headers) as response:
        result = (await response.json())["result"]
    assert result["serverInfo"] == {"name": "agentcore-gateway", "version": "1.0.0"}
    assert (result["instructions"], result["protocolVersion"]) == ("Be kind.", "2025-06-18")


def leaf(error: BaseException) -> BaseException:
    return leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


async def test_an_observing_engine_blocks_nothing_and_says_so(stack: ToolStack, orders: OrdersService) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)}, policies=(), mode="LOG_ONLY")
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        assert not (await client.call_tool("Orders___get_order", {"order_id": "A-1"})).is_error
    (call,) = await calls_of(stack, f"gateway={gateway.id}")
    assert (call["decision"], call["status"]) == ("DENY", "SUCCEEDED")


async def test_the_trail_is_paged(stack: ToolStack, orders: OrdersService) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)})
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        for number in range(5):
            await client.call_tool("Orders___get_order", {"order_id": str(number)})
    found, token = [], ""
    while True:
        _, page = await stack.operate("GET", f"/audit?gateway={gateway.id}&maxResults=2{token}")
        found += page["calls"]
        if "nextToken" not in page:
            break
        token = f"&nextToken={page['nextToken']}"
    assert len({call["callId"] for call in found}) == len(found) == 5
    assert [call["at"] for call in found] == sorted(call["at"] for call in found)


async def test_a_tool_is_as_long_and_as_often_called_as_the_catalogue_says(
    stack: ToolStack, orders: OrdersService
) -> None:
    """GOV-2, GOV-3"""
    gateway = await stack.gateway({"Orders": openapi(orders)}, jwt=False)
    path = f"/catalogue/{gateway.id}"
    status, entry = await stack.operate(
        "PUT", f"{path}/Orders___get_order",
        {"riskClass": "high-impact", "callsPerSession": 2, "callsPerMinute": 100},
    )  # fmt: skip
    assert (status, entry["auditLevel"], entry["setByOperator"]) == (
        200,
        "full",
        ["callsPerMinute", "callsPerSession", "riskClass"],
    )
    await stack.operate("PUT", f"{path}/Orders___hangs", {"timeoutSeconds": 0.3})
    alice = User("alice")
    inside = f"{await stack.listen(SESSION, alice)}/gateways/{gateway.id}/mcp"
    async with mcp_client(inside, keys=await stack.session_keys(SESSION, alice)) as client:
        results = [await client.call_tool("Orders___get_order", {"order_id": "A-1"}) for _ in range(3)]
        assert [result.is_error for result in results] == [False, False, True]
        error = results[2].structured_content["error"]
        assert (error["code"], error["limit"]) == ("ThrottlingException", "2 calls per session")
        assert "go on without it" in results[2].content[0].text
        late = await client.call_tool("Orders___hangs", {})
    assert late.content[0].text == "TargetTimeout - The tool did not answer within 0.3 seconds"
    statuses = [call["status"] for call in await calls_of(stack, f"session={SESSION.session_id}")]
    assert statuses == ["SUCCEEDED", "SUCCEEDED", "REFUSED", "TIMED_OUT"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"riskClass": "harmless"}, "riskClass must be read, write, high-impact"),
        ({"callsPerMinute": -1}, "callsPerMinute must be a whole number"),
        ({"timeoutSeconds": 901}, "timeoutSeconds must be a number of seconds up to 900"),
        ({"audit": "full"}, "audit is not a member"),
        ({"riskClass": "high-impact", "auditLevel": "metadata"}, "audited in full"),
        ([], "must be a JSON object"),
    ],
)
async def test_a_catalogue_entry_is_checked(stack: ToolStack, orders: OrdersService, entry: object, said: str) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)})
    status, answer = await stack.operate("PUT", f"/catalogue/{gateway.id}/Orders___get_order", entry)
    assert status == 400 and said in answer["message"]
    status, _ = await stack.operate("PUT", f"/catalogue/{gateway.id}/Orders___nothing", {})
    assert status == 404


async def test_a_reviewer_reads_who_may_call_what(stack: ToolStack, orders: OrdersService) -> None:
    """GOV-6"""
    gateway = await stack.gateway(
        {"Orders": openapi(orders)},
        policies=(
            'permit(principal == AgentCore::OAuthUser::"alice", '
            'action == AgentCore::Action::"Orders___request_refund", '
            'resource == AgentCore::Gateway::"GATEWAY_ARN") '
            'when { context.input.amount.lessThanOrEqual(decimal("100.0")) && principal.hasTag("role") };',
            'forbid(principal, action in AgentCore::Action::"Orders", resource == AgentCore::Gateway::"GATEWAY_ARN") '
            'unless { ["A-1", "A-2"].contains(context.input.order_id) };',
        ),
    )
    _, shown = await stack.operate("GET", f"/catalogue/{gateway.id}")
    tools = {tool["tool"]: tool for tool in shown["tools"]}
    assert [policy["text"] for policy in tools["Orders___request_refund"]["policies"]] == [
        'Allows user alice to call Orders___request_refund, if the argument amount is at most "100.0" and the user\'s '
        'token has a claim "role".',
        "Forbids everybody to call any tool of Orders, if it is not so that the argument order_id is one of "
        '["A-1", "A-2"].',
    ]
    assert [policy["effect"] for policy in tools["Orders___get_order"]["policies"]] == ["forbid"]
    assert (tools["Orders___get_order"]["riskClass"], tools["Orders___request_refund"]["riskClass"]) == (
        "read",
        "write",
    )


async def test_two_users_at_once_never_get_each_others_answers(stack: ToolStack, notes: str) -> None:
    """GOV-4, MEM-2: the user's own token goes to the target where that is configured, and nobody else's."""
    gateway = await stack.gateway({"Notes": server(notes)}, credentials=[{"credentialProviderType": "JWT_PASSTHROUGH"}])
    tokens = {f"user{number}": await stack.token(f"user{number}") for number in range(10)}

    async def ask(user: str) -> None:
        async with mcp_client(stack.mcp_url(gateway), token=tokens[user]) as client:
            for _ in range(3):
                result = await client.call_tool("Notes___whoami", {})
                seen = json.loads(result.content[0].text)
                assert seen == {"shown": {"authorization": f"Bearer {tokens[user]}"}, "aws": []}

    await asyncio.gather(*map(ask, tokens))


class Kept(SpanProcessor):
    """The spans that ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


async def test_a_sessions_trace_has_its_tool_calls_with_as_much_as_is_audited(
    stack: ToolStack, orders: OrdersService
) -> None:
    """OBS-1, GOV-7: arguments and results of tools audited in full, of others that they were called;
    the session's authenticated identity is the owner; the target is told the trace."""
    gateway = await stack.gateway({"Orders": openapi(orders)}, jwt=False)
    alice = User("alice")
    inside = f"{await stack.listen(SESSION, alice)}/gateways/{gateway.id}/mcp"
    kept = Kept()
    telemetry = telemetry_export.start("test", kept)
    try:
        async with mcp_client(inside, keys=await stack.session_keys(SESSION, alice)) as client:
            await client.call_tool("Orders___get_order", {"order_id": "SECRET-7"})
            await client.call_tool("Orders___request_refund", {"order_id": "A-1", "amount": 5})
            await client.call_tool("Orders___request_refund", {"order_id": "A-1"})
    finally:
        await telemetry.stop()
    spans = [span for span in kept.spans if span.name.startswith("tools/call ")]
    read, write, refused = (dict(span.attributes or {}) for span in spans)
    for attributes in (read, write, refused):
        assert attributes["session.id"] == SESSION.session_id and attributes["enduser.id"] == "alice"
        assert attributes["gateway.id"] == gateway.id and attributes["gen_ai.operation.name"] == "execute_tool"
        assert attributes["aws.agentcore.policy.authorization_decision"] == "ALLOW"
    assert "SECRET-7" not in str(read)
    assert json.loads(str(write["gen_ai.tool.call.arguments"])) == {"order_id": "A-1", "amount": 5}
    assert "R-1" in str(write["gen_ai.tool.call.result"])
    assert refused["error.type"] == "ValidationException" and "'amount'" in str(refused["error.message"])
    calls = await calls_of(stack, f"gateway={gateway.id}")
    assert [call["traceId"] for call in calls] == [f"{span.context.trace_id:032x}" for span in spans]
    assert calls[0]["traceId"] in orders.asked[0][2]["traceparent"]
