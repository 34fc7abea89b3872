"""`agentkeep roles`: who may do what here, by tokens of identity providers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from agentkeep.cli.deployment import Deployment
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir
from agentkeep.cli.output import AsJson, CommandError, show, table

__all__ = ["app"]

app = typer.Typer(name="roles", help="Roles of people and applications.", no_args_is_help=True)

_Region = Annotated[str, typer.Option(help="The deployment's region (AGENTKEEP_REGION).")]
_Account = Annotated[str, typer.Option(help="The deployment's account (AGENTKEEP_ACCOUNT).")]


@app.command("list")
def list_roles(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List the roles: what they may do, and whose tokens prove them."""
    answer = json.loads(Deployment(data_dir).request("GET", "/roles"))
    rows = [
        {**role, "may": ", ".join(role["policies"]), "from": ", ".join(role["issuers"])} for role in answer["roles"]
    ]
    columns = {"name": "role", "may": "policies", "maxSessionDuration": "seconds", "from": "issuers"}
    table(answer, as_json, columns, rows, "There is no role. AGENTKEEP_IDENTITY_ROLES names a file of them.")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The role, by name.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Revoke all keys that a role has given until now: within seconds nobody accepts them any more. Who is still
    trusted with the role can get new ones."""
    answer = json.loads(Deployment(data_dir).request("POST", f"/roles/{name}/revoke"))
    show(answer, as_json, f"Revoked all keys of {name}.")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The file that AGENTKEEP_IDENTITY_ROLES names.")],
    region: _Region = "us-east-1",
    account: _Account = "000000000000",
    as_json: AsJson = False,
) -> None:
    """Read roles as the platform does when it starts, and say what is wrong with them, or who may do what."""
    from agentkeep.core.identifiers import Deployment as Place
    from agentkeep.identity.roles.roles import Roles, RolesInvalid

    try:
        roles = Roles.load(file, Place(region, account))
    except RolesInvalid as error:
        fix = f"It was read for region {region} and account {account}: --region and --account name others."
        raise CommandError(f"{str(error).rstrip('.')}.", fix) from None
    answer = roles.listed()
    lines = []
    for listed in answer["roles"]:
        lines.append(f"{listed['name']}: {', '.join(listed['policies'])}")
        role = roles.named(listed["name"])
        assert role is not None, "it was listed"
        lines += [f"    {trust.described}" for trust in role.trust]
    show(answer, as_json, *map(escape, lines))


@app.command()
def policy(
    name: Annotated[str, typer.Argument(help="One of the platform's own policies: administrator, deployer, ...")],
    region: _Region = "us-east-1",
    account: _Account = "000000000000",
) -> None:
    """Print one of the platform's own policies, as a role has it; to begin one of your own with."""
    from agentkeep.core.identifiers import Deployment as Place
    from agentkeep.identity.roles.shipped_policies import SHIPPED, shipped

    if name not in SHIPPED:
        raise CommandError(f"There is no policy {name!r}.", f"There are {', '.join(SHIPPED)}.")
    show(shipped(name, Place(region, account)), True)
