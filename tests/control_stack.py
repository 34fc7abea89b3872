"""The gateway's control plane behind the whole HTTP chain, as an operator's boto3 client meets it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from session_stack import DEPLOYMENT, SessionStack, session_stack

from agentkeep.core.clock import SystemClock
from agentkeep.gateway.control.plane import gateway_control
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.gateway.tools import ToolGateway
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.storage.valkey import ValkeyKeyValueStore

ROLE = f"arn:aws:iam::{DEPLOYMENT.account}:role/gateway"
PUBLIC_URL = "http://platform.example"


@dataclass
class ControlStack:
    stack: SessionStack
    tools: ToolGateway
    identity: IdentityPlane
    arguments: dict[str, Any]
    client: Any

    async def __call__(self, operation: str, **members: Any) -> Any:
        """One call of the unmodified client."""
        call: Callable[..., Any] = getattr(self.client, operation)
        return await asyncio.to_thread(call, **members)

    async def gateway(self, name: str = "Shop", **members: Any) -> Any:
        made = await self("create_gateway", name=name, roleArn=ROLE, **({"authorizerType": "AWS_IAM"} | members))
        return await self("get_gateway", gatewayIdentifier=made["gatewayId"])

    async def engine(self, name: str = "rules") -> str:
        return str((await self("create_policy_engine", name=name))["policyEngineId"])

    async def policy(self, engine_id: str, name: str, statement: str, **members: Any) -> Any:
        made = await self(
            "create_policy",
            policyEngineId=engine_id,
            name=name,
            definition={"cedar": {"statement": statement}},
            **members,
        )
        return await self("get_policy", policyEngineId=engine_id, policyId=made["policyId"])


@asynccontextmanager
async def control_stack(store: ValkeyKeyValueStore) -> AsyncIterator[ControlStack]:
    async with AsyncExitStack() as exit:
        clock, settings = SystemClock(), GatewaySettings(allowed_target_hosts=("127.0.0.0/8",), listing_seconds=3)
        identity = IdentityPlane(
            store, FileMasterKey(secrets.token_bytes(32)), DEPLOYMENT, clock, IdentitySettings(), public_url=PUBLIC_URL
        )
        exit.push_async_callback(identity.close)
        tools = ToolGateway(store, identity.outbound, settings, DEPLOYMENT, clock)
        control = gateway_control(
            store, DEPLOYMENT, clock, tools.lister, identity.authorizers, identity.workload_tokens, PUBLIC_URL
        )
        stack = await exit.enter_async_context(session_stack(store, [*control, identity]))
        arguments = await stack.operator()
        client = boto3.client(
            "bedrock-agentcore-control", config=Config(retries={"total_max_attempts": 1}), **arguments
        )
        exit.callback(client.close)
        yield ControlStack(stack, tools, identity, arguments, client)
