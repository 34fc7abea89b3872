"""Gateways, targets and rate limits through an unmodified boto3 client."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from control_stack import PUBLIC_URL, ROLE, ControlStack, control_stack
from session_stack import DEPLOYMENT
from tool_stand_ins import OrdersService, notes_server, orders_service, serving_mcp

from agentkeep.core.call import SessionRef, User
from agentkeep.gateway.control.resources import StoredResources
from agentkeep.storage.valkey import ValkeyKeyValueStore

SESSION = SessionRef("support-0123456789", "session-" + "1" * 32)
JWT = {
    "customJWTAuthorizer": {
        "discoveryUrl": "https://idp.example/.well-known/openid-configuration",
        "allowedClients": ["shop"],
    }
}
LIMIT = {"dimensions": {"toolName": "*"}, "requests": [{"rate": 5, "period": "minute"}]}


@pytest.fixture
async def control(store: ValkeyKeyValueStore) -> AsyncIterator[ControlStack]:
    async with control_stack(store) as stack:
        yield stack


@pytest.fixture
async def orders() -> AsyncIterator[OrdersService]:
    async with orders_service() as service:
        yield service


def openapi(service: OrdersService) -> dict[str, Any]:
    return {"mcp": {"openApiSchema": {"inlinePayload": service.document}}}


def refused(code: str, match: str = "") -> Any:
    return pytest.raises(ClientError, match=rf"(?s)\({code}\).*{match}")


# Gateways.


async def test_a_gateway_from_creation_to_deletion(control: ControlStack) -> None:
    made = await control(
        "create_gateway",
        name="Shop",
        description="tools of the shop",
        roleArn=ROLE,
        protocolType="MCP",
        protocolConfiguration={"mcp": {"supportedVersions": ["2025-06-18"], "instructions": "Ask for orders."}},
        authorizerType="CUSTOM_JWT",
        authorizerConfiguration=JWT,
        exceptionLevel="DEBUG",
        tags={"team": "shop"},
    )
    gateway_id = made["gatewayId"]
    assert made["status"] == "CREATING" and gateway_id.startswith("shop-")
    assert made["gatewayArn"] == DEPLOYMENT.arn(f"gateway/{gateway_id}")
    assert made["gatewayUrl"] == f"{PUBLIC_URL}/gateways/{gateway_id}/mcp"

    found = await control("get_gateway", gatewayIdentifier=gateway_id)
    assert found["status"] == "READY"
    for member in (
        "name",
        "description",
        "roleArn",
        "protocolType",
        "protocolConfiguration",
        "authorizerConfiguration",
    ):
        assert found[member] == made[member]
    identity = found["workloadIdentityDetails"]["workloadIdentityArn"]
    assert identity == (await control("get_workload_identity", name=gateway_id))["workloadIdentityArn"]
    assert await control("list_tags_for_resource", resourceArn=made["gatewayArn"]) and (
        await control("list_tags_for_resource", resourceArn=made["gatewayArn"])
    )["tags"] == {"team": "shop"}

    changed = await control(
        "update_gateway", gatewayIdentifier=gateway_id, name="Shop", roleArn=ROLE, authorizerType="AWS_IAM"
    )
    assert changed["status"] == "UPDATING"
    found = await control("get_gateway", gatewayIdentifier=gateway_id)
    assert (found["status"], found["authorizerType"]) == ("READY", "AWS_IAM")
    assert not {"description", "authorizerConfiguration", "protocolConfiguration"} & found.keys()  # all is replaced
    assert found["workloadIdentityDetails"]["workloadIdentityArn"] == identity
    [listed] = (await control("list_gateways"))["items"]
    assert (listed["gatewayId"], listed["name"], listed["status"]) == (gateway_id, "Shop", "READY")

    assert (await control("delete_gateway", gatewayIdentifier=gateway_id))["status"] == "DELETING"
    for operation, members in (
        ("get_gateway", {"gatewayIdentifier": gateway_id}),
        ("get_workload_identity", {"name": gateway_id}),
        ("list_tags_for_resource", {"resourceArn": made["gatewayArn"]}),
        ("list_gateway_targets", {"gatewayIdentifier": gateway_id}),
    ):
        with refused("ResourceNotFoundException"):
            await control(operation, **members)
    assert await control.gateway("Shop")  # the name is free


async def test_a_gateway_with_authorizer_none_says_that_it_serves_nobody(control: ControlStack) -> None:
    """IDN-5: scripts that make one first and secure it then go on working; what it is meanwhile, it says."""
    made = await control.gateway("Open", authorizerType="NONE")
    assert made["authorizerType"] == "NONE" and "nobody is served" in made["statusReasons"][0]
    members = {"gatewayIdentifier": made["gatewayId"]}
    await control("update_gateway", **members, name="Open", roleArn=ROLE, authorizerType="AWS_IAM")
    assert "statusReasons" not in await control("get_gateway", **members)


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"authorizerType": "NONE", "authorizerConfiguration": JWT}, "leave it out"),
        ({"authorizerType": "AUTHENTICATE_ONLY"}, "AUTHENTICATE_ONLY is not supported"),
        ({"authorizerType": "CUSTOM_JWT"}, "must have a customJWTAuthorizer"),
        ({"authorizerType": "AWS_IAM", "authorizerConfiguration": JWT}, "leave it out"),
        (
            {
                "authorizerType": "CUSTOM_JWT",
                "authorizerConfiguration": {
                    "customJWTAuthorizer": {
                        "discoveryUrl": "http://idp.example/.well-known/openid-configuration", "allowedClients": ["x"]
                    }
                },
            },
            "discoveryUrl",
        ),
        ({"protocolConfiguration": {"mcp": {"searchType": "SEMANTIC"}}}, "searchType"),
        ({"protocolConfiguration": {"mcp": {"supportedVersions": ["1999-01-01"]}}}, "1999-01-01"),
        (
            {"protocolConfiguration": {"mcp": {"streamingConfiguration": {"enableResponseStreaming": True}}}},
            "enableResponseStreaming",
        ),
        (
            {
                "interceptorConfigurations": [
                    {
                        "interceptor": {"lambda": {"arn": "arn:aws:lambda:us-east-1:123456789012:function:f"}},
                        "interceptionPoints": ["REQUEST"],
                    }
                ]
            },
            "interceptorConfigurations",
        ),
        ({"kmsKeyArn": f"arn:aws:kms:us-east-1:123456789012:key/{'1' * 36}"}, "kmsKeyArn"),
        (
            {
                "policyEngineConfiguration": {
                    "arn": DEPLOYMENT.arn("policy-engine/rules-0123456789"),
                    "mode": "ENFORCE",
                }
            },
            "no policy engine of this deployment",
        ),
        ({"tags": {"aws:owner": "me"}}, "reserved"),
    ],
)  # fmt: skip
async def test_what_cannot_be_honoured_is_refused_by_name(
    control: ControlStack, members: dict[str, Any], match: str
) -> None:
    """IDN-5: no gateway without authentication."""
    with refused("ValidationException", match):
        await control("create_gateway", name="Shop", roleArn=ROLE, **({"authorizerType": "AWS_IAM"} | members))
    assert (await control("list_gateways"))["items"] == []
    assert (await control("list_workload_identities"))["workloadIdentities"] == []


async def test_a_name_is_used_once(control: ControlStack) -> None:
    await control.gateway("Shop")
    with refused("ConflictException", "Shop exists"):
        await control.gateway("Shop")
    assert len((await control("list_workload_identities"))["workloadIdentities"]) == 1


async def test_a_client_token_makes_one_gateway(control: ControlStack) -> None:
    token = secrets.token_hex(20)
    made = await asyncio.gather(
        *(
            control("create_gateway", name="Shop", roleArn=ROLE, authorizerType="AWS_IAM", clientToken=token)
            for _ in range(4)
        )
    )
    assert len({one["gatewayId"] for one in made}) == 1
    assert len((await control("list_workload_identities"))["workloadIdentities"]) == 1
    with refused("ValidationException"):
        await control("create_gateway", name="Other", roleArn=ROLE, authorizerType="AWS_IAM", clientToken=token)


async def test_pages(control: ControlStack) -> None:
    made = {(await control.gateway(f"g{number}"))["gatewayId"] for number in range(5)}
    pages = control.client.get_paginator("list_gateways").paginate(PaginationConfig={"PageSize": 2})
    listed = await asyncio.to_thread(lambda: [[one["gatewayId"] for one in page["items"]] for page in pages])
    assert [len(page) for page in listed] == [2, 2, 1] and {one for page in listed for one in page} == made


async def test_tags(control: ControlStack) -> None:
    arn = (await control.gateway())["gatewayArn"]
    engine = DEPLOYMENT.arn(f"policy-engine/{await control.engine()}")
    for one in (arn, engine):
        await control("tag_resource", resourceArn=one, tags={"a": "1", "b": "2"})
        await control("untag_resource", resourceArn=one, tagKeys=["a"])
        assert (await control("list_tags_for_resource", resourceArn=one))["tags"] == {"b": "2"}
    with refused("ServiceQuotaExceededException|ValidationException"):
        await control("tag_resource", resourceArn=arn, tags={f"t{i}": "" for i in range(50)})
    with refused("ResourceNotFoundException"):
        await control("tag_resource", resourceArn=arn[:-1] + "0", tags={"a": "1"})


async def test_an_agent_may_not_change_what_it_may_call(control: ControlStack) -> None:
    """GOV-1: the control plane is the operators'."""
    gateway_id = (await control.gateway())["gatewayId"]
    url = await control.stack.listen(SESSION)
    credentials = await control.stack.credentials(SESSION, User("alice"))
    agent = boto3.client(
        "bedrock-agentcore-control", endpoint_url=url, region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}), **credentials,  # type: ignore[arg-type]
    )  # fmt: skip
    for operation, members in (
        ("get_gateway", {"gatewayIdentifier": gateway_id}),
        ("delete_gateway", {"gatewayIdentifier": gateway_id}),
        ("create_policy_engine", {"name": "mine"}),
        ("list_policy_engines", {}),
        ("tag_resource", {"resourceArn": DEPLOYMENT.arn(f"gateway/{gateway_id}"), "tags": {"a": "b"}}),
    ):
        with refused("AccessDeniedException"):
            await asyncio.to_thread(getattr(agent, operation), **members)
    agent.close()


# Targets.


async def test_a_target_from_creation_to_deletion(control: ControlStack, orders: OrdersService) -> None:
    gateway_id = (await control.gateway())["gatewayId"]
    place = {"gatewayIdentifier": gateway_id}
    made = await control(
        "create_gateway_target", **place, name="Orders", description="d", targetConfiguration=openapi(orders)
    )
    target = place | {"targetId": made["targetId"]}
    assert made["status"] == "CREATING" and made["targetConfiguration"] == openapi(orders)
    found = await control("get_gateway_target", **target)
    assert (found["status"], found["name"], found["credentialProviderConfigurations"]) == ("READY", "Orders", [])
    assert found["lastSynchronizedAt"] == found["createdAt"] and "statusReasons" not in found
    [listed] = (await control("list_gateway_targets", **place))["items"]
    assert (listed["targetId"], listed["targetType"]) == (made["targetId"], "OPEN_API_SCHEMA")

    with refused("ConflictException", "has targets"):
        await control("delete_gateway", **place)
    with refused("ConflictException", "has a target named Orders"):
        await control("create_gateway_target", **place, name="Orders", targetConfiguration=openapi(orders))

    async with serving_mcp(notes_server()) as url:
        server = {"mcp": {"mcpServer": {"endpoint": url}}}
        assert (await control("update_gateway_target", **target, name="Notes", targetConfiguration=server))[
            "status"
        ] == "UPDATING"
        found = await control("get_gateway_target", **target)
        assert (found["status"], found["name"], found["targetConfiguration"]) == ("READY", "Notes", server)
        assert "description" not in found
        [again] = (await control("synchronize_gateway_targets", **place, targetIdList=[made["targetId"]]))["targets"]
        assert again["status"] == "SYNCHRONIZING"
    await control("create_gateway_target", **place, name="Orders", targetConfiguration=openapi(orders))  # free again

    assert (await control("delete_gateway_target", **target))["status"] == "DELETING"
    with refused("ResourceNotFoundException"):
        await control("get_gateway_target", **target)


async def test_a_target_that_does_not_answer_loses_nothing(control: ControlStack) -> None:
    """Its tools stay as they were, and its status says why there are no newer ones."""
    gateway_id = (await control.gateway())["gatewayId"]
    place = {"gatewayIdentifier": gateway_id}
    async with serving_mcp(notes_server()) as url:
        server = {"mcp": {"mcpServer": {"endpoint": url}}}
        made = await control("create_gateway_target", **place, name="Notes", targetConfiguration=server)
    target = place | {"targetId": made["targetId"]}
    [before] = await control.tools.resources.targets(gateway_id)
    assert before.tools
    await control("synchronize_gateway_targets", **place, targetIdList=[made["targetId"]])
    found = await control("get_gateway_target", **target)
    assert found["status"] == "SYNCHRONIZE_UNSUCCESSFUL" and "Notes" in found["statusReasons"][0]
    elsewhere = {"mcp": {"mcpServer": {"endpoint": "http://127.0.0.1:1/mcp"}}}
    await control("update_gateway_target", **target, name="Other", targetConfiguration=elsewhere)
    found = await control("get_gateway_target", **target)
    assert (found["status"], found["name"], found["targetConfiguration"]) == ("UPDATE_UNSUCCESSFUL", "Notes", server)
    [after] = await control.tools.resources.targets(gateway_id)
    assert after.tools == before.tools and after.configuration == before.configuration

    made = await control("create_gateway_target", **place, name="Never", targetConfiguration=elsewhere)
    found = await control("get_gateway_target", **place, targetId=made["targetId"])
    assert found["status"] == "FAILED" and found["statusReasons"]


@pytest.mark.parametrize(
    ("configuration", "match"),
    [
        ({"mcp": {"lambda": {"lambdaArn": "arn:aws:lambda:us-east-1:123456789012:function:f",
                             "toolSchema": {"inlinePayload": []}}}}, r"mcp\.lambda"),
        ({"mcp": {"smithyModel": {"inlinePayload": "{}"}}}, r"mcp\.smithyModel"),
        ({"mcp": {"openApiSchema": {"s3": {"uri": "s3://bucket/document.json"}}}}, "inlinePayload"),
        ({"mcp": {"openApiSchema": {"inlinePayload": "not json"}}}, "JSON"),
        ({"mcp": {"openApiSchema": {"inlinePayload": '{"openapi": "3.1.0"}'}}}, "OpenAPI document"),
        ({"mcp": {"mcpServer": {"endpoint": "https://tools.example/mcp", "listingMode": "DYNAMIC"}}}, "DYNAMIC"),
        ({"mcp": {"mcpServer": {"endpoint": "http://169.254.169.254/mcp"}}}, "never called"),
        ({"mcp": {"mcpServer": {"endpoint": "file:///etc/passwd"}}}, "endpoint"),
        ({"http": {"passthrough": {"endpoint": "https://t.example", "protocolType": "MCP"}}}, r"Configuration\.http"),
    ],
)  # fmt: skip
async def test_targets_that_cannot_be(control: ControlStack, configuration: dict[str, Any], match: str) -> None:
    gateway_id = (await control.gateway())["gatewayId"]
    with refused("ValidationException", match):
        await control(
            "create_gateway_target", gatewayIdentifier=gateway_id, name="T", targetConfiguration=configuration
        )
    assert (await control("list_gateway_targets", gatewayIdentifier=gateway_id))["items"] == []


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"name": "Mcp"}, "reserved"),
        ({"name": "CallTool"}, "reserved"),
        ({"name": "a___b"}, "name"),
        ({"name": "x/../y"}, "name"),
        ({"metadataConfiguration": {"allowedRequestHeaders": ["X-A"]}}, "metadataConfiguration"),
        ({"credentialProviderConfigurations": [{"credentialProviderType": "GATEWAY_IAM_ROLE"}]}, "GATEWAY_IAM_ROLE"),
        (
            {
                "credentialProviderConfigurations": [
                    {
                        "credentialProviderType": "OAUTH",
                        "credentialProvider": {
                            "oauthCredentialProvider": {
                                "providerArn": DEPLOYMENT.arn("token-vault/default/oauth2credentialprovider/x"),
                                "scopes": [],
                            }
                        },
                    }
                ]
            },
            "OAUTH",
        ),
        ({"credentialProviderConfigurations": [{"credentialProviderType": "API_KEY"}]}, "apiKeyCredentialProvider"),
    ],
)
async def test_members_of_targets_that_cannot_be(
    control: ControlStack, orders: OrdersService, members: dict[str, Any], match: str
) -> None:
    gateway_id = (await control.gateway())["gatewayId"]
    request = {"gatewayIdentifier": gateway_id, "name": "Orders", "targetConfiguration": openapi(orders)} | members
    with refused("ValidationException", match):
        await control("create_gateway_target", **request)


async def test_a_target_is_not_made_while_its_gateway_is_deleted(control: ControlStack, orders: OrdersService) -> None:
    """Whichever comes first: never a target without its gateway."""
    for _ in range(5):
        gateway_id = (await control.gateway("Race"))["gatewayId"]
        place = {"gatewayIdentifier": gateway_id}
        made: Any
        deleted: Any
        made, deleted = await asyncio.gather(
            control("create_gateway_target", **place, name="Orders", targetConfiguration=openapi(orders)),
            control("delete_gateway", **place),
            return_exceptions=True,
        )
        left = await control.tools.resources.targets(gateway_id)
        assert isinstance(made, ClientError) != isinstance(deleted, ClientError)
        assert bool(left) == isinstance(deleted, ClientError)
        if left:
            await control("delete_gateway_target", **place, targetId=left[0].id)
            await control("delete_gateway", **place)


async def test_a_client_token_makes_one_target(control: ControlStack, orders: OrdersService) -> None:
    gateway_id = (await control.gateway())["gatewayId"]
    request = {
        "gatewayIdentifier": gateway_id,
        "name": "Orders",
        "targetConfiguration": openapi(orders),
        "clientToken": secrets.token_hex(20),
    }
    first, second = [await control("create_gateway_target", **request) for _ in range(2)]
    assert first["targetId"] == second["targetId"]


# Rate limits.


async def test_a_rate_limit_from_creation_to_deletion(control: ControlStack) -> None:
    """GOV-3"""
    gateway_id = (await control.gateway())["gatewayId"]
    place = {"gatewayIdentifier": gateway_id}
    made = await control(
        "create_gateway_rate_limit", **place, rateLimitId="per-tool", dimensionKeys=["toolName"], entries=[LIMIT]
    )
    assert made["status"] == "ACTIVE" and made["entries"] == [LIMIT]
    limit = place | {"rateLimitId": "per-tool"}
    assert (await control("get_gateway_rate_limit", **limit))["dimensionKeys"] == ["toolName"]
    with refused("ConflictException", "these dimension keys"):
        await control("create_gateway_rate_limit", **place, dimensionKeys=["toolName"], entries=[LIMIT])
    with refused("ConflictException", "per-tool"):
        await control(
            "create_gateway_rate_limit",
            **place,
            rateLimitId="per-tool",
            dimensionKeys=["targetName"],
            entries=[{**LIMIT, "dimensions": {"targetName": "*"}}],
        )
    faster = {**LIMIT, "requests": [{"rate": 9.5, "period": "second"}]}
    changed = await control("update_gateway_rate_limit", **limit, entries=[faster], description="d")
    assert changed["entries"] == [faster] and changed["description"] == "d"
    [seen] = await control.tools.resources.rate_limits(gateway_id)
    assert seen.entries == [faster]

    other = {"dimensionKeys": ["targetName"], "entries": [{**LIMIT, "dimensions": {"targetName": "Orders"}}]}
    put = await control(
        "batch_put_gateway_rate_limits",
        **place,
        rateLimits=[{"dimensionKeys": ["toolName"], "entries": [LIMIT]}, other],
    )
    assert [one["entries"] for one in put["rateLimits"]] == [[LIMIT], other["entries"]]
    assert put["rateLimits"][0]["rateLimitId"] == "per-tool"
    assert len((await control("list_gateway_rate_limits", **place))["rateLimits"]) == 2
    assert (await control("delete_gateway_rate_limit", **limit))["status"] == "DELETING"
    with refused("ResourceNotFoundException"):
        await control("get_gateway_rate_limit", **limit)
    assert len(await control.tools.resources.rate_limits(gateway_id)) == 1


@pytest.mark.parametrize(
    ("keys", "entry", "match"),
    [
        (["toolName"], {"dimensions": {"targetName": "x"}}, "value for each"),
        (["targetName", "toolName"], {"dimensions": {"targetName": "*", "toolName": "x"}}, "last values"),
        (["toolName", "toolName"], {"dimensions": {"toolName": "x"}}, "twice"),
        (["qualifiedModelId"], {"dimensions": {"qualifiedModelId": "*"}}, "not supported"),
        (["$.context.request.header.x"], {"dimensions": {"$.context.request.header.x": "*"}}, "not supported"),
        (["toolName"], {"dimensions": {"toolName": "x"}, "tokens": [{"rate": 1, "period": "minute"}]}, "tokens"),
        (["toolName"], {"dimensions": {"toolName": "x"}, "requests": []}, "requests|limits something"),
    ],
)
async def test_rate_limits_that_cannot_be(
    control: ControlStack, keys: list[str], entry: dict[str, Any], match: str
) -> None:
    gateway_id = (await control.gateway())["gatewayId"]
    entry = {"requests": [{"rate": 1, "period": "minute"}]} | entry
    if not entry["requests"]:
        del entry["requests"]
    with refused("ValidationException", match):
        await control("create_gateway_rate_limit", gatewayIdentifier=gateway_id, dimensionKeys=keys, entries=[entry])


# What the data path sees.


async def test_every_replica_sees_a_change_at_once(
    control: ControlStack, store: ValkeyKeyValueStore, orders: OrdersService
) -> None:
    gateway = await control.gateway()
    gateway_id = gateway["gatewayId"]
    replicas = [StoredResources(store) for _ in range(3)]
    for replica in replicas:
        assert await replica.targets(gateway_id) == ()
        assert await replica.gateway("shop-0000000000") is None
    made = await control(
        "create_gateway_target", gatewayIdentifier=gateway_id, name="Orders", targetConfiguration=openapi(orders)
    )
    for replica in replicas:
        [target] = await replica.targets(gateway_id)
        assert target.id == made["targetId"] and json.dumps([dict(tool.input_schema) for tool in target.tools])
        assert (await replica.targets(gateway_id))[0] is target  # not read again
    await control("delete_gateway_target", gatewayIdentifier=gateway_id, targetId=made["targetId"])
    for replica in replicas:
        assert await replica.targets(gateway_id) == ()
    await control("delete_gateway", gatewayIdentifier=gateway_id)
    for replica in replicas:
        assert await replica.gateway(gateway_id) is None
