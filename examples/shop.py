"""Sets the shop up on a deployment: the agent, its memory, its tools behind a gateway, and who may use them.

All by boto3, as on AgentCore; but for the tool's class in the catalogue, which AgentCore does not have. What is there
already is used again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployment import Deployment

NAME = "support_agent"
OPENAPI = Path(__file__).parent / "order_service" / "openapi.json"
STATUS, REFUND = "orders___get_order_status", "orders___request_refund"
#: Whom the shop trusts with any refund; everyone else may ask for small ones.
TRUSTED, SMALL_REFUND = "alice", 50
#: An endpoint whose sessions have little to spend.
THRIFTY, THRIFTY_TOKENS = "thrifty", 3000
BUDGET_TAG = "agentkeep:session-token-budget"
ROLE = "arn:aws:iam::000000000000:role/agentkeep"
WAIT_SECONDS = 120


@dataclass(frozen=True)
class Shop:
    runtime_id: str
    runtime_arn: str
    memory_id: str
    gateway_id: str


def set_up(deployment: Deployment) -> Shop:
    control = deployment.client("bedrock-agentcore-control")
    memory_id = memory(control)
    gateway = gateway_of(control, deployment)
    runtime_id = deployment.deploy({"MEMORY_ID": memory_id, "GATEWAY_URL": gateway["gatewayUrl"]})
    runtime_arn = control.get_agent_runtime(agentRuntimeId=runtime_id)["agentRuntimeArn"]
    order_target(control, gateway["gatewayId"], deployment.order_service)
    policies(control, gateway, runtime_id)
    deployment.operate("PUT", f"/catalogue/{gateway['gatewayId']}/{REFUND}", {"riskClass": "high-impact"})
    thrifty_endpoint(control, runtime_id, runtime_arn)
    return Shop(runtime_id, runtime_arn, memory_id, gateway["gatewayId"])


def memory(control: Any) -> str:
    for page in control.get_paginator("list_memories").paginate():
        for found in page["memories"]:
            if found["id"].rpartition("-")[0] == NAME:
                return str(found["id"])
    memory_id = control.create_memory(name=NAME, eventExpiryDuration=90)["memory"]["id"]
    until(lambda: control.get_memory(memoryId=memory_id)["memory"]["status"] == "ACTIVE")
    return str(memory_id)


def gateway_of(control: Any, deployment: Deployment) -> Any:
    """Users call it with their own tokens; agents with those of the users they act for."""
    for found in control.list_gateways(maxResults=100)["items"]:
        if found["name"] == "shop":
            return control.get_gateway(gatewayIdentifier=found["gatewayId"])
    made = control.create_gateway(
        name="shop",
        roleArn=ROLE,
        protocolType="MCP",
        authorizerType="CUSTOM_JWT",
        authorizerConfiguration={
            "customJWTAuthorizer": {
                "discoveryUrl": deployment.discovery_url,
                "allowedAudience": [deployment.audience],
            }
        },
    )
    until(lambda: control.get_gateway(gatewayIdentifier=made["gatewayId"])["status"] == "READY")
    return control.get_gateway(gatewayIdentifier=made["gatewayId"])


def order_target(control: Any, gateway_id: str, url: str) -> None:
    """The order service as tools. It sees the user's own token, so it knows who asks."""
    document = {**json.loads(OPENAPI.read_text()), "servers": [{"url": url}]}
    definition = {
        "name": "orders",
        "targetConfiguration": {"mcp": {"openApiSchema": {"inlinePayload": json.dumps(document)}}},
        "credentialProviderConfigurations": [{"credentialProviderType": "JWT_PASSTHROUGH"}],
    }
    known = control.list_gateway_targets(gatewayIdentifier=gateway_id)["items"]
    if known:
        target_id = known[0]["targetId"]
        control.update_gateway_target(gatewayIdentifier=gateway_id, targetId=target_id, **definition)
    else:
        target_id = control.create_gateway_target(gatewayIdentifier=gateway_id, **definition)["targetId"]

    def ready() -> bool:
        target = control.get_gateway_target(gatewayIdentifier=gateway_id, targetId=target_id)
        if target["status"] == "FAILED":
            raise RuntimeError(f"The order service cannot be a target: {target.get('statusReasons')}")
        return bool(target["status"] == "READY")

    until(ready)


def policies(control: Any, gateway: Any, runtime_id: str) -> None:
    """Everything is denied but this: the agent may look orders up for anyone, ask for small refunds for anyone, and for
    any refund for whom the shop trusts."""
    engine_id = next(
        (
            found["policyEngineId"]
            for found in control.list_policy_engines()["policyEngines"]
            if found["name"] == "shop"
        ),
        None,
    )
    if engine_id is None:
        engine_id = control.create_policy_engine(name="shop")["policyEngineId"]
    until(lambda: control.get_policy_engine(policyEngineId=engine_id)["status"] == "ACTIVE")
    agent = f'principal.hasTag("agentkeep:agent") && principal.getTag("agentkeep:agent") == "{runtime_id}"'
    resource = f'resource == AgentCore::Gateway::"{gateway["gatewayArn"]}"'
    statements = {
        "look_orders_up": f'permit(principal, action == AgentCore::Action::"{STATUS}", {resource}) when {{ {agent} }};',
        "small_refunds": f'permit(principal, action == AgentCore::Action::"{REFUND}", {resource}) '
        f"when {{ {agent} && context.input.amount <= {SMALL_REFUND} }};",
        "trusted_refunds": f'permit(principal == AgentCore::OAuthUser::"{TRUSTED}", '
        f'action == AgentCore::Action::"{REFUND}", {resource}) when {{ {agent} }};',
    }
    known = {policy["name"]: policy for policy in control.list_policies(policyEngineId=engine_id)["policies"]}
    for name, statement in statements.items():
        definition = {"cedar": {"statement": statement}}
        if name not in known:
            made = control.create_policy(policyEngineId=engine_id, name=name, definition=definition)
        elif known[name]["definition"] != definition:
            made = control.update_policy(
                policyEngineId=engine_id, policyId=known[name]["policyId"], definition=definition
            )
        else:
            continue
        until(lambda policy_id=made["policyId"]: policy_is_active(control, engine_id, policy_id))
    engine_arn = control.get_policy_engine(policyEngineId=engine_id)["policyEngineArn"]
    control.update_gateway(
        gatewayIdentifier=gateway["gatewayId"],
        name=gateway["name"],
        roleArn=gateway["roleArn"],
        authorizerType=gateway["authorizerType"],
        authorizerConfiguration=gateway["authorizerConfiguration"],
        protocolType=gateway["protocolType"],
        policyEngineConfiguration={"arn": engine_arn, "mode": "ENFORCE"},
    )
    until(lambda: control.get_gateway(gatewayIdentifier=gateway["gatewayId"])["status"] == "READY")


def policy_is_active(control: Any, engine_id: str, policy_id: str) -> bool:
    policy = control.get_policy(policyEngineId=engine_id, policyId=policy_id)
    if policy["status"].endswith("FAILED"):
        raise RuntimeError(f"Policy {policy['name']} is {policy['status']}: {policy['statusReasons']}")
    return bool(policy["status"] == "ACTIVE")


def thrifty_endpoint(control: Any, runtime_id: str, runtime_arn: str) -> None:
    """The same agent, with a small token budget for each session."""
    names = [
        found["name"] for found in control.list_agent_runtime_endpoints(agentRuntimeId=runtime_id)["runtimeEndpoints"]
    ]
    version = control.get_agent_runtime(agentRuntimeId=runtime_id)["agentRuntimeVersion"]
    change = control.update_agent_runtime_endpoint if THRIFTY in names else control.create_agent_runtime_endpoint
    name = {"endpointName": THRIFTY} if THRIFTY in names else {"name": THRIFTY}
    change(agentRuntimeId=runtime_id, agentRuntimeVersion=version, **name)
    control.tag_resource(
        resourceArn=f"{runtime_arn}/runtime-endpoint/{THRIFTY}", tags={BUDGET_TAG: str(THRIFTY_TOKENS)}
    )
    until(
        lambda: control.get_agent_runtime_endpoint(agentRuntimeId=runtime_id, endpointName=THRIFTY)["status"] == "READY"
    )


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready within {WAIT_SECONDS} seconds")
        time.sleep(0.05)
