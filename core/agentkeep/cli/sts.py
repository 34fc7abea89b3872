"""`agentkeep sts`: what operators need of users' credentials in AWS."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from agentkeep.cli.output import AsJson, CommandError, notes, show

__all__ = ["app"]

app = typer.Typer(name="sts", help="Users' credentials in AWS, by AWS STS.", no_args_is_help=True)

_ROLE = re.compile(r"(?:arn:aws[a-z-]*:iam::[0-9]{12}:role/(?:[!-~]+/)?)?([\w+=,.@-]{1,64})", re.ASCII)
_AGENT = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,47}-[A-Za-z0-9]{10}")
_POLICY_NAME = "agentkeep-revoked-sessions"


@app.command("revocation-policy")
def revocation_policy(
    role: Annotated[str, typer.Argument(help="The IAM role, by name or ARN.")],
    before: Annotated[
        str | None, typer.Option(help="End what was given out before this moment, e.g. 2026-11-23T12:00:00Z. Now.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Only of this user: the token's sub. With --issuer, --agent.")
    ] = None,
    issuer: Annotated[str | None, typer.Option(help="The token's iss.")] = None,
    agent: Annotated[str | None, typer.Option(help="The agent runtime's id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the policy that ends credentials a role has given out: AWS honours them until they expire, whatever has
    become of the session here."""
    from agentkeep.core.call import User
    from agentkeep.identity.sts.sessions import revocation_policy, role_session_name

    named = _ROLE.fullmatch(role)
    if named is None:
        raise CommandError(
            f"{role!r} is no IAM role.", "Give its name, or its ARN: arn:aws:iam::<account>:role/<name>."
        )
    one = (user, issuer, agent)
    if any(one) and not all(one):
        raise CommandError(
            "A user's sessions are found by user, issuer and agent together.",
            "Give --user, --issuer and --agent, or none of them: then all sessions of the role end.",
        )
    if agent and not _AGENT.fullmatch(agent):  # the policy would name sessions that there are none of, and end nothing
        raise CommandError(
            f"{agent!r} is no agent runtime's id.", "Give the id, name and ten characters: reports-a1b2c3d4e5."
        )
    session_name = role_session_name(User(user, issuer), agent) if user and issuer and agent else None
    policy = revocation_policy(_moment(before), session_name)
    show(policy, True)
    if not as_json:
        name = shlex.quote(named[1])
        # Each user's has a name of its own: one policy put in another's place would bring back what that one ended.
        called = _POLICY_NAME if session_name is None else f"{_POLICY_NAME}-{session_name}"
        notes.print(
            f"To put it on the role:  aws iam put-role-policy --role-name {name} --policy-name {shlex.quote(called)} "
            "--policy-document file://<this output>",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


@app.command("check-rules")
def check_rules(
    file: Annotated[Path, typer.Argument(help="The file that AGENTKEEP_IDENTITY_STS_RULES names.")],
    as_json: AsJson = False,
) -> None:
    """Read rules for STS as the platform does when it starts, and say what is wrong with them."""
    from agentkeep.identity.sts.rules import StsRules, StsRulesInvalid

    try:
        rules = StsRules.load(file)
    except StsRulesInvalid as error:
        raise CommandError(f"{error}.") from None
    show(
        {"rules": [{"name": rule.name, "role": rule.role} for rule in rules.rules], "default": rules.default},
        as_json,
        *(f"{rule.name}: {', '.join(rule.agents)} -> {rule.role or 'keys of the platform'}" for rule in rules.rules),
        "whom no rule names is refused",
    )


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None:
        raise CommandError(f"{text!r} is no moment.", "Write it with its zone, e.g. 2026-11-23T12:00:00Z.")
    return moment
