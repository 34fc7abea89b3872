"""IDN-2: only a key issued for it speaks for users whom nobody else vouches for, and each use is on record."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from agentkeep.core.call import Call, Caller, CallerKind
from agentkeep.core.errors import (
    AccessDeniedException,
    ResourceNotFoundException,
    StoreUnavailable,
)
from agentkeep.core.ports import AuditRecord
from agentkeep.identity.access_keys.operators_app import OperatorKeysApp
from agentkeep.identity.operations import IdentityPlane
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.storage.valkey import ValkeyKeyValueStore

PLAIN = Caller(CallerKind.OPERATOR, "arn:aws:iam::123456789012:user/plain", "AKIAPLAIN")
ACTING = replace(PLAIN, principal="arn:aws:iam::123456789012:user/app", acts_for_users=True)


@pytest.fixture
def audit(store: ValkeyKeyValueStore) -> KeyValueAudit:
    return KeyValueAudit(store)


@pytest.fixture
def plane(make_plane: Callable[..., IdentityPlane], audit: KeyValueAudit) -> IdentityPlane:
    return make_plane(audit=audit)


def attempts(plane: IdentityPlane, call: Call) -> dict[str, Callable[[], Awaitable[Any]]]:
    completed: Any = {"userIdentifier": {"userId": "alice"}, "sessionUri": "urn:agentkeep:none"}
    return {
        "GetWorkloadAccessTokenForUserId": lambda: plane.get_workload_access_token_for_user_id(
            replace(call, operation="GetWorkloadAccessTokenForUserId"), {"workloadName": "agent", "userId": "alice"}
        ),
        "CompleteResourceTokenAuth": lambda: plane.complete_resource_token_auth(
            replace(call, operation="CompleteResourceTokenAuth"), completed
        ),
    }


async def test_a_key_that_was_not_issued_for_it(plane: IdentityPlane, operator: Call, audit: KeyValueAudit) -> None:
    await plane.create_workload_identity(operator, {"name": "agent"})
    for attempt in attempts(plane, replace(operator, caller=PLAIN)).values():
        with pytest.raises(AccessDeniedException, match="agentkeep keys create NAME --acts-for-users"):
            await attempt()
    assert await audit.page(AuditFilter(kind="acted-for-user"), 10) == ([], None)
    records, _ = await audit.page(AuditFilter(principal=PLAIN.principal), 10)
    assert {record.kind for record in records} == {"workload-token-refused", "consent-refused"}


async def test_each_use_is_on_record_first(plane: IdentityPlane, operator: Call, audit: KeyValueAudit) -> None:
    """Also of what comes to nothing afterwards."""
    await plane.create_workload_identity(operator, {"name": "agent"})
    uses = attempts(plane, replace(operator, caller=ACTING))
    await uses["GetWorkloadAccessTokenForUserId"]()
    with pytest.raises(ResourceNotFoundException):  # there is no such consent
        await uses["CompleteResourceTokenAuth"]()
    records, _ = await audit.page(AuditFilter(user="alice", kind="acted-for-user"), 10)
    assert {record.details["operation"] for record in records} == set(uses)
    assert {(record.kind, record.principal) for record in records} == {("acted-for-user", ACTING.principal)}


async def test_without_a_record_no_token(make_plane: Callable[..., IdentityPlane], operator: Call) -> None:
    class Away:
        async def record(self, record: AuditRecord) -> None:
            raise StoreUnavailable("away")

    await make_plane().create_workload_identity(operator, {"name": "agent"})
    plane = make_plane(audit=Away())
    with pytest.raises(StoreUnavailable):
        await attempts(plane, operator)["GetWorkloadAccessTokenForUserId"]()


class Keys:
    """Operators' keys over their mount."""

    def __init__(self, app: OperatorKeysApp) -> None:
        self._app = app

    async def __call__(self, caller: Caller, method: str, path: str, document: Any = None) -> tuple[int, Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": json.dumps(document).encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"method": method, "path": path, "headers": [], "agentkeep.caller": caller}
        await self._app(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])


async def test_operators_issue_and_revoke_keys(plane: IdentityPlane, audit: KeyValueAudit, clock: Any) -> None:
    ask = Keys(OperatorKeysApp(plane.keys, audit, clock))
    status, issued = await ask(PLAIN, "POST", "/operator-keys", {"name": "ci"})
    assert (status, issued["name"], issued["actsForUsers"]) == (201, "ci", False)
    found = await plane.keys.find(issued["accessKeyId"])
    assert found is not None
    assert (found.secret, found.caller.acts_for_users) == (issued["secretAccessKey"], False)
    status, listed = await ask(PLAIN, "GET", "/operator-keys")
    assert (status, [key["accessKeyId"] for key in listed["keys"]]) == (200, [issued["accessKeyId"]])
    assert issued["secretAccessKey"] not in json.dumps(listed)
    status, _ = await ask(PLAIN, "DELETE", f"/operator-keys/{issued['accessKeyId']}")
    assert (status, await plane.keys.find(issued["accessKeyId"])) == (200, None)
    records, _ = await audit.page(AuditFilter(), 10)
    assert {record.kind for record in records} == {"operator-key-issued", "operator-key-revoked"}
    assert issued["secretAccessKey"] not in str(records)


async def test_nobody_gives_what_he_has_not(plane: IdentityPlane, audit: KeyValueAudit, clock: Any) -> None:
    """Else every operator could act for users by issuing himself a key that does."""
    ask = Keys(OperatorKeysApp(plane.keys, audit, clock))
    wanted = {"name": "app", "actsForUsers": True}
    status, refused = await ask(PLAIN, "POST", "/operator-keys", wanted)
    assert (status, refused["code"]) == (403, "AccessDeniedException")
    assert await plane.keys.list_operator_keys() == []
    status, issued = await ask(ACTING, "POST", "/operator-keys", wanted)
    found = await plane.keys.find(issued["accessKeyId"])
    assert found is not None
    assert (status, found.caller.acts_for_users) == (201, True)


@pytest.mark.parametrize("document", [None, [], {"name": 1}, {"name": "a b"}, {"name": "a", "actsForUsers": "yes"}])
async def test_bad_requests_issue_nothing(
    plane: IdentityPlane, audit: KeyValueAudit, clock: Any, document: Any
) -> None:
    ask = Keys(OperatorKeysApp(plane.keys, audit, clock))
    status, _ = await ask(ACTING, "POST", "/operator-keys", document)
    assert (status, await plane.keys.list_operator_keys()) == (400, [])
    assert (await ask(ACTING, "DELETE", "/operator-keys/AKIANONE"))[0] == 404
    assert (await ask(ACTING, "PUT", "/operator-keys"))[0] == 404
    with pytest.raises(ResourceNotFoundException):
        await plane.keys.revoke_operator_key("AKIANONE")
