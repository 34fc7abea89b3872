"""`agentkeep login`: a user's token from the development issuer of embedded mode."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
import urllib3

from agentkeep.cli.deployment import Deployment, refusal, write_private
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir
from agentkeep.cli.output import AsJson, CommandError, show

ISSUER_PATH = "/oidc"


def login(
    user: Annotated[str, typer.Option("--user", help="The user's name: the token's subject, the memory's actor.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Get a user's token from the development issuer; `invoke` then speaks as that user."""
    deployment = Deployment(data_dir)
    token = fetch_token(deployment, user)
    show(
        {"user": user, "access_token": token["access_token"], "expires_in": token["expires_in"]},
        as_json,
        f"Logged in as [bold]{user}[/] for {token['expires_in'] // 60} minutes.",
        "This issuer is for development: it believes the operator's key, it asks no password.",
    )


def fetch_token(deployment: Deployment, user: str) -> dict[str, Any]:
    """A token set for `user`, kept in logins.json until a minute before it expires."""
    path = deployment.data_dir / "logins.json"
    logins = _read(path)
    kept: dict[str, Any] | None = logins.get(user)
    if kept and kept["endpoint"] == deployment.running.endpoint and kept["expires"] > time.time() + 60:
        return {"access_token": kept["access_token"], "expires_in": int(kept["expires"] - time.time())}
    token = request_token(deployment, user)
    logins = {name: entry for name, entry in logins.items() if entry["expires"] > time.time()}
    logins[user] = {
        "endpoint": deployment.running.endpoint,
        "access_token": token["access_token"],
        "expires": time.time() + token["expires_in"],
        "at": time.time(),
    }
    write_private(path, json.dumps(logins))
    return token


def last_user(deployment: Deployment) -> str | None:
    """Whoever logged in last and is still logged in."""
    logins = _read(deployment.data_dir / "logins.json")
    alive = [(entry["at"], name) for name, entry in logins.items() if entry["expires"] > time.time()]
    return max(alive)[1] if alive else None


def request_token(deployment: Deployment, user: str) -> dict[str, Any]:
    """A new token set for `user`. Raises CommandError, also where there is no development issuer."""
    keys = deployment.credentials
    headers = urllib3.make_headers(basic_auth=f"{keys.access_key}:{keys.secret_key}")
    response = urllib3.request(
        "POST",
        f"{deployment.running.endpoint}{ISSUER_PATH}/token",
        body=urlencode(
            {
                "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",  # RFC 8693
                "subject_token": user,
                "subject_token_type": "urn:agentkeep:token-type:development-user",
                "scope": "openid",
            }
        ),
        headers={**headers, "content-type": "application/x-www-form-urlencoded"},
        timeout=10,
        retries=False,
    )
    if response.status == 404:
        raise CommandError(
            "This platform has no development issuer.",
            "Get a token from your identity provider, and pass it with `agentkeep invoke --token`.",
        )
    if response.status >= 300:
        raise refusal(response.status, response.data)
    token: dict[str, Any] = response.json()
    return token


def _read(path: Path) -> dict[str, Any]:
    try:
        logins: dict[str, Any] = json.loads(path.read_text())
        return logins
    except (FileNotFoundError, ValueError):
        return {}
