"""Policy engines and policies through unmodified clients: boto3 with its waiters, and the SDK's."""

from __future__ import annotations

import asyncio
import secrets
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from control_stack import ROLE, ControlStack, control_stack
from session_stack import DEPLOYMENT
from tool_stand_ins import OrdersService, orders_service

from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.storage.valkey import ValkeyKeyValueStore

with warnings.catch_warnings():  # the SDK's own, at its import
    warnings.simplefilter("ignore")
    from bedrock_agentcore.gateway.client import GatewayClient
    from bedrock_agentcore.policy.client import PolicyEngineClient

EVERYTHING = "permit(principal, action, resource is AgentCore::Gateway);"
WAIT = {"Delay": 0, "MaxAttempts": 3}


@pytest.fixture
async def control(store: ValkeyKeyValueStore) -> AsyncIterator[ControlStack]:
    async with control_stack(store) as stack:
        yield stack


@pytest.fixture
async def orders() -> AsyncIterator[OrdersService]:
    async with orders_service() as service:
        yield service


@pytest.fixture
async def shop(control: ControlStack, orders: OrdersService) -> Any:
    """A gateway with the target Orders (get_order, request_refund)."""
    gateway = await control.gateway()
    await control(
        "create_gateway_target",
        gatewayIdentifier=gateway["gatewayId"],
        name="Orders",
        targetConfiguration={"mcp": {"openApiSchema": {"inlinePayload": orders.document}}},
    )
    return gateway


def refused(code: str, match: str = "") -> Any:
    return pytest.raises(ClientError, match=rf"(?s)\({code}\).*{match}")


def read_orders(gateway: Any, condition: str = "true", action: str = "Orders___get_order") -> str:
    return (
        f'permit(principal is AgentCore::OAuthUser, action == AgentCore::Action::"{action}", '
        f'resource == AgentCore::Gateway::"{gateway["gatewayArn"]}") when {{ {condition} }};'
    )


async def wait(control: ControlStack, waiter: str, **members: Any) -> None:
    await asyncio.to_thread(control.client.get_waiter(waiter).wait, **members, WaiterConfig=WAIT)


async def test_an_engine_and_a_policy_from_creation_to_deletion(control: ControlStack, shop: Any) -> None:
    """With boto3's own waiters."""
    made = await control("create_policy_engine", name="rules", description="d", tags={"team": "shop"})
    engine = {"policyEngineId": made["policyEngineId"]}
    assert made["status"] == "CREATING" and made["statusReasons"] == []
    assert made["policyEngineArn"] == DEPLOYMENT.arn(f"policy-engine/{made['policyEngineId']}")
    await wait(control, "policy_engine_active", **engine)
    changed = await control("update_policy_engine", **engine, description={"optionalValue": "new"})
    assert (changed["status"], changed["description"]) == ("UPDATING", "new")
    found = await control("get_policy_engine", **engine)
    assert (found["status"], found["description"]) == ("ACTIVE", "new")

    definition = {"cedar": {"statement": read_orders(shop)}}
    created = await control("create_policy", **engine, name="readers", definition=definition, description="p")
    policy = engine | {"policyId": created["policyId"]}
    assert created["status"] == "CREATING"
    await wait(control, "policy_active", **policy)
    found = await control("get_policy", **policy)
    assert (found["definition"], found["enforcementMode"], found["description"]) == (definition, "ACTIVE", "p")
    assert found["policyArn"] == f"{made['policyEngineArn']}/policy/{created['policyId']}"
    narrower = {"cedar": {"statement": read_orders(shop, 'principal.hasTag("staff")')}}
    changed = await control("update_policy", **policy, definition=narrower, enforcementMode="LOG_ONLY")
    assert changed["status"] == "UPDATING"
    found = await control("get_policy", **policy)
    assert (found["status"], found["definition"], found["enforcementMode"], found["description"]) == (
        "ACTIVE", narrower, "LOG_ONLY", "p",
    )  # fmt: skip

    [listed] = (await control("list_policies", **engine, targetResourceScope=shop["gatewayArn"]))["policies"]
    assert listed["policyId"] == created["policyId"] and listed["definition"] == narrower
    elsewhere = DEPLOYMENT.arn("gateway/other-0123456789")
    assert (await control("list_policies", **engine, targetResourceScope=elsewhere))["policies"] == []
    [summary] = (await control("list_policy_summaries", **engine))["policies"]
    assert "definition" not in summary and (await control("get_policy_summary", **policy))["name"] == "readers"
    [summary] = (await control("list_policy_engine_summaries"))["policyEngines"]
    assert "description" not in summary and (await control("get_policy_engine_summary", **engine))["name"] == "rules"

    with refused("ConflictException", "has policies"):
        await control("delete_policy_engine", **engine)
    assert (await control("delete_policy", **policy))["status"] == "DELETING"
    await wait(control, "policy_deleted", **policy)
    assert (await control("delete_policy_engine", **engine))["status"] == "DELETING"
    await wait(control, "policy_engine_deleted", **engine)


async def test_the_sdks_clients(control: ControlStack, shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients of the bedrock-agentcore SDK, moved here by their endpoint's variable alone."""
    arguments = control.arguments
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_AGENTCORE_CONTROL", arguments["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", arguments["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", arguments["aws_secret_access_key"])

    def work() -> None:
        policies, gateways = PolicyEngineClient(region_name="us-east-1"), GatewayClient(region_name="us-east-1")
        engine = policies.create_policy_engine_and_wait(name="rules")
        assert policies.create_or_get_policy_engine(name="rules")["policyEngineId"] == engine["policyEngineId"]
        policy = policies.create_policy_and_wait(
            policyEngineId=engine["policyEngineId"],
            name="all",
            definition={"cedar": {"statement": EVERYTHING}},
            validationMode="IGNORE_ALL_FINDINGS",
        )
        assert policy["status"] == "ACTIVE"
        attached = {"arn": engine["policyEngineArn"], "mode": "ENFORCE"}
        gateway = gateways.create_gateway_and_wait(
            name="Sdk", roleArn=ROLE, authorizerType="AWS_IAM", protocolType="MCP", policyEngineConfiguration=attached
        )
        assert gateway["status"] == "READY" and gateways.get_gateway_by_name(name="Sdk")["policyEngineConfiguration"]
        updated = gateways.update_gateway_and_wait(
            gatewayIdentifier=gateway["gatewayId"], name="Sdk", roleArn=ROLE, authorizerType="AWS_IAM", description="d"
        )
        assert updated["description"] == "d"
        gateways.delete_gateway_and_wait(gatewayIdentifier=gateway["gatewayId"])
        policies.delete_policy_and_wait(policyEngineId=engine["policyEngineId"], policyId=policy["policyId"])
        policies.delete_policy_engine_and_wait(policyEngineId=engine["policyEngineId"])
        assert gateways.get_gateway_by_name(name="Sdk") is None

    await asyncio.to_thread(work)


async def test_an_engine_in_use_is_not_deleted(control: ControlStack) -> None:
    engine_id = await control.engine()
    attach = {"policyEngineConfiguration": {"arn": DEPLOYMENT.arn(f"policy-engine/{engine_id}"), "mode": "ENFORCE"}}
    gateway = await control.gateway("Shop", **attach)
    with refused("ConflictException", f"attached to gateway {gateway['gatewayId']}"):
        await control("delete_policy_engine", policyEngineId=engine_id)
    await control(
        "update_gateway", gatewayIdentifier=gateway["gatewayId"], name="Shop", roleArn=ROLE, authorizerType="AWS_IAM"
    )
    await control("delete_policy_engine", policyEngineId=engine_id)
    with refused("ValidationException", "no policy engine"):
        await control.gateway("Other", **attach)


async def test_an_engine_is_not_deleted_under_a_policy_that_is_being_made(control: ControlStack) -> None:
    for number in range(5):
        engine_id = await control.engine(f"race{number}")
        made: Any
        deleted: Any
        made, deleted = await asyncio.gather(
            control.policy(engine_id, "all", EVERYTHING, validationMode="IGNORE_ALL_FINDINGS"),
            control("delete_policy_engine", policyEngineId=engine_id),
            return_exceptions=True,
        )
        assert isinstance(made, ClientError) != isinstance(deleted, ClientError)


@pytest.mark.parametrize(
    ("statement", "match"),
    [
        ("permit(principal, action, resource is AgentCore::Gateway", "not a Cedar policy"),
        (EVERYTHING + EVERYTHING, "holds 2 policies"),
        ("// a comment and nothing else at all, long enough", "holds 0 policies"),
        ("permit(principal == ?principal, action, resource is AgentCore::Gateway);", "templates"),
        (EVERYTHING[:-1] + " when { " + "!(" * 300 + "true" + ")" * 300 + " };", "Cedar policy|nests"),
        (EVERYTHING[:-1] + " when { " + "true && " * 900 + "true };", "nests"),
        # Its nesting hidden from a reader that takes strings and comments for more than they are.
        (EVERYTHING[:-1] + " when { //\r " + "(" * 2000 + "true" + ")" * 2000 + " };", "nests"),
        (EVERYTHING[:-1] + ' when { // "\n ' + "(" * 2000 + "true" + ")" * 2000 + ' // "\n };', "nests"),
        (
            EVERYTHING[:-1] + ' when { "' + ")" * 900 + '\\"" == "" || ' + "(" * 900 + "true" + ")" * 900 + " };",
            "nests",
        ),
        (EVERYTHING[:-1] + " when { " + "[" * 2000 + "]" * 2000 + " == [] };", "Cedar policy|nests"),
    ],
)
async def test_what_is_no_policy_is_refused(control: ControlStack, statement: str, match: str) -> None:
    engine_id = await control.engine()
    with refused("ValidationException", match):
        await control.policy(engine_id, "p", statement, validationMode="IGNORE_ALL_FINDINGS")
    assert (await control("list_policies", policyEngineId=engine_id))["policies"] == []


@pytest.mark.parametrize("definition", ["policy", "policyGeneration"])
async def test_other_kinds_of_definitions_are_refused(control: ControlStack, definition: str) -> None:
    engine_id = await control.engine()
    body = (
        {"statement": EVERYTHING}
        if definition == "policy"
        else {"policyGenerationId": "gen-0123456789", "policyGenerationAssetId": "asset-0123456789"}
    )
    with refused("ValidationException", f"definition.{definition} is not supported"):
        await control("create_policy", policyEngineId=engine_id, name="p", definition={definition: body})


@pytest.mark.parametrize(
    ("condition", "action", "match"),
    [
        ("context.input.nothing == 1", "Orders___get_order", "nothing"),
        ("context.input.order_id > 5", "Orders___get_order", "order_id|expected"),
        ("true", "Orders___drop_tables", "unrecognized action"),
        ("principal.getTag(\"role\") == \"x\"", "Orders___get_order", "tag"),
        ("principal.secret == 1", "Orders___get_order", "secret"),
    ],
)  # fmt: skip
async def test_a_policy_that_does_not_fit_the_tools_fails(
    control: ControlStack, shop: Any, condition: str, action: str, match: str
) -> None:
    """Whatever the validation mode: the schema is always checked; the policy never counts, and says why."""
    engine_id = await control.engine()
    found = await control.policy(
        engine_id, "p", read_orders(shop, condition, action), validationMode="IGNORE_ALL_FINDINGS"
    )
    assert found["status"] == "CREATE_FAILED"
    assert any(part in " ".join(found["statusReasons"]) for part in match.split("|")), found["statusReasons"]


async def test_policies_are_about_gateways_there_are(control: ControlStack, shop: Any) -> None:
    engine_id = await control.engine()
    foreign = {"gatewayArn": shop["gatewayArn"].replace("000000000000", "123456789012")}
    for number, gateway in enumerate((foreign, {"gatewayArn": DEPLOYMENT.arn("gateway/none-0123456789")})):
        found = await control.policy(engine_id, f"p{number}", read_orders(gateway))
        assert found["status"] == "CREATE_FAILED" and "no gateway of this deployment" in found["statusReasons"][0]
    wide = 'permit(principal, action == AgentCore::Action::"Orders___get_order", resource is AgentCore::Gateway);'
    found = await control.policy(engine_id, "wide", wide)
    assert found["status"] == "CREATE_FAILED" and "resource ==" in found["statusReasons"][0]


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        (EVERYTHING, "Overly Permissive"),
        ("permit(principal is AgentCore::IamEntity, action, resource);", "Overly Permissive"),
        ('permit(principal, action in AgentCore::Action::"Mcp", resource) when { 1 < 2 };', "Overly Permissive"),
        ("permit(principal, action, resource) unless { false };", "Overly Permissive"),
        ("forbid(principal, action, resource is AgentCore::Gateway);", "Overly Restrictive"),
        ('permit(principal is AgentCore::OAuthUser, action, resource) when { principal.hasTag("staff") };', None),
        ('permit(principal == AgentCore::OAuthUser::"alice", action, resource is AgentCore::Gateway);', None),
    ],
)
async def test_policies_that_say_everything_are_found(
    control: ControlStack, statement: str, finding: str | None
) -> None:
    """GOV-1"""
    engine_id = await control.engine()
    found = await control.policy(engine_id, "p", statement)
    if finding is None:
        assert (found["status"], found["statusReasons"]) == ("ACTIVE", [])
        return
    assert found["status"] == "CREATE_FAILED" and found["statusReasons"][0].startswith(finding)
    kept = await control.policy(engine_id, "q", statement, validationMode="IGNORE_ALL_FINDINGS")
    assert kept["status"] == "ACTIVE"


async def test_a_failed_update_leaves_the_policy_deciding_as_it_was(control: ControlStack, shop: Any) -> None:
    engine_id = await control.engine()
    attached = {"arn": DEPLOYMENT.arn(f"policy-engine/{engine_id}"), "mode": "ENFORCE"}
    await control(
        "update_gateway", gatewayIdentifier=shop["gatewayId"], name="Shop", roleArn=ROLE, authorizerType="AWS_IAM",
        policyEngineConfiguration=attached,
    )  # fmt: skip
    made = await control.policy(engine_id, "p", read_orders(shop))
    policy = {"policyEngineId": engine_id, "policyId": made["policyId"]}
    caller = Caller(CallerKind.SESSION, "p", user=User("alice"), session=SessionRef("agent-0123456789", "s"))

    async def allowed() -> bool:
        gateway = await control.tools.resources.gateway(shop["gatewayId"])
        assert gateway is not None
        return (await control.tools.policies.decide(gateway, caller, "Orders", "get_order", {"order_id": "1"})).allowed

    assert await allowed()
    await control("update_policy", **policy, definition={"cedar": {"statement": read_orders(shop, "context.nope")}})
    found = await control("get_policy", **policy)
    assert found["status"] == "UPDATE_FAILED" and found["statusReasons"]
    assert found["definition"]["cedar"]["statement"] == read_orders(shop)
    assert await allowed()
    await control("update_policy", **policy, definition={"cedar": {"statement": read_orders(shop, "false")}})
    assert (await control("get_policy", **policy))["status"] == "ACTIVE" and not await allowed()
    await control("delete_policy", **policy)
    assert not await allowed()


async def test_names_and_client_tokens(control: ControlStack) -> None:
    engine_id, token = await control.engine(), secrets.token_hex(20)
    with refused("ConflictException", "rules exists"):
        await control.engine()
    request = {
        "policyEngineId": engine_id,
        "name": "p",
        "definition": {"cedar": {"statement": EVERYTHING}},
        "validationMode": "IGNORE_ALL_FINDINGS",
    }
    first, second = [await control("create_policy", **request, clientToken=token) for _ in range(2)]
    assert first["policyId"] == second["policyId"]
    with refused("ConflictException", "policy named p"):
        await control("create_policy", **request)
    with refused("ResourceNotFoundException"):
        await control("create_policy", **request | {"policyEngineId": "none-0123456789"})
    for number in range(4):
        await control("create_policy", **request | {"name": f"p{number}"})
    pages = control.client.get_paginator("list_policies").paginate(
        policyEngineId=engine_id, PaginationConfig={"PageSize": 2}
    )
    listed = await asyncio.to_thread(lambda: [len(page["policies"]) for page in pages])
    assert listed == [2, 2, 1]
