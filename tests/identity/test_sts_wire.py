"""IDN-1: what of STS's wire boto3 does not show: a GET, and the limit of exchanges."""

from __future__ import annotations

import asyncio
import json
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from role_stand import ACCOUNT, RoleStand, role_arn, write_roles

from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.storage.valkey import ValkeyKeyValueStore

RATE = 2


@pytest.fixture
async def stands(
    make_plane: Callable[..., IdentityPlane],
    store: ValkeyKeyValueStore,
    provider: Any,
    tmp_path: Path,
    free_tcp_port_factory: Callable[[], int],
    clock: Any,
) -> AsyncIterator[list[RoleStand]]:
    """Two replicas, each of which makes RATE exchanges a second."""
    trust = {"issuer": provider.url, "audiences": ["agentkeep"]}
    roles = write_roles(tmp_path / "roles.json", {"name": "auditor", "trust": [trust], "policies": ["auditor"]})
    settings, audit = IdentitySettings(roles=roles, role_exchanges=RATE), KeyValueAudit(store)
    found = [RoleStand(make_plane(settings, audit=audit), audit, free_tcp_port_factory(), clock) for _ in range(2)]
    for stand in found:
        await stand.start()
    yield found
    for stand in found:
        await stand.stop()


async def test_a_role_is_assumed_by_a_get(stands: list[RoleStand], provider: Any) -> None:
    """With everything in the query; a body is not looked at, and another method is refused."""
    asked = {
        "Action": "AssumeRoleWithWebIdentity",
        "Version": "2011-06-15",
        "RoleArn": role_arn("auditor"),
        "RoleSessionName": "olivia+ops@example.com",
        "WebIdentityToken": provider.token(aud="agentkeep"),
    }
    async with httpx.AsyncClient(base_url=stands[0].url) as client:
        answer = await client.get("/sts", params=asked)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        found = {each.tag.rpartition("}")[2]: each.text for each in ET.fromstring(answer.content).iter()}
        who = await stands[0].call(found, "sts", lambda sts: sts.get_caller_identity())
        assert who["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/auditor/olivia+ops@example.com"
        split = {name: value for name, value in asked.items() if name != "WebIdentityToken"}
        body = json.dumps({"WebIdentityToken": asked["WebIdentityToken"]}).encode()
        assert (await client.request("GET", "/sts", params=split, content=body)).status_code == 400
        assert (await client.put("/sts", params=asked)).status_code == 404


async def test_exchanges_are_limited_in_each_replica(stands: list[RoleStand], provider: Any, clock: Any) -> None:
    """All together, twice as many at once as a second; by STS's own code, which SDKs wait upon. Who asks who he is, is
    not limited by it, and another replica counts by itself."""
    text = provider.token(aud="agentkeep")
    first, second = stands
    given = await first.assume("auditor", text)
    await asyncio.gather(*(first.assume("auditor", text) for _ in range(2 * RATE - 1)))
    with pytest.raises(ClientError) as raised:
        await first.assume("auditor", text)
    answer = raised.value.response
    assert (answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]) == ("Throttling", 400)
    assert await first.call(given["Credentials"], "sts", lambda sts: sts.get_caller_identity())
    assert await second.assume("auditor", text)
    clock.move(1)
    await asyncio.gather(*(first.assume("auditor", text) for _ in range(RATE)))
    with pytest.raises(ClientError, match="Throttling"):
        await first.assume("auditor", text)
