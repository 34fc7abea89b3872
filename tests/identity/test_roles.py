"""The file of roles: every place that is wrong is named, and the platform does not start with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from role_stand import write_roles

from agentkeep.core.call import CallerKind
from agentkeep.core.errors import ValidationException
from agentkeep.core.identifiers import Deployment
from agentkeep.identity.access_keys.records import RoleSession
from agentkeep.identity.roles.roles import Roles, RolesInvalid, unique_id
from agentkeep.identity.settings import IdentitySettings

HERE = Deployment("us-west-2", "123456789012")
TRUST = {"issuer": "https://login.example.com", "audiences": ["agentkeep"]}
ROLE: dict[str, Any] = {"name": "ops", "trust": [TRUST], "policies": ["auditor"]}

_WRONG: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a member": ([{**ROLE, "trusts": []}], "trusts: Extra inputs"),
    "nothing allowed": ([{**ROLE, "policies": []}], "may do nothing"),
    "nobody trusted": ([{**ROLE, "trust": []}], r"roles\.0\.trust"),
    "a part alone, and nothing of what it is in": (
        [{**ROLE, "trust": [{**TRUST, "claims": {"groups": ["platform"]}}]}],
        r"are wrong: roles\.0\.trust\.0\.claims\.groups: must be a text, .*\. See docs",
    ),
    "no audience": ([{**ROLE, "trust": [{**TRUST, "audiences": []}]}], "audiences"),
    "an unsafe issuer": ([{**ROLE, "trust": [{**TRUST, "issuer": "http://login.example.com"}]}], "https"),
    "a policy there is not": ([{**ROLE, "policies": ["root"]}], "there is no policy 'root'; there are administrator"),
    "a policy that is not honoured": (
        [{**ROLE, "policy": {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*"}]}}],
        "role ops: Statement 1 of the policy",
    ),
    "two of a name": ([ROLE, ROLE], "several roles are called ops"),
    "a session's name": ([{**ROLE, "name": "helper-0123456789"}], "agent runtime's id"),
    "a name with a path": ([{**ROLE, "name": "a/b"}], r"roles\.0\.name"),
    "too long a life": ([{**ROLE, "maxSessionDuration": 43_201}], "maxSessionDuration"),
    "one issuer in two places": (
        [ROLE, {**ROLE, "name": "b", "trust": [{**TRUST, "discoveryUrl": "https://login.example.com/other"}]}],
        "one discoveryUrl here and another there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", _WRONG)
def test_what_is_wrong_is_named(what: str) -> None:
    roles, message = _WRONG[what]
    with pytest.raises(RolesInvalid, match=message):
        Roles.parse(json.dumps({"roles": roles}).encode(), "roles.json", HERE)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RolesInvalid, match=r"cannot be read.*AGENTKEEP_IDENTITY_ROLES"):
        Roles.load(tmp_path / "none", HERE)
    (tmp_path / "roles").write_text("{")
    with pytest.raises(RolesInvalid, match="are not JSON"):
        Roles.load(tmp_path / "roles", HERE)


def test_who_is_trusted_in_words() -> None:
    """An issuer may be everybody's: that no claim is asked for is said aloud."""
    named = {**TRUST, "claims": {"groups": {"contains": "platform"}}, "sessionName": "email"}
    roles = Roles.parse(json.dumps({"roles": [{**ROLE, "trust": [TRUST, named]}]}).encode(), "roles.json", HERE)
    role = roles.named("ops")
    assert role is not None
    anyone, some = (trust.described for trust in role.trust)
    assert anyone == "tokens of https://login.example.com for agentkeep, whoever's they are: no claim is asked"
    assert some.endswith("by their claims groups; the session is called as in email")


def test_what_is_said_twice_is_refused() -> None:
    """Of two conditions of one name, say, a reader sees the last and a parser may keep the first."""
    twice = '{"StringEquals": {"bedrock-agentcore:actorId": "a"}, "StringEquals": {"bedrock-agentcore:sessionId": "s"}}'
    action = '"Effect": "Allow", "Action": "bedrock-agentcore:CreateEvent", "Resource": "*"'
    policy = f'{{"Version": "2012-10-17", "Statement": {{{action}, "Condition": {twice}}}}}'
    trust = json.dumps(TRUST)
    written = f'{{"roles": [{{"name": "ops", "trust": [{trust}], "policy": {policy}}}]}}'
    with pytest.raises(RolesInvalid, match="'StringEquals' twice"):
        Roles.parse(written.encode(), "roles.json", HERE)
    roles = Roles.parse(json.dumps({"roles": [ROLE]}).encode(), "roles.json", HERE)
    for text, message in ((policy, "'StringEquals' twice"), ("[" * 990, "not JSON"), ("[" * 1000 + "]" * 1000, "deep")):
        with pytest.raises(ValidationException, match=message):
            roles.session_policy(text)
    assert roles.caller(RoleSession("ops", "olivia", "sub", "iss", policy), "ASIA") is None


async def test_the_platform_does_not_start_with_it(make_plane: Any, tmp_path: Path) -> None:
    with pytest.raises(RolesInvalid):
        make_plane(IdentitySettings(roles=write_roles(tmp_path / "roles", {**ROLE, "policies": []})))


def test_a_caller_by_a_role() -> None:
    roles = Roles.parse(json.dumps({"roles": [ROLE]}).encode(), "roles.json", HERE)
    caller = roles.caller(RoleSession("ops", "olivia", "sub", "iss"), "ASIA")
    assert caller is not None and caller.kind is CallerKind.ROLE
    assert caller.principal == "arn:aws:sts::123456789012:assumed-role/ops/olivia"
    assert roles.caller(RoleSession("gone", "olivia", "sub", "iss"), "ASIA") is None
    # A narrowing that cannot be honoured any more narrows to nothing, not to all.
    assert roles.caller(RoleSession("ops", "olivia", "sub", "iss", "{}"), "ASIA") is None
    assert roles.by_arn("arn:aws:iam::123456789012:role/ops") is roles.named("ops")
    for other in ("arn:aws:iam::000000000000:role/ops", "ops", "arn:aws:iam::123456789012:role/x/ops", ""):
        assert roles.by_arn(other) is None
    assert roles.discovery_url("https://login.example.com") == TRUST["issuer"] + "/.well-known/openid-configuration"
    assert roles.discovery_url("https://login.example.com/") is None


def test_ids_have_the_form_of_iam_s() -> None:
    assert len(unique_id("AROA", "ops")) == 21
    assert unique_id("AROA", "ops") != unique_id("AROA", "opt")
