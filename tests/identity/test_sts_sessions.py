"""How a user's session is called in AWS, and the policy that ends those of a role."""

from __future__ import annotations

import itertools
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agentkeep.cli import sts
from agentkeep.cli.output import CommandError
from agentkeep.core.call import User
from agentkeep.identity.sts.sessions import revocation_policy, role_session_name

REPORTS = "reports-a1b2c3d4e5"


def test_no_two_users_or_agents_share_a_session_name() -> None:
    """IDN-1: names that are cut or cleaned to the same text differ all the same."""
    users = ["alice", "alice.", "Alice", "älice", "ålice", "a" * 64, "a" * 65, "", "a b", "a-b", "auth0|1", "auth0-1"]
    issuers = ["https://one.example", "https://two.example", None]
    agents = [REPORTS, "reports-zzzzzzzzzz", "x" * 48 + "-a1b2c3d4e5"]
    names = [
        role_session_name(User(user, issuer), agent)
        for user, issuer, agent in itertools.product(users, issuers, agents)
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w+=,.@-]{2,64}", name, re.ASCII) for name in names)
    name = role_session_name(User("alice@example.com", issuers[0]), REPORTS)
    assert name.startswith("alice@example.com+reports+")
    assert name == role_session_name(User("alice@example.com", issuers[0], {"any": "claim"}), REPORTS)


def test_revocation_policy() -> None:
    before = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
    assert revocation_policy(before)["Statement"] == [
        {
            "Effect": "Deny",
            "Action": ["*"],
            "Resource": ["*"],
            "Condition": {"DateLessThan": {"aws:TokenIssueTime": "2026-11-23T08:00:00Z"}},
        }
    ]
    assert revocation_policy(before, "alice+reports+x")["Statement"][0]["Condition"]["StringLike"] == {
        "aws:userid": "*:alice+reports+x"
    }


def run(*arguments: str) -> Result:
    return CliRunner().invoke(sts.app, arguments)


def test_the_command_prints_what_aws_takes() -> None:
    """IDN-1: what ends keys that AWS would honour until they expire."""
    role = "arn:aws:iam::111122223333:role/path/finance"
    done = run("revocation-policy", role, "--before", "2026-11-23T08:00:00Z")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == revocation_policy(datetime(2026, 11, 23, 8, 0, tzinfo=UTC))
    assert "aws iam put-role-policy --role-name finance " in done.stderr
    one = run("revocation-policy", "finance", "--user", "alice", "--issuer", "https://one.example", "--agent", REPORTS)
    name = role_session_name(User("alice", "https://one.example"), REPORTS)
    assert json.loads(one.stdout)["Statement"][0]["Condition"]["StringLike"] == {"aws:userid": f"*:{name}"}
    # Put in the place of another user's, it would bring back what that one ended.
    assert f"--policy-name agentkeep-revoked-sessions-{name} " in one.stderr
    by_name = ["finance", "--user", "alice", "--issuer", "https://one.example", "--agent", "reports"]
    for wrong in (["finance", "--user", "alice"], ["a b"], ["finance", "--before", "yesterday"], by_name):
        refused = run("revocation-policy", *wrong)
        assert isinstance(refused.exception, CommandError)
        assert refused.stdout == ""


def test_the_command_reads_rules_as_the_platform_does(tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text('{"rules": [{"name": "no AWS", "agents": ["*"], "keys": "platform"}], "default": "refuse"}')
    assert "no AWS: * -> keys of the platform" in run("check-rules", str(rules)).stdout
    rules.write_text('{"rules": []}')
    with pytest.raises(CommandError, match="default"):
        raise run("check-rules", str(rules)).exception or AssertionError
