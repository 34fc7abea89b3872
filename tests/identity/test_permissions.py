"""IDN-2, IDN-4: a role may what its policies say and nothing else; what a policy says is honoured, or it is refused."""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from typing import Any

import pytest
from botocore import xform_name
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkeep.backend.actions import action, authorized_call, condition_keys, forms, resources
from agentkeep.backend.own import SelfBackend
from agentkeep.core.acting import ActingForUsers, LoggedAudit, require_acting
from agentkeep.core.call import Call, Caller, CallerKind
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import AccessDeniedException, ValidationException
from agentkeep.core.grants import ACT_FOR_USER, Grant, user_arn
from agentkeep.core.identifiers import Deployment
from agentkeep.core.permissions import authorized
from agentkeep.core.policies import Asked, Decision, Policy, Statement, decide, pattern
from agentkeep.gateway.control.operations import GatewayControl
from agentkeep.gateway.control.policy_operations import PolicyControl
from agentkeep.gateway.plane import GatewayPlane
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.roles.policies import actions, parse_permissions
from agentkeep.identity.roles.shipped_policies import SHIPPED, shipped
from agentkeep.memory.extraction.operations import ExtractionOperations
from agentkeep.memory.long_term.operations import RecordOperations
from agentkeep.memory.operations import MemoryOperations
from agentkeep.memory.short_term.operations import EventOperations
from agentkeep.runtime.operations import RuntimePlane
from agentkeep.wire.model import SERVICES, service

HERE = Deployment("us-west-2", "123456789012")
PRINCIPAL = "arn:aws:sts::123456789012:assumed-role/ops/olivia"
MEMORY = HERE.arn("memory/notes-0123456789")
PLANES = (
    RuntimePlane, IdentityPlane, GatewayPlane, GatewayControl, PolicyControl, MemoryOperations, EventOperations,
    RecordOperations, ExtractionOperations,
)  # fmt: skip


def policy(*statements: dict[str, Any]) -> Policy:
    filled = [{"Effect": "Allow", "Resource": "*", **statement} for statement in statements]
    return parse_permissions({"Version": "2012-10-17", "Statement": filled}, HERE)


def role(*statements: dict[str, Any], narrowed: Policy | None = None) -> Caller:
    policies = (policy(*statements),) if statements else ()
    return Caller(CallerKind.ROLE, PRINCIPAL, "ASIA", grant=Grant(PRINCIPAL, HERE, policies, narrowed))


def called(caller: Caller, operation: str, request: dict[str, Any], model: str = "bedrock-agentcore") -> Caller:
    return authorized_call(Call(model, operation, caller, "request-1"), request)


def may(caller: Caller, operation: str, request: dict[str, Any], model: str = "bedrock-agentcore") -> bool:
    try:
        return called(caller, operation, request, model).kind is CallerKind.OPERATOR
    except AccessDeniedException:
        return False


# What is decided.

_NAMES = ("a:Get", "a:Put", "b:Get")
_THINGS = ("arn:x:one", "arn:x:two", "arn:y:one")
_PATTERNS = st.sampled_from(("*", "a:*", "a:get", "?:get", "b:*", "a:g*t", "c:*"))
_PLACES = st.sampled_from(("*", "arn:x:*", "arn:?:one", "arn:y:one", "arn:z:*"))
_STATEMENTS = st.builds(
    Statement,
    st.booleans(),
    st.lists(_PATTERNS, min_size=1, max_size=3).map(tuple),
    st.lists(_PLACES, min_size=1, max_size=3).map(tuple),
)
_POLICIES = st.lists(st.lists(_STATEMENTS, max_size=4).map(tuple).map(Policy), max_size=3)


def _names(patterns: tuple[str, ...], text: str) -> bool:
    """By another implementation than the one under test; none of these has a bracket."""
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)


@given(_POLICIES, st.sampled_from(_NAMES), st.sampled_from(_THINGS))
@settings(max_examples=150, deadline=None)
def test_nothing_is_allowed_that_no_statement_allows(policies: list[Policy], name: str, thing: str) -> None:
    """And an explicit deny wins, wherever it stands."""
    about = [
        statement
        for each in policies
        for statement in each.statements
        if _names(statement.actions, name.lower()) and _names(statement.resources or (), thing)
    ]
    expected = Decision.NONE
    if about:
        expected = Decision.ALLOW if all(statement.allows for statement in about) else Decision.DENY
    assert decide(policies, Asked(name, thing)) is expected
    assert Grant(PRINCIPAL, HERE, tuple(policies)).allows(name, thing) is (expected is Decision.ALLOW)


@given(_POLICIES, st.lists(_STATEMENTS, max_size=3), st.sampled_from(_NAMES), st.sampled_from(_THINGS))
@settings(max_examples=60, deadline=None)
def test_a_session_policy_only_narrows(policies: list[Policy], session: list[Statement], name: str, thing: str) -> None:
    narrowed = Grant(PRINCIPAL, HERE, tuple(policies), Policy(tuple(session)))
    if narrowed.allows(name, thing):
        assert Grant(PRINCIPAL, HERE, tuple(policies)).allows(name, thing)
        assert decide([Policy(tuple(session))], Asked(name, thing)) is Decision.ALLOW


@given(st.text("ab*?", max_size=12), st.text("ab", max_size=8))
@settings(max_examples=300, deadline=None)
def test_wildcards(text: str, name: str) -> None:
    assert (pattern(text).fullmatch(name) is not None) is fnmatch.fnmatchcase(name, text)


def test_no_pattern_takes_long() -> None:
    """Whoever may narrow a role, or put a resource policy, writes patterns; the platform goes on meanwhile."""
    for text in ("*?" * 500 + "!", "*a" * 500 + "!", "a*" * 500 + "!", "*" * 1000 + "!", "?" * 900 + "*a" * 200 + "!"):
        assert pattern(text).fullmatch("a" * 1000) is None
    with pytest.raises(ValidationException, match="there is no action"):
        policy({"Action": "*?" * 900 + "!"})


def test_a_role_without_policies_may_call_nothing() -> None:
    nobody = role()
    with pytest.raises(AccessDeniedException):
        authorized(nobody, "bedrock-agentcore:ListMemories", [])
    for model in SERVICES:
        for operation in service(model).operation_names:
            with pytest.raises(AccessDeniedException):
                authorized(nobody, action(model, operation), ["*"])


# One door.


async def test_who_was_not_authorized_is_nobody() -> None:
    """A caller by a role is no operator until somebody asked; where nobody did, it is closed to."""

    class Plane:
        name = "plane"
        arn_kinds: frozenset[str] = frozenset()

        async def get_memory(self, call: Call, request: Any) -> Any:
            return {"kind": call.caller.kind}

    backend, request = SelfBackend([Plane()]), {"memoryId": "notes-0123456789"}
    may = role({"Action": "bedrock-agentcore:GetMemory", "Resource": MEMORY})
    answer = await backend.invoke(Call("bedrock-agentcore-control", "GetMemory", may, "1"), request)
    assert answer == {"kind": CallerKind.OPERATOR}
    for caller in (role({"Action": "bedrock-agentcore:ListMemories"}), replace(may, grant=None)):
        with pytest.raises(AccessDeniedException, match="not authorized to perform: bedrock-agentcore:GetMemory"):
            await backend.invoke(Call("bedrock-agentcore-control", "GetMemory", caller, "1"), request)


def test_the_same_resource_in_every_form() -> None:
    """By name or ARN it is one; what names none of ours is refused, whatever the policy."""
    all_but_one = role(
        {"Action": "bedrock-agentcore:*"}, {"Effect": "Deny", "Action": "bedrock-agentcore:*Memory", "Resource": MEMORY}
    )
    for given_ in ("notes-0123456789", MEMORY):
        assert not may(all_but_one, "GetMemory", {"memoryId": given_}, "bedrock-agentcore-control")
    assert may(all_but_one, "GetMemory", {"memoryId": "other-0123456789"}, "bedrock-agentcore-control")
    elsewhere, another = MEMORY.replace("123456789012", "210987654321"), MEMORY.replace("memory/", "runtime/")
    for odd in ("x/notes-0123456789", "", elsewhere, another, f"{MEMORY}/x", "a\nb", "*"):
        with pytest.raises(AccessDeniedException, match="names no resource of this deployment"):
            called(all_but_one, "GetMemory", {"memoryId": odd}, "bedrock-agentcore-control")


def test_a_model_is_what_bedrock_will_be_asked_for() -> None:
    """An ARN is itself, not a model that is called like its end: that may be somebody's profile, which costs others."""
    model = "arn:aws:bedrock:us-west-2::foundation-model/small-1"
    profile = "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/small-1"
    guard = "arn:aws:bedrock:us-west-2:210987654321:guardrail/g1"
    small = role({"Action": "bedrock:InvokeModel", "Resource": model})
    profiles = role({"Action": "bedrock:InvokeModel", "Resource": "arn:aws:bedrock:*:123456789012:*-profile/*"})
    guards = role({"Action": "bedrock:ApplyGuardrail", "Resource": guard.replace("210987654321", "123456789012")})
    for caller, operation, request, allowed in (
        (small, "Converse", {"modelId": "small-1"}, True),
        (small, "Converse", {"modelId": model}, True),
        (small, "Converse", {"modelId": profile}, False),
        (small, "Converse", {"modelId": model.replace("us-west-2", "eu-west-1")}, False),
        (small, "Converse", {"modelId": "arn:aws:sagemaker:us-west-2:123456789012:endpoint/small-1"}, False),
        (profiles, "InvokeModel", {"modelId": profile}, True),
        (profiles, "InvokeModel", {"modelId": model}, False),
        (guards, "ApplyGuardrail", {"guardrailIdentifier": "g1"}, True),
        (guards, "ApplyGuardrail", {"guardrailIdentifier": guard}, False),
    ):
        assert may(caller, operation, request, "bedrock-runtime") is allowed, request


def test_an_endpoint_is_its_runtimes_too() -> None:
    arn = HERE.arn("runtime/agent-0123456789")
    call = Call("bedrock-agentcore", "InvokeAgentRuntime", role(), "1")
    asked = {"agentRuntimeArn": arn}
    assert resources(call, asked, HERE) == (arn, f"{arn}/runtime-endpoint/DEFAULT")
    assert resources(call, {**asked, "qualifier": "live"}, HERE) == (arn, f"{arn}/runtime-endpoint/live")
    invoke = {"Action": "bedrock-agentcore:InvokeAgentRuntime", "Resource": [arn, f"{arn}/runtime-endpoint/live"]}
    assert may(role(invoke), "InvokeAgentRuntime", {**asked, "qualifier": "live"})
    assert not may(role(invoke), "InvokeAgentRuntime", asked)
    # Naming a user is a permission of its own.
    assert not may(role(invoke), "InvokeAgentRuntime", {**asked, "qualifier": "live", "runtimeUserId": "alice"})
    naming = {**invoke, "Action": "bedrock-agentcore:InvokeAgentRuntime*"}
    assert may(role(naming), "InvokeAgentRuntime", {**asked, "qualifier": "live", "runtimeUserId": "alice"})


def test_a_resource_is_given_a_role_by_who_may_pass_it() -> None:
    """As in IAM. Resource policies know agents by their role: who makes one may not give it any name they allow."""
    passing = {"Action": "iam:PassRole", "Resource": "arn:aws:iam::*:role/reports-*"}
    maker = role({"Action": ["bedrock-agentcore:CreateAgentRuntime", "bedrock-agentcore:UpdateAgentRuntime"]}, passing)
    for name, allowed in (("reports-1", True), ("payroll", False)):
        made = {"agentRuntimeName": "x", "roleArn": f"arn:aws:iam::123456789012:role/{name}"}
        assert may(maker, "CreateAgentRuntime", made, "bedrock-agentcore-control") is allowed
        changed = {"agentRuntimeId": "x-0123456789", **made}
        assert may(maker, "UpdateAgentRuntime", changed, "bedrock-agentcore-control") is allowed


def test_conditions_on_actor_session_and_namespace() -> None:
    ours = role(
        {
            "Action": ["bedrock-agentcore:CreateEvent", "bedrock-agentcore:ListEvents"],
            "Condition": {"StringLike": {"bedrock-agentcore:actorId": "team-*"}},
        },
        {
            "Action": "bedrock-agentcore:RetrieveMemoryRecords",
            "Condition": {"StringLike": {"bedrock-agentcore:namespacePath": "/teams/ours/*"}},
        },
        {
            "Effect": "Deny",
            "Action": "bedrock-agentcore:CreateEvent",
            "Condition": {"StringEqualsIfExists": {"bedrock-agentcore:sessionId": ["closed", "gone"]}},
        },
    )
    memory = {"memoryId": "notes-0123456789"}
    assert may(ours, "ListEvents", {**memory, "actorId": "team-1", "sessionId": "s"})
    assert not may(ours, "ListEvents", {**memory, "actorId": "another", "sessionId": "s"})
    assert may(ours, "CreateEvent", {**memory, "actorId": "team-1", "sessionId": "s"})
    assert not may(ours, "CreateEvent", {**memory, "actorId": "team-1", "sessionId": "gone"})
    for path, allowed in (("/teams/ours", True), ("teams/ours/a/", True), ("/teams", False), ("/teams/oursand", False)):
        assert may(ours, "RetrieveMemoryRecords", {**memory, "namespacePath": path}) is allowed, path
    assert not may(ours, "RetrieveMemoryRecords", {**memory, "namespace": "/teams/ours/"})
    only = {"StringNotLike": {"bedrock-agentcore:namespacePath": "/teams/ours/*"}}
    retrieve = {"Action": "bedrock-agentcore:RetrieveMemoryRecords"}
    fenced = role(retrieve, {"Effect": "Deny", **retrieve, "Condition": only})
    for name, path, allowed in (
        ("namespacePath", "/teams/ours/", True), ("namespacePath", "/", False), ("namespace", "/teams/ours/", False),
    ):  # fmt: skip
        assert may(fenced, "RetrieveMemoryRecords", {**memory, name: path}) is allowed


# Users.


async def test_acting_for_users_is_a_permission_of_its_own() -> None:
    """For the users it names; "all" is only what names all and denies none."""
    acting = ActingForUsers(LoggedAudit(), SystemClock())
    some = role({"Action": ACT_FOR_USER, "Resource": user_arn("123456789012", "al*")})
    all_ = role({"Action": ACT_FOR_USER, "Resource": user_arn("123456789012", "*")})
    but_one = role(
        {"Action": ACT_FOR_USER},
        {"Effect": "Deny", "Action": ACT_FOR_USER, "Resource": user_arn("123456789012", "bob")},
    )
    nobody = role({"Action": ["bedrock-agentcore:*", "agentkeep:Read*", "agentkeep:Write*"]})
    expected = {
        "alice": (some, all_, but_one),
        "bob": (all_,),
        None: (all_,),
    }
    for user, allowed in expected.items():
        for caller in (some, all_, but_one, nobody):
            operator = replace(caller, kind=CallerKind.OPERATOR)
            assert caller.acts_for(user) is (caller in allowed and any(caller is one for one in allowed))
            if any(caller is one for one in allowed):
                require_acting(operator, "ListEvents")
                await acting.admit(operator, "ListEvents", "memory m", user)
            else:
                with pytest.raises(AccessDeniedException, match=f"not authorized to perform: {ACT_FOR_USER}"):
                    await acting.admit(operator, "ListEvents", "memory m", user)
    with pytest.raises(AccessDeniedException, match="which ListEvents needs"):
        require_acting(replace(nobody, kind=CallerKind.OPERATOR), "ListEvents")


# Every operation.


def test_each_operation_has_an_action_and_what_is_served_its_resources() -> None:
    """What an operation names of ours a policy can name too; those on nothing in particular are creations and lists."""
    for model in SERVICES:
        for operation in service(model).operation_names:
            name = action(model, operation)
            assert name in actions(), name
            if model != "bedrock-runtime":
                assert name == f"bedrock-agentcore:{operation}"
    served = {
        (model, operation)
        for model in SERVICES
        for operation in service(model).operation_names
        if any(hasattr(plane, xform_name(operation)) for plane in PLANES)
    }
    assert len(served) > 90
    on_nothing = {operation for model, operation in served if forms(model, operation) == ("*",)}
    assert on_nothing == {
        "CreateAgentRuntime", "CreateGateway", "CreateMemory", "CreatePolicyEngine", "ListAgentRuntimes",
        "ListApiKeyCredentialProviders", "ListGateways", "ListMemories", "ListOauth2CredentialProviders",
        "ListPolicyEngines", "ListPolicyEngineSummaries", "ListWorkloadIdentities",
    }  # fmt: skip


def test_the_platforms_own_policies_allow_what_they_say() -> None:
    """Not one of them but acts-for-users acts for users; nobody but administrators makes keys or revokes roles."""
    grants = {name: Grant(PRINCIPAL, HERE, (parse_permissions(shipped(name, HERE), HERE),)) for name in SHIPPED}
    allowed = {name: {one for one in actions() if _anywhere(grant, one)} for name, grant in grants.items()}
    assert {name for name, may in allowed.items() if ACT_FOR_USER in may} == {"acts-for-users"}
    assert allowed["acts-for-users"] == {ACT_FOR_USER}
    assert allowed["administrator"] == set(actions()) - {ACT_FOR_USER}
    reserved = {"agentkeep:WriteOperatorKeys", "agentkeep:WriteRoles", "bedrock-agentcore:DeleteMemory"}
    data = {"bedrock-agentcore:GetEvent", "bedrock-agentcore:GetResourceApiKey", "bedrock-agentcore:InvokeAgentRuntime"}
    for name, refused in (
        ("deployer", reserved | data),
        ("auditor", reserved | data | {"agentkeep:ReadLogs", "agentkeep:ReadTraces"}),
        ("application", reserved | {"bedrock-agentcore:CreateMemory", "bedrock-agentcore:GetMemory"}),
    ):
        assert allowed[name].isdisjoint(refused), name
    assert not any(one.startswith(("bedrock-agentcore:Create", "agentkeep:Write")) for one in allowed["auditor"])
    assert data <= allowed["application"]
    tagging = {"agentkeep:issuers": "https://login.example"}
    for name, place, tags in (
        ("deployer", "memory/x", False), ("deployer", "runtime/x", True), ("administrator", "memory/x", True),
    ):  # fmt: skip
        caller = Caller(CallerKind.ROLE, PRINCIPAL, "ASIA", grant=grants[name])
        asked = {"resourceArn": HERE.arn(place), "tags": tagging}
        assert may(caller, "TagResource", asked, "bedrock-agentcore-control") is tags, (name, place)


def _anywhere(grant: Grant, name: str) -> bool:
    places = [HERE.arn("memory/x"), HERE.arn("runtime/x"), "*", user_arn("123456789012", "x")]
    return any(grant.allows(name, place) for place in places)


# What is refused when it is read.

_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an action there is not": ({"Action": "bedrock-agentcore:GetMemry"}, "there is no action"),
    "another service": ({"Action": "s3:GetObject"}, "there is no action"),
    "negation": ({"NotAction": "bedrock-agentcore:GetMemory"}, "NotAction is not evaluated"),
    "a principal": ({"Action": "bedrock-agentcore:*", "Principal": "*"}, "Principal is not evaluated"),
    "an effect": ({"Action": "bedrock-agentcore:*", "Effect": "allow"}, '"Effect" must be'),
    "no resource": ({"Action": "bedrock-agentcore:*", "Resource": []}, '"Action" and "Resource"'),
    "another account's": (
        {"Action": "bedrock-agentcore:GetMemory", "Resource": Deployment("us-west-2").arn("memory/*")},
        "no resource here is called",
    ),
    "no form of a resource": (
        {"Action": "bedrock-agentcore:*", "Resource": HERE.arn("memories/x")}, "no resource here is called",
    ),
    "another kind's": (
        {"Action": "bedrock-agentcore:GetMemory", "Resource": HERE.arn("gateway/x")}, "never on a resource",
    ),
    "a creation of one": (
        {"Effect": "Deny", "Action": "bedrock-agentcore:CreateMemory", "Resource": HERE.arn("memory/secret*")},
        "never on a resource",
    ),
    "an operator": (
        {"Action": "bedrock-agentcore:ListEvents", "Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}},
        "IpAddress.*is not evaluated here",
    ),
    "sets": (
        {
            "Action": "bedrock-agentcore:ListEvents",
            "Condition": {"ForAllValues:StringEquals": {"bedrock-agentcore:actorId": "a"}},
        },
        "is not evaluated here",
    ),
    "a key that is not there": (
        {"Action": "bedrock-agentcore:ListEvents", "Condition": {"StringEquals": {"aws:ResourceTag/team": "a"}}},
        "have no condition key",
    ),
    "a key of others": (
        {"Action": "bedrock-agentcore:GetMemory", "Condition": {"StringEquals": {"bedrock-agentcore:actorId": "a"}}},
        "have no condition key",
    ),
    "a denial about what is not there": (
        {
            "Effect": "Deny", "Action": "bedrock-agentcore:*",
            "Condition": {"StringEquals": {"bedrock-agentcore:actorId": "a"}},
        },
        "Name the actions that have it",
    ),
    "a variable": (
        {
            "Action": "bedrock-agentcore:ListEvents",
            "Condition": {"StringEquals": {"bedrock-agentcore:actorId": "${aws:username}"}},
        },
        "policy variables are not evaluated",
    ),
    "a path that one above it leads around": (
        {
            "Effect": "Deny", "Action": "bedrock-agentcore:RetrieveMemoryRecords",
            "Condition": {"StringLike": {"bedrock-agentcore:namespacePath": "/users/bob/*"}},
        },
        "what is open, not what is closed",
    ),
    "all paths but one": (
        {
            "Action": "bedrock-agentcore:RetrieveMemoryRecords",
            "Condition": {"StringNotLike": {"bedrock-agentcore:namespacePath": "/users/bob/*"}},
        },
        "what is open, not what is closed",
    ),
    "a path, if one is named": (
        {
            "Action": "bedrock-agentcore:GetMemoryRecord",
            "Condition": {"StringLikeIfExists": {"bedrock-agentcore:namespace": "/teams/ours/*"}},
        },
        "what is open, not what is closed",
    ),
    "half a path": (
        {
            "Action": "bedrock-agentcore:RetrieveMemoryRecords",
            "Condition": {"StringEquals": {"bedrock-agentcore:namespace": "teams/ours"}},
        },
        "begin and end with a slash",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", _REFUSED)
def test_what_is_not_honoured_is_refused(what: str) -> None:
    statement, message = _REFUSED[what]
    with pytest.raises(ValidationException, match=message):
        policy(statement)


def test_condition_keys_are_of_their_operations() -> None:
    assert condition_keys("CreateEvent") == {"bedrock-agentcore:actorid", "bedrock-agentcore:sessionid"}
    assert condition_keys("BatchDeleteMemoryRecords") == frozenset()
