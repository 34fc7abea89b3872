"""A role's keys where services are processes of their own: the same caller, policies and all, and dead as soon."""

from __future__ import annotations

import json
import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from port_server import calling, serving

from agentkeep.core.call import CallerKind
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import AccessDeniedException
from agentkeep.core.identifiers import Deployment
from agentkeep.core.permissions import authorized
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.access_keys.records import RoleSession
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.roles.roles import Roles
from agentkeep.identity.settings import IdentitySettings
from agentkeep.service.mounts import OPERATORS_MOUNTS
from agentkeep.service.ports.caches import CachedKeys
from agentkeep.service.ports.catalogue import KEYS
from agentkeep.storage.valkey import ValkeyKeyValueStore

HERE = Deployment("us-west-2", "123456789012")
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def keys(store: ValkeyKeyValueStore) -> AccessKeys:
    statement = {
        "Effect": "Allow",
        "Action": "bedrock-agentcore:ListEvents",
        "Resource": HERE.arn("memory/notes-*"),
        "Condition": {"StringEqualsIfExists": {"bedrock-agentcore:actorId": ["alice"]}},
    }
    role = {
        "name": "ops",
        "trust": [{"issuer": "https://login.example.com", "audiences": ["agentkeep"]}],
        "policy": {"Version": "2012-10-17", "Statement": [statement]},
    }
    roles = Roles.parse(json.dumps({"roles": [role]}).encode(), "roles.json", HERE)
    master_key = FileMasterKey(secrets.token_bytes(32))
    return AccessKeys(store, master_key, HERE, SystemClock(), IdentitySettings(), None, roles)


async def test_the_same_caller_over_http(keys: AccessKeys) -> None:
    issued = await keys.issue_for_role(
        RoleSession("ops", "olivia", "sub", "iss"), datetime.now(UTC) + timedelta(seconds=900)
    )
    async with serving("identity", {KEYS: keys}) as server, calling("memory", server.url) as peers:
        elsewhere = CachedKeys(peers.port(KEYS), SystemClock(), 0)
        found = await elsewhere.find(issued.id)
        assert found is not None and found == issued
        assert found.caller.grant == issued.caller.grant and found.caller.kind is CallerKind.ROLE
        asked = ("bedrock-agentcore:ListEvents", [HERE.arn("memory/notes-0123456789")])
        assert authorized(found.caller, *asked, {"bedrock-agentcore:actorid": "alice"}).kind is CallerKind.OPERATOR
        with pytest.raises(AccessDeniedException):
            authorized(found.caller, *asked, {"bedrock-agentcore:actorid": "bob"})
        await keys.revoke_role("ops")
        assert await elsewhere.find(issued.id) is None


def test_policies_can_name_every_operators_mount() -> None:
    files = [*ROOT.glob("core/agentkeep/*/*.py"), *ROOT.glob("*/agentkeep/*/*.py")]

    found = {
        prefix
        for file in files
        for prefix in re.findall(r'Mount\(\s*"(/[a-z-]+)",[^)]*(?:\([^)]*\))?[^)]*Access\.OPERATOR', file.read_text())
    }
    assert found and found == set(OPERATORS_MOUNTS)
