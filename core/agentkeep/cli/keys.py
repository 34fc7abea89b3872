"""`agentkeep keys`: access keys of operators and applications."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from agentkeep.cli.deployment import Deployment
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir
from agentkeep.cli.output import AsJson, show, table

app = typer.Typer(help="Access keys of operators and applications.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is; several may share a name.")],
    acts_for_users: Annotated[
        bool,
        typer.Option(
            "--acts-for-users",
            help="It may read and write users' memory and name users without their tokens. Each use is on record.",
        ),
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Issue a key. Its secret is shown now and never again."""
    asked = json.dumps({"name": name, "actsForUsers": acts_for_users}).encode()
    key = json.loads(Deployment(data_dir).request("POST", "/operator-keys", asked))
    show(
        key,
        as_json,
        f"AWS_ACCESS_KEY_ID={key['accessKeyId']}",
        f"AWS_SECRET_ACCESS_KEY={key['secretAccessKey']}",
    )


@app.command("list")
def list_keys(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List the keys that live, without their secrets."""
    answer = json.loads(Deployment(data_dir).request("GET", "/operator-keys"))
    rows = [{**key, "acts": "yes" if key["actsForUsers"] else "no"} for key in answer["keys"]]
    columns = {"accessKeyId": "key", "name": "name", "acts": "acts for users", "createdAt": "created"}
    table(answer, as_json, columns, rows, "There is no operator key.")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The access key's id (AKIA...).")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Revoke a key: within seconds nobody accepts it any more."""
    answer = json.loads(Deployment(data_dir).request("DELETE", f"/operator-keys/{key_id}"))
    show(answer, as_json, f"Revoked {key_id}.")
