"""IDN-2: who invokes agents by a role does what its policies allow, and no more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.credentials import Credentials
from runtime_wire import RuntimeWire, runtime_wire

from agentkeep.core.grants import user_arn
from agentkeep.identity.access_keys.records import RoleSession
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.storage.valkey import ValkeyKeyValueStore

SESSION = "x-amzn-bedrock-agentcore-runtime-session-id"
USER = "x-amzn-bedrock-agentcore-runtime-user-id"


@pytest.fixture
async def platform(
    make_platform: Any, store: ValkeyKeyValueStore, clock: Any, settings: RuntimeSettings, tmp_path: Path
) -> AsyncIterator[Any]:
    here = make_platform.deployment

    def allowed(actions: list[str], resource: str = "*") -> dict[str, Any]:
        return {"Effect": "Allow", "Action": actions, "Resource": resource}

    invoke = ["bedrock-agentcore:InvokeAgentRuntime", "bedrock-agentcore:StopRuntimeSession"]
    policies = {
        "ours": [allowed(invoke, here.arn("runtime/ours-*"))],
        "users": [
            allowed([*invoke, "bedrock-agentcore:InvokeAgentRuntimeForUser"]),
            allowed(["agentkeep:ActForUser"], user_arn(here.account, "alice")),
        ],
        "sockets": [allowed(["bedrock-agentcore:InvokeAgentRuntimeWithWebSocketStream"])],
    }
    trust = [{"issuer": "https://login.example.com", "audiences": ["agentkeep"]}]
    roles = [
        {"name": name, "trust": trust, "policy": {"Version": "2012-10-17", "Statement": statements}}
        for name, statements in policies.items()
    ]
    file = tmp_path / "roles.json"
    file.write_text(json.dumps({"roles": roles}))
    identity = IdentityPlane(store, FileMasterKey(b"k" * 32), here, clock, IdentitySettings(roles=file))
    platform = make_platform(store, clock, tmp_path / "runtime", identity, settings)
    await platform.plane.start()
    yield platform
    await platform.plane.stop()
    await platform.driver.close()
    await identity.close()


@pytest.fixture
async def wire(platform: Any) -> AsyncIterator[RuntimeWire]:
    async with runtime_wire(platform) as wire:
        yield wire


async def by(wire: RuntimeWire, role: str) -> None:
    """From now on requests are signed with keys of this role."""
    expires = datetime.now(UTC) + timedelta(seconds=900)
    key = await wire.platform.identity.keys.issue_for_role(RoleSession(role, "olivia", "sub", "iss"), expires)
    wire.credentials = Credentials(key.id, key.secret, key.session_token)


async def test_only_the_runtimes_it_names(platform: Any, wire: RuntimeWire) -> None:
    ours, others = await platform.create("ours"), await platform.create("others")
    await by(wire, "ours")
    named = {SESSION: "s" * 33}
    for _ in range(2):  # also when all that was looked up is known
        assert (await wire.ask(ours, b"{}", named)).status_code == 200
        refused = await wire.ask(others, b"{}", named)
        assert refused.status_code == 403
        on = f"bedrock-agentcore:InvokeAgentRuntime on resource: {platform.deployment.arn(f'runtime/{others}')}"
        said = f"assumed-role/ours/olivia is not authorized to perform: {on} because no identity-based policy allows"
        assert said in refused.json()["message"]
    assert (await wire.ask(ours, b"{}", {**named, USER: "alice"})).status_code == 403
    assert (await wire.ask(ours, b"", named, tail="stopruntimesession")).status_code == 200
    assert (await wire.ask(others, b"", named, tail="stopruntimesession")).status_code == 403


async def test_only_for_the_users_it_may_act_for(platform: Any, wire: RuntimeWire) -> None:
    """By ForUser and, of each user, ActForUser; where the session is known, and where it is not."""
    agent = await platform.create("agent")
    await by(wire, "users")
    for _ in range(2):
        assert (await wire.ask(agent, b"{}", {SESSION: "a" * 33, USER: "alice"})).status_code == 200
        refused = await wire.ask(agent, b"{}", {SESSION: "b" * 33, USER: "bob"})
        assert refused.status_code == 403 and "agentkeep:ActForUser on resource" in refused.json()["message"]
    await by(wire, "sockets")
    assert (await wire.ask(agent, b"{}", {SESSION: "a" * 33})).status_code == 403
