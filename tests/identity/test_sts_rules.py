"""Which role a session's user gets: rules in a file, read strictly, matched by what was proved and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from agentkeep.core.call import User
from agentkeep.identity.sts.rules import StsRules, StsRulesInvalid

ISSUER = "https://login.example.com"
ROLE = "arn:aws:iam::111122223333:role/finance-agent"
REPORTS = "reports-a1b2c3d4e5"
POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::d/${agentkeep:user}/*"}],
}


def rule(**changes: Any) -> dict[str, Any]:
    whole = {"name": "finance", "agents": ["reports"], "issuer": ISSUER, "role": ROLE, **changes}
    return {name: value for name, value in whole.items() if value is not None}


def rules(*given: dict[str, Any]) -> StsRules:
    return StsRules.parse(json.dumps({"rules": given, "default": "refuse"}).encode(), "rules.json")


def chosen(found: StsRules, runtime_id: str = REPORTS, **claims: Any) -> str | None:
    match = found.choose(runtime_id, {"iss": ISSUER, "sub": "alice", **claims})
    return None if match is None else match.name


def test_the_first_that_matches_decides_and_none_refuses() -> None:
    """IDN-1."""
    found = rules(
        rule(claims={"groups": {"contains": "finance"}}),
        rule(name="readers", agents=["*"], claims={"email_verified": True}),
        rule(name="no AWS", agents=["chat"], issuer=None, role=None, keys="platform"),
    )
    assert chosen(found, groups=["finance", "staff"], email_verified=True) == "finance"
    assert chosen(found, groups=["staff"], email_verified=True) == "readers"
    assert chosen(found, groups=["staff"]) is None
    assert chosen(found, "chat-a1b2c3d4e5") == "no AWS"
    assert found.choose("chat-a1b2c3d4e5", {}) is not None, "its sessions need no token"
    assert found.choose(REPORTS, {}) is None


@pytest.mark.parametrize(
    ("wanted", "claims", "matches"),
    [
        ({"groups": {"contains": "finance"}}, {"groups": ["finance"]}, True),
        ({"groups": {"contains": "finance"}}, {"groups": ["finance-readers"]}, False),
        ({"groups": {"contains": "finance"}}, {"groups": "finance"}, False),
        ({"name": {"contains": "finance"}}, {"name": "Mr finance"}, False),
        ({"scope": {"contains": "aws"}}, {"scope": "openid aws"}, True),
        ({"scope": {"contains": "aws"}}, {"scope": "openid awsome"}, False),
        ({"department": "research"}, {"department": "research"}, True),
        ({"department": "research"}, {"department": "Research"}, False),
        ({"department": "research"}, {"department": ["research"]}, False),
        ({"department": {"anyOf": ["law", "research"]}}, {"department": "law"}, True),
        ({"department": {"anyOf": ["law", "research"]}}, {}, False),
        ({"email_verified": True}, {"email_verified": True}, True),
        ({"email_verified": True}, {"email_verified": "true"}, False),
        ({"email_verified": True}, {"email_verified": 1}, False),
        ({"level": 1}, {"level": True}, False),
        ({"realm_access.roles": {"contains": "admin"}}, {"realm_access": {"roles": ["admin"]}}, True),
        ({"https://a.example/tags.team": "x"}, {"https://a.example/tags": {"team": "x"}}, True),
        ({"a.b": "real"}, {"a.b": "other", "a": {"b": "real"}}, False),
        ({"sub": "alice"}, {"sub": "alice"}, True),
        ({"sub": "alice"}, {"sub": "bob", "alice": "sub"}, False),
    ],
)
def test_claims_are_compared_exactly(wanted: dict[str, Any], claims: dict[str, Any], matches: bool) -> None:
    assert (chosen(rules(rule(claims=wanted)), **claims) == "finance") is matches


def test_another_issuers_users_match_no_rule() -> None:
    """IDN-1: whoever may write claims elsewhere is nobody here."""
    found = rules(rule(claims={"groups": {"contains": "finance"}}))
    assert chosen(found, groups=["finance"], iss="https://login.example.com.evil.example") is None
    assert chosen(found, groups=["finance"], iss=[ISSUER]) is None


@pytest.mark.parametrize(
    ("agents", "runtime_id", "matches"),
    [
        (["reports"], REPORTS, True),
        ([REPORTS], REPORTS, True),
        (["reports-zzzzzzzzzz"], REPORTS, False),
        (["reports"], "reports_2-a1b2c3d4e5", False),
        (["report"], REPORTS, False),
        (["other", "*"], REPORTS, True),
    ],
)
def test_agents_by_name_or_id(agents: list[str], runtime_id: str, matches: bool) -> None:
    assert (chosen(rules(rule(agents=agents)), runtime_id) == "finance") is matches


def test_a_policy_is_narrowed_to_the_user() -> None:
    """IDN-1. A name is nothing but a name in it, whatever it is made of."""
    found = rules(rule(policy=POLICY)).rules[0]
    resources = {}
    for user in ("alice", "a/../b", "*", "${aws:username}", "a?", 'x","Effect":"Deny', "alice@example.com"):
        policy = json.loads(found.session_policy(REPORTS, User(user, ISSUER)) or "")
        assert policy["Statement"][0] | {"Resource": ""} == POLICY["Statement"][0] | {"Resource": ""}  # type: ignore[index]
        resources[user] = policy["Statement"][0]["Resource"].removeprefix("arn:aws:s3:::d/").removesuffix("/*")
    assert resources["alice"] == "alice"
    assert resources["alice@example.com"] == "alice@example.com"
    assert len(set(resources.values())) == len(resources)
    assert all(re.fullmatch(r"[A-Za-z0-9_.~@%-]+", resource) for resource in resources.values())


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{", "not JSON"),
        ({"rules": [rule()]}, "default"),
        ({"rules": [rule()], "default": "platform"}, "default"),
        ({"rules": [], "default": "refuse"}, "rules"),
        ({"rules": [rule()], "default": "refuse", "rule": []}, "rule"),
        ({"rules": [rule(issuer=None)], "default": "refuse"}, "issuer"),
        ({"rules": [rule(role="admin")], "default": "refuse"}, "rules.0.role"),
        ({"rules": [rule(role=None)], "default": "refuse"}, "either"),
        ({"rules": [rule(keys="platform")], "default": "refuse"}, "either"),
        ({"rules": [rule(role=None, keys="platform", policy=POLICY)], "default": "refuse"}, "narrow"),
        ({"rules": [rule(agents=[])], "default": "refuse"}, "rules.0.agents"),
        ({"rules": [rule(agents=["rep*"])], "default": "refuse"}, "rules.0.agents"),
        ({"rules": [rule(claim={})], "default": "refuse"}, "rules.0.claim"),
        ({"rules": [rule(claims={"x": None})], "default": "refuse"}, "rules.0.claims.x"),
        ({"rules": [rule(claims={"x": {"equals": "y"}})], "default": "refuse"}, "rules.0.claims.x"),
        ({"rules": [rule(policyArns=["admin"])], "default": "refuse"}, "rules.0.policyArns"),
        ({"rules": [rule(policy={"x": "${agentkeep:session}"})], "default": "refuse"}, "session"),
        ({"rules": [rule(policy={"x": "y" * 2100})], "default": "refuse"}, "2048"),
        ({"rules": [rule(), rule()], "default": "refuse"}, "several rules are called finance"),
    ],
)
def test_what_cannot_be_meant_is_refused(document: Any, says: str) -> None:
    """Each says where it is wrong; the platform does not start on such rules."""
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(StsRulesInvalid, match=re.escape(says)):
        StsRules.parse(text.encode(), "rules.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StsRulesInvalid, match="cannot be read: No such file"):
        StsRules.load(tmp_path / "rules.json")
