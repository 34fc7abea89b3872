"""The token budget that a tag gives the sessions of a runtime or of an endpoint."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import ServiceError, StoreUnavailable, ValidationException
from agentkeep.runtime.agents.budgets import BUDGET_TAG

DEFAULT = 1000


async def budget_of_new_session(platform: Any, runtime_id: str, endpoint: str = "DEFAULT") -> int | None:
    session_id = str(uuid.uuid4())
    (await platform.begin(runtime_id, session_id, qualifier=endpoint)).end()
    standing = await platform.budgets.standing(SessionRef(runtime_id, session_id))
    budget: int | None = standing.budget
    return budget


async def test_a_runtimes_tag_is_the_budget_of_its_sessions(platform: Any) -> None:
    """OBS-3. From the next session on, until the tag is gone."""
    runtime_id = await platform.create(tags={BUDGET_TAG: "250", "team": "a"})
    arn = platform.deployment.arn(f"runtime/{runtime_id}")
    assert await budget_of_new_session(platform, runtime_id) == 250
    await platform.call("tag_resource", resourceArn=arn, tags={BUDGET_TAG: "none"})
    assert await budget_of_new_session(platform, runtime_id) is None
    await platform.call("untag_resource", resourceArn=arn, tagKeys=[BUDGET_TAG])
    assert await budget_of_new_session(platform, runtime_id) == DEFAULT


async def test_an_endpoints_own_tag_comes_first(platform: Any) -> None:
    runtime_id = await platform.create(tags={BUDGET_TAG: "250"})
    trial = {"agentRuntimeId": runtime_id, "endpointName": "trial"}
    await platform.call(
        "create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name="trial", tags={BUDGET_TAG: "10"}
    )
    async with asyncio.timeout(10):
        while (await platform.call("get_agent_runtime_endpoint", **trial))["status"] != "READY":
            await asyncio.sleep(0.01)
    assert await budget_of_new_session(platform, runtime_id, "trial") == 10
    assert await budget_of_new_session(platform, runtime_id) == 250


@pytest.mark.parametrize("value", ["", "many", "-1", "1.5", "1_000", "1e6", "٣", "9" * 16, "None"])
async def test_a_budget_that_is_none_is_refused(platform: Any, value: str) -> None:
    with pytest.raises(ValidationException, match="validation") as refused:
        await platform.create(tags={BUDGET_TAG: value})
    assert [fault.name for fault in refused.value.fields] == [f"tags.{BUDGET_TAG}"]
    arn = platform.deployment.arn(f"runtime/{await platform.create('other')}")
    with pytest.raises(ValidationException):
        await platform.call("tag_resource", resourceArn=arn, tags={BUDGET_TAG: value})


async def test_a_session_whose_budget_cannot_be_set_does_not_begin(
    platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails closed."""
    runtime_id = await platform.create(tags={BUDGET_TAG: "250"})

    async def away(session: SessionRef, tokens: int | None) -> None:
        raise StoreUnavailable("no store")

    monkeypatch.setattr(platform.budgets, "open", away)
    with pytest.raises((ServiceError, StoreUnavailable)):
        await platform.begin(runtime_id, str(uuid.uuid4()))
    assert platform.driver.agents == []
