"""Agent runtimes, versions, endpoints, tags, resource policies: the control plane's semantics."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from agentkeep.core.errors import (
    ConflictException,
    EnvironmentStartFailed,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
    ValidationException,
)
from agentkeep.core.grants import Grant
from agentkeep.identity.roles.policies import parse_permissions
from agentkeep.identity.roles.shipped_policies import shipped

from .conftest import DEPLOYMENT, OPERATOR


async def test_create_makes_version_endpoint_and_identity(platform: Any) -> None:
    """EXE-4. One call makes version 1, the endpoint DEFAULT, and a workload identity named as the runtime."""
    await platform.upload()
    made = await platform.call(
        "create_agent_runtime", agentRuntimeName="helper", description="helps", **platform.definition()
    )
    runtime_id = made["agentRuntimeId"]
    assert made["status"] == "CREATING"
    assert made["agentRuntimeVersion"] == "1"
    assert made["agentRuntimeArn"] == f"arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/{runtime_id}"
    assert made["workloadIdentityDetails"]["workloadIdentityArn"].endswith(f"/workload-identity/{runtime_id}")
    assert runtime_id.startswith("helper-")
    assert len(runtime_id) == len("helper-") + 10

    runtime = await platform.ready(runtime_id)
    assert runtime["agentRuntimeName"] == "helper"
    assert runtime["description"] == "helps"
    assert runtime["lifecycleConfiguration"] == {"idleRuntimeSessionTimeout": 900, "maxLifetime": 28_800}
    assert runtime["workloadIdentityDetails"] == made["workloadIdentityDetails"]
    assert "failureReason" not in runtime

    endpoint = await platform.call("get_agent_runtime_endpoint", agentRuntimeId=runtime_id, endpointName="DEFAULT")
    assert endpoint["status"] == "READY"
    assert endpoint["liveVersion"] == endpoint["targetVersion"] == "1"
    assert endpoint["agentRuntimeEndpointArn"] == f"{made['agentRuntimeArn']}/runtime-endpoint/DEFAULT"
    listed = await platform.call("list_agent_runtimes")
    assert [item["agentRuntimeId"] for item in listed["agentRuntimes"]] == [runtime_id]
    assert listed["agentRuntimes"][0]["description"] == "helps"


async def test_names_are_unique_and_free_again_after_deletion(platform: Any) -> None:
    runtime_id = await platform.create("helper")
    with pytest.raises(ConflictException, match="helper"):
        await platform.call("create_agent_runtime", agentRuntimeName="helper", **platform.definition())
    assert (await platform.call("delete_agent_runtime", agentRuntimeId=runtime_id))["status"] == "DELETING"
    await _gone(platform, runtime_id)
    assert await platform.create("helper") != runtime_id


async def _gone(platform: Any, runtime_id: str) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                await platform.call("get_agent_runtime", agentRuntimeId=runtime_id)
            except ResourceNotFoundException:
                return
            await asyncio.sleep(0.01)


async def test_a_client_token_makes_one_runtime(platform: Any) -> None:
    await platform.upload()
    first, second = await asyncio.gather(
        *(
            platform.call("create_agent_runtime", token="t" * 36, agentRuntimeName="helper", **platform.definition())
            for _ in range(2)
        )
    )
    assert first["agentRuntimeId"] == second["agentRuntimeId"]
    assert first["workloadIdentityDetails"] == second["workloadIdentityDetails"]
    with pytest.raises(ValidationException) as different:
        await platform.call("create_agent_runtime", token="t" * 36, agentRuntimeName="other", **platform.definition())
    assert different.value.reason == "IdempotentParameterMismatchException"
    await platform.ready(first["agentRuntimeId"])


async def test_update_makes_an_immutable_version_and_moves_default_only(platform: Any) -> None:
    """EXE-4. Everything is replaced; versions before stay as they were; other endpoints stay where they are."""
    runtime_id = await platform.create("helper", description="one", environmentVariables={"A": "1"})
    await platform.call("create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name="prod")
    await _endpoint_ready(platform, runtime_id, "prod")

    updated = await platform.call("update_agent_runtime", agentRuntimeId=runtime_id, **platform.definition())
    assert updated["status"] == "UPDATING"
    assert updated["agentRuntimeVersion"] == "2"
    newest = await platform.ready(runtime_id)
    assert newest["agentRuntimeVersion"] == "2"
    assert "description" not in newest
    assert "environmentVariables" not in newest
    before = await platform.call("get_agent_runtime", agentRuntimeId=runtime_id, agentRuntimeVersion="1")
    assert before["environmentVariables"] == {"A": "1"}
    assert (await _endpoint_ready(platform, runtime_id, "DEFAULT"))["liveVersion"] == "2"
    assert (await _endpoint_ready(platform, runtime_id, "prod"))["liveVersion"] == "1"
    versions = await platform.call("list_agent_runtime_versions", agentRuntimeId=runtime_id)
    assert [item["agentRuntimeVersion"] for item in versions["agentRuntimes"]] == ["1", "2"]

    await platform.call("update_agent_runtime_endpoint", agentRuntimeId=runtime_id, endpointName="prod")
    assert (await _endpoint_ready(platform, runtime_id, "prod"))["liveVersion"] == "2"
    assert (runtime_id, "1") in platform.driver.retired


async def _endpoint_ready(platform: Any, runtime_id: str, name: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            found: dict[str, Any] = await platform.call(
                "get_agent_runtime_endpoint", agentRuntimeId=runtime_id, endpointName=name
            )
            if found["status"] == "READY":
                return found
            await asyncio.sleep(0.01)


async def test_changes_wait_for_one_another(platform: Any) -> None:
    """While a runtime is CREATING, updates and deletions conflict; a retry of what was accepted does not."""
    await platform.upload()
    gate = asyncio.Event()
    original = platform.driver.prepare

    async def prepare(version: Any) -> None:
        await gate.wait()
        await original(version)

    platform.driver.prepare = prepare
    made = await platform.call("create_agent_runtime", agentRuntimeName="helper", **platform.definition())
    runtime_id = made["agentRuntimeId"]
    for operation, request in (
        ("update_agent_runtime", platform.definition()),
        ("delete_agent_runtime", {}),
        ("create_agent_runtime_endpoint", {"name": "prod"}),
    ):
        with pytest.raises(ConflictException, match="CREATING"):
            await platform.call(operation, agentRuntimeId=runtime_id, **request)
    gate.set()
    await platform.ready(runtime_id)

    gate.clear()
    change = platform.definition(description="two")
    first = await platform.call("update_agent_runtime", token="u" * 36, agentRuntimeId=runtime_id, **change)
    again = await platform.call("update_agent_runtime", token="u" * 36, agentRuntimeId=runtime_id, **change)
    assert again["agentRuntimeVersion"] == first["agentRuntimeVersion"] == "2"
    assert (await platform.call("get_agent_runtime", agentRuntimeId=runtime_id))["status"] == "UPDATING"
    gate.set()
    await platform.ready(runtime_id)
    third = await platform.call("update_agent_runtime", token="u" * 36, agentRuntimeId=runtime_id, **change)
    assert third["agentRuntimeVersion"] == "2"


async def test_a_failed_creation_says_why_and_can_be_mended(platform: Any) -> None:
    made = await platform.call("create_agent_runtime", agentRuntimeName="helper", **platform.definition())
    runtime_id = made["agentRuntimeId"]
    failed = await platform.ready(runtime_id, "CREATE_FAILED")
    assert "s3://code/agent.zip" in failed["failureReason"]
    endpoint = await platform.call("get_agent_runtime_endpoint", agentRuntimeId=runtime_id, endpointName="DEFAULT")
    assert endpoint["status"] == "CREATE_FAILED"
    with pytest.raises(ValidationException, match="CREATE_FAILED"):
        await platform.begin(runtime_id, "s" * 40)

    await platform.upload()
    await platform.call("update_agent_runtime", agentRuntimeId=runtime_id, **platform.definition())
    assert "failureReason" not in await platform.ready(runtime_id)


async def test_a_failed_update_leaves_the_version_before_serving(platform: Any) -> None:
    runtime_id = await platform.create()
    platform.driver.prepare_error = EnvironmentStartFailed("the sandbox refuses", logs="Traceback: no module")
    await platform.call("update_agent_runtime", agentRuntimeId=runtime_id, **platform.definition())
    failed = await platform.ready(runtime_id, "UPDATE_FAILED")
    assert "the sandbox refuses" in failed["failureReason"]
    assert "Traceback" in failed["failureReason"]
    endpoint = await platform.call("get_agent_runtime_endpoint", agentRuntimeId=runtime_id, endpointName="DEFAULT")
    assert (endpoint["status"], endpoint["liveVersion"], endpoint["targetVersion"]) == ("READY", "1", "1")
    turn = await platform.begin(runtime_id, "s" * 40)
    turn.end()


async def test_an_internal_failure_is_not_shown(platform: Any) -> None:
    await platform.upload()
    platform.driver.prepare_error = RuntimeError("secret path /var/lib/x")
    made = await platform.call("create_agent_runtime", agentRuntimeName="helper", **platform.definition())
    failed = await platform.ready(made["agentRuntimeId"], "CREATE_FAILED")
    assert "secret" not in failed["failureReason"]


async def test_creation_goes_on_after_a_restart(platform: Any) -> None:
    """The record in the store is the to-do list: a platform killed in the middle of a creation finishes it."""
    await platform.upload()
    never = asyncio.Event()

    async def prepare(version: Any) -> None:
        await never.wait()

    original, platform.driver.prepare = platform.driver.prepare, prepare
    made = await platform.call("create_agent_runtime", agentRuntimeName="helper", **platform.definition())
    await asyncio.sleep(0.05)
    platform.driver.prepare = original
    await platform.restart()
    await platform.ready(made["agentRuntimeId"])


async def test_deleting_ends_sessions_and_forgets_everything(platform: Any) -> None:
    runtime_id = await platform.create("helper", tags={"team": "a"})
    arn = f"arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/{runtime_id}"
    turn = await platform.begin(runtime_id, "s" * 40)
    turn.end()
    await platform.call("delete_agent_runtime", agentRuntimeId=runtime_id, token="d" * 36)
    await _gone(platform, runtime_id)
    assert platform.driver.living == []
    for operation, request in (
        ("list_tags_for_resource", {"resourceArn": arn}),
        ("get_agent_runtime_endpoint", {"agentRuntimeId": runtime_id, "endpointName": "DEFAULT"}),
        ("list_agent_runtime_versions", {"agentRuntimeId": runtime_id}),
        ("delete_agent_runtime", {"agentRuntimeId": runtime_id}),
    ):
        with pytest.raises(ResourceNotFoundException):
            await platform.call(operation, **request)
    again = await platform.call("delete_agent_runtime", agentRuntimeId=runtime_id, token="d" * 36)
    assert again["status"] == "DELETING"
    with pytest.raises(ResourceNotFoundException):
        await platform.begin(runtime_id, "s" * 40)


async def test_versions_are_deleted_when_nothing_names_them(platform: Any) -> None:
    runtime_id = await platform.create()
    await platform.call("create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name="prod")
    await _endpoint_ready(platform, runtime_id, "prod")
    await platform.call("update_agent_runtime", agentRuntimeId=runtime_id, **platform.definition())
    await platform.ready(runtime_id)
    with pytest.raises(ConflictException, match="prod"):
        await platform.call("delete_agent_runtime", agentRuntimeId=runtime_id, agentRuntimeVersion="1")
    with pytest.raises(ConflictException, match="DEFAULT"):
        await platform.call("delete_agent_runtime", agentRuntimeId=runtime_id, agentRuntimeVersion="2")
    await platform.call("update_agent_runtime_endpoint", agentRuntimeId=runtime_id, endpointName="prod")
    await _endpoint_ready(platform, runtime_id, "prod")
    answer = await platform.call("delete_agent_runtime", agentRuntimeId=runtime_id, agentRuntimeVersion="1")
    assert answer["agentRuntimeVersion"] == "1"
    with pytest.raises(ResourceNotFoundException):
        await platform.call("get_agent_runtime", agentRuntimeId=runtime_id, agentRuntimeVersion="1")


async def test_endpoints(platform: Any) -> None:
    runtime_id = await platform.create()
    made = await platform.call(
        "create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name="prod", description="live"
    )
    assert made["status"] == "CREATING"
    assert made["targetVersion"] == "1"
    assert made["endpointName"] == "prod"
    ready = await _endpoint_ready(platform, runtime_id, "prod")
    assert ready["description"] == "live"
    assert ready["id"].startswith("prod-")
    with pytest.raises(ConflictException):
        await platform.call("create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name="prod")
    with pytest.raises(ResourceNotFoundException):
        await platform.call(
            "create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name="next", agentRuntimeVersion="7"
        )
    for operation in ("update_agent_runtime_endpoint", "delete_agent_runtime_endpoint"):
        with pytest.raises(ConflictException, match="DEFAULT"):
            await platform.call(operation, agentRuntimeId=runtime_id, endpointName="DEFAULT")
    listed = await platform.call("list_agent_runtime_endpoints", agentRuntimeId=runtime_id)
    assert [item["name"] for item in listed["runtimeEndpoints"]] == ["DEFAULT", "prod"]

    gone = await platform.call("delete_agent_runtime_endpoint", agentRuntimeId=runtime_id, endpointName="prod")
    assert gone["status"] == "DELETING"
    async with asyncio.timeout(5):
        while (
            len((await platform.call("list_agent_runtime_endpoints", agentRuntimeId=runtime_id))["runtimeEndpoints"])
            > 1
        ):
            await asyncio.sleep(0.01)
    with pytest.raises(ResourceNotFoundException):
        await platform.begin(runtime_id, "s" * 40, qualifier="prod")


async def test_at_most_ten_endpoints(platform: Any) -> None:
    runtime_id = await platform.create()
    for number in range(9):
        await platform.call("create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name=f"e{number}")
    with pytest.raises(ServiceQuotaExceededException):
        await platform.call("create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name="e9")


async def test_pages(platform: Any) -> None:
    """Each item once, whatever the page's size; tokens are opaque and foreign ones refused."""
    await platform.upload()
    names = [f"agent{number}" for number in range(7)]
    for name in names:
        await platform.create(name)
    found: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = await platform.call("list_agent_runtimes", maxResults=3, **token)
        assert len(page["agentRuntimes"]) <= 3
        found += [item["agentRuntimeName"] for item in page["agentRuntimes"]]
        if "nextToken" not in page:
            break
        token = {"nextToken": page["nextToken"]}
    assert sorted(found) == names
    with pytest.raises(ValidationException, match="nextToken"):
        await platform.call("list_agent_runtimes", nextToken="%%%é")


async def test_tags(platform: Any) -> None:
    runtime_id = await platform.create("helper", tags={"team": "a", "cost": "1"})
    arn = f"arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/{runtime_id}"
    await platform.call("tag_resource", resourceArn=arn, tags={"team": "b", "stage": "test"})
    await platform.call("untag_resource", resourceArn=arn, tagKeys=["cost", "nothing"])
    assert (await platform.call("list_tags_for_resource", resourceArn=arn))["tags"] == {"team": "b", "stage": "test"}
    with pytest.raises(ServiceQuotaExceededException):
        await platform.call("tag_resource", resourceArn=arn, tags={str(n): "" for n in range(50)})
    with pytest.raises(ValidationException, match="aws:"):
        await platform.call("tag_resource", resourceArn=arn, tags={"aws:x": "1"})
    other = arn.replace("123456789012", "999999999999")
    with pytest.raises(ResourceNotFoundException):
        await platform.call("list_tags_for_resource", resourceArn=other)
    endpoint = f"{arn}/runtime-endpoint/DEFAULT"
    await platform.call("tag_resource", resourceArn=endpoint, tags={"x": "y"})
    assert (await platform.call("list_tags_for_resource", resourceArn=endpoint))["tags"] == {"x": "y"}


def _policy(arn: str, **statement: Any) -> str:
    rule = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "bedrock-agentcore:InvokeAgentRuntime",
        "Resource": arn,
        **statement,
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [rule]})


async def test_resource_policies_are_stored(platform: Any) -> None:
    arn = f"arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/{await platform.create()}"
    assert await platform.call("get_resource_policy", resourceArn=arn) == {}
    for policy in (_policy(arn), _policy(arn, Effect="Deny")):
        assert (await platform.call("put_resource_policy", resourceArn=arn, policy=policy))["policy"] == policy
        assert (await platform.call("get_resource_policy", resourceArn=arn))["policy"] == policy
    await platform.call("delete_resource_policy", resourceArn=arn)
    with pytest.raises(ResourceNotFoundException):
        await platform.call("delete_resource_policy", resourceArn=arn)
    endpoint = f"{arn}/runtime-endpoint/DEFAULT"
    # As the developer guide writes endpoints, too.
    policy = _policy(endpoint.replace("/runtime-endpoint/", "/endpoint/"))
    await platform.call("put_resource_policy", resourceArn=endpoint, policy=policy)


async def test_who_sees_environment_variables(platform: Any) -> None:
    """People keep secrets there: of roles, those that make agents, and not those that look at them."""
    runtime_id = await platform.create("helper", environmentVariables={"KEY": "secret"})
    for name, seen in (("auditor", False), ("deployer", True), ("administrator", True)):
        policy = parse_permissions(shipped(name, DEPLOYMENT), DEPLOYMENT)
        caller = replace(OPERATOR, grant=Grant(OPERATOR.principal, DEPLOYMENT, (policy,)))
        answer = await platform.call("get_agent_runtime", caller, agentRuntimeId=runtime_id)
        assert answer["agentRuntimeName"] == "helper"
        assert answer.get("environmentVariables") == ({"KEY": "secret"} if seen else None), name


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ({"Resource": "*"}, "exactly"),
        ({"Effect": "Maybe"}, "Effect"),
        ({"Action": "s3:GetObject"}, "Action"),
        ({"Principal": {"Service": "lambda.amazonaws.com"}}, "Principal"),
        ({"Principal": {"AWS": "arn:aws:iam::1:role/*"}}, "Principal"),
        ({"Condition": {"StringEquals": {"a": "b"}}}, "Condition cannot be evaluated"),
        ({"NotAction": "bedrock-agentcore:*"}, "NotAction cannot be evaluated"),
    ],
)
async def test_policies_that_cannot_be_enforced_are_refused(
    platform: Any, statement: dict[str, Any], complaint: str
) -> None:
    arn = f"arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/{await platform.create()}"
    with pytest.raises(ValidationException, match=complaint):
        await platform.call("put_resource_policy", resourceArn=arn, policy=_policy(arn, **statement))
    for text in ("{", _policy(arn).replace('"Effect"', '"Effect": "Deny", "Effect"')):
        with pytest.raises(ValidationException, match="JSON"):
            await platform.call("put_resource_policy", resourceArn=arn, policy=text)


async def test_policies_of_token_runtimes_name_everyone(platform: Any, provider: Any) -> None:
    runtime_id = await platform.create("helper", authorizerConfiguration=provider.authorizer)
    arn = f"arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/{runtime_id}"
    with pytest.raises(ValidationException, match="tokens"):
        await platform.call(
            "put_resource_policy", resourceArn=arn, policy=_policy(arn, Principal={"AWS": "123456789012"})
        )
    await platform.call("put_resource_policy", resourceArn=arn, policy=_policy(arn))
