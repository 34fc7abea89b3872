"""Workload identities and their tags, as operations of the plane."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Call, User
from agentkeep.core.errors import (
    AccessDeniedException,
    ConflictException,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
    ValidationException,
)
from agentkeep.identity.operations import IdentityPlane

ARN = "arn:aws:bedrock-agentcore:us-west-2:123456789012:workload-identity-directory/default/workload-identity/"


async def test_the_life_of_an_identity(plane: IdentityPlane, operator: Call, clock: Any) -> None:
    created = await plane.create_workload_identity(
        operator, {"name": "agent", "allowedResourceOauth2ReturnUrls": ["http://localhost:8081/callback"]}
    )
    assert created == {
        "name": "agent",
        "workloadIdentityArn": ARN + "agent",
        "allowedResourceOauth2ReturnUrls": ["http://localhost:8081/callback"],
    }
    first = await plane.get_workload_identity(operator, {"name": "agent"})
    assert {name: first[name] for name in created} == created  # type: ignore[literal-required]
    assert first["createdTime"] == first["lastUpdatedTime"]
    assert abs((first["createdTime"] - clock.now()).total_seconds()) < 0.01

    clock.move(5)
    updated = await plane.update_workload_identity(
        operator, {"name": "agent", "allowedResourceOauth2ReturnUrls": ["https://a/b", "app:c"]}
    )
    assert updated["allowedResourceOauth2ReturnUrls"] == ["https://a/b", "app:c"]
    assert (updated["lastUpdatedTime"] - updated["createdTime"]).total_seconds() == 5
    kept = await plane.update_workload_identity(operator, {"name": "agent"})
    assert kept["allowedResourceOauth2ReturnUrls"] == ["https://a/b", "app:c"]
    emptied = await plane.update_workload_identity(operator, {"name": "agent", "allowedResourceOauth2ReturnUrls": []})
    assert emptied["allowedResourceOauth2ReturnUrls"] == []

    assert await plane.delete_workload_identity(operator, {"name": "agent"}) == {}
    for gone in (
        plane.get_workload_identity(operator, {"name": "agent"}),
        plane.update_workload_identity(operator, {"name": "agent"}),
        plane.delete_workload_identity(operator, {"name": "agent"}),
    ):
        with pytest.raises(ResourceNotFoundException, match="no workload identity named agent"):
            await gone


async def test_a_name_is_taken_once(plane: IdentityPlane, operator: Call) -> None:
    results = await asyncio.gather(
        *(plane.create_workload_identity(operator, {"name": "agent"}) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, dict) for result in results) == 1
    assert sum(isinstance(result, ConflictException) for result in results) == 4


async def test_pages(plane: IdentityPlane, operator: Call) -> None:
    names = [f"agent-{number:02}" for number in range(25)]
    for name in reversed(names):
        await plane.create_workload_identity(operator, {"name": name})
    for size, pages in ((None, 2), (20, 2), (25, 1), (7, 4), (5, 5)):
        listed: list[str] = []
        token, count = None, 0
        while token is not None or count == 0:
            request: Any = {}
            if token is not None:
                request["nextToken"] = token
            if size is not None:
                request["maxResults"] = size
            page = await plane.list_workload_identities(operator, request)
            for entry in page["workloadIdentities"]:
                assert entry["workloadIdentityArn"] == ARN + entry["name"]
                listed.append(entry["name"])
            token, count = page.get("nextToken"), count + 1
        assert (listed, count) == (names, pages)


@pytest.mark.parametrize("token", ["", "%", "é", base64.b64encode(b"\xff\xfe").decode(), "x" * 5])
async def test_a_made_up_page_token(plane: IdentityPlane, operator: Call, token: str) -> None:
    with pytest.raises(ValidationException, match="nextToken"):
        await plane.list_workload_identities(operator, {"nextToken": token})


async def test_tags(plane: IdentityPlane, operator: Call) -> None:
    await plane.create_workload_identity(operator, {"name": "agent", "tags": {"team": "red", "cost": "1"}})
    arn = ARN + "agent"
    await plane.tag_resource(operator, {"resourceArn": arn, "tags": {"cost": "2", "env": ""}})
    assert await plane.list_tags_for_resource(operator, {"resourceArn": arn}) == {
        "tags": {"team": "red", "cost": "2", "env": ""}
    }
    await plane.untag_resource(operator, {"resourceArn": arn, "tagKeys": ["team", "absent"]})
    assert await plane.list_tags_for_resource(operator, {"resourceArn": arn}) == {"tags": {"cost": "2", "env": ""}}
    with pytest.raises(ServiceQuotaExceededException):
        await plane.tag_resource(operator, {"resourceArn": arn, "tags": {f"k{n}": "" for n in range(49)}})
    for reserved in ("aws:x", "AWS:x"):
        with pytest.raises(ValidationException, match="reserved"):
            await plane.tag_resource(operator, {"resourceArn": arn, "tags": {reserved: ""}})
        with pytest.raises(ValidationException, match="reserved"):
            await plane.create_workload_identity(operator, {"name": "other", "tags": {reserved: ""}})


async def test_tags_written_at_once_are_all_kept(plane: IdentityPlane, operator: Call) -> None:
    await plane.create_workload_identity(operator, {"name": "agent"})
    arn = ARN + "agent"
    await asyncio.gather(
        *(plane.tag_resource(operator, {"resourceArn": arn, "tags": {f"k{n}": str(n)}}) for n in range(4))
    )
    answer = await plane.list_tags_for_resource(operator, {"resourceArn": arn})
    assert answer["tags"] == {f"k{n}": str(n) for n in range(4)}


@pytest.mark.parametrize(
    "arn",
    [
        ARN + "absent",
        ARN + "a/workload-identity/agent",
        ARN.replace("us-west-2", "us-east-1") + "agent",
        ARN.replace("123456789012", "999999999999") + "agent",
        "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/agent",
        ARN.replace("/default/", "/other/") + "agent",
    ],
)
async def test_other_arns(plane: IdentityPlane, operator: Call, arn: str) -> None:
    await plane.create_workload_identity(operator, {"name": "agent"})
    for refused in (
        plane.tag_resource(operator, {"resourceArn": arn, "tags": {"a": "b"}}),
        plane.untag_resource(operator, {"resourceArn": arn, "tagKeys": ["a"]}),
        plane.list_tags_for_resource(operator, {"resourceArn": arn}),
    ):
        with pytest.raises(ResourceNotFoundException):
            await refused


async def test_service_linked_identities(plane: IdentityPlane, operator: Call) -> None:
    """One for each runtime and gateway, named as it; theirs to delete, and nobody else's."""
    arns = await asyncio.gather(*(plane.workload_tokens.create_for_service("helper-1234567890") for _ in range(3)))
    assert set(arns) == {ARN + "helper-1234567890"}
    with pytest.raises(ValidationException, match="linked to a service and cannot be deleted by the caller"):
        await plane.delete_workload_identity(operator, {"name": "helper-1234567890"})
    with pytest.raises(ConflictException):
        await plane.create_workload_identity(operator, {"name": "helper-1234567890"})
    # return URLs are the operator's to set, as the starter toolkit does
    await plane.update_workload_identity(
        operator, {"name": "helper-1234567890", "allowedResourceOauth2ReturnUrls": ["http://localhost:8081/oauth2"]}
    )
    await plane.workload_tokens.delete_for_service("helper-1234567890")
    await plane.workload_tokens.delete_for_service("helper-1234567890")
    with pytest.raises(ResourceNotFoundException):
        await plane.get_workload_identity(operator, {"name": "helper-1234567890"})


async def test_a_service_neither_takes_nor_deletes_what_a_caller_made(plane: IdentityPlane, operator: Call) -> None:
    await plane.create_workload_identity(operator, {"name": "helper-1234567890"})
    with pytest.raises(ConflictException):
        await plane.workload_tokens.create_for_service("helper-1234567890")
    await plane.workload_tokens.delete_for_service("helper-1234567890")
    assert await plane.get_workload_identity(operator, {"name": "helper-1234567890"})


async def test_sessions_manage_nothing(plane: IdentityPlane, session_of: Any) -> None:
    """Least privilege: of identity's operations an agent reaches the two that tell it what it has."""
    backend = SelfBackend([plane])
    await plane.workload_tokens.create_for_service("helper-1234567890")
    requests: dict[str, dict[str, Any]] = {
        "CreateWorkloadIdentity": {"name": "mine"},
        "GetWorkloadIdentity": {"name": "helper-1234567890"},
        "UpdateWorkloadIdentity": {"name": "helper-1234567890", "allowedResourceOauth2ReturnUrls": ["https://evil"]},
        "DeleteWorkloadIdentity": {"name": "helper-1234567890"},
        "ListWorkloadIdentities": {},
        "TagResource": {"resourceArn": ARN + "helper-1234567890", "tags": {}},
        "UntagResource": {"resourceArn": ARN + "helper-1234567890", "tagKeys": []},
        "ListTagsForResource": {"resourceArn": ARN + "helper-1234567890"},
        "GetWorkloadAccessTokenForUserId": {"workloadName": "helper-1234567890", "userId": "bob"},
    }
    for operation, request in requests.items():
        call = session_of(user=User("alice"))
        with pytest.raises(AccessDeniedException, match="not open to session callers"):
            await backend.invoke(Call(call.service, operation, call.caller, call.request_id), request)
