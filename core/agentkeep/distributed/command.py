"""`python -m agentkeep.service ...`: serves one plane; makes the secrets; tells the operator's key; asks for health."""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from agentkeep.core.errors import AgentkeepError
from agentkeep.distributed.secrets import IMAGE_USERS, SecretsMissing, make_secrets
from agentkeep.distributed.settings import ServiceSettings, SettingsInvalid, load
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.service.ownership import PLANES

__all__ = ["main"]

_WRONG: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 the service failed, or is not ready; 2 settings or secrets are wrong."""
    parser = argparse.ArgumentParser(prog="python -m agentkeep.service", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for plane in PLANES:
        commands.add_parser(plane, help=f"serve the {plane} plane until SIGTERM")
    secrets = commands.add_parser("secrets", help="make all services' secrets, once; nothing is ever replaced")
    secrets.add_argument("folder", type=Path)
    secrets.add_argument("--keep-owner", action="store_true", help="do not give the files to the images' users")
    commands.add_parser("operator-key", help="print the operator's key as JSON, with the identity service's settings")
    health = commands.add_parser("health", help="exit status 0 if this machine's service is ready")
    health.add_argument("--live", action="store_true", help="if it lives, ready or not")
    given = parser.parse_args(arguments)
    try:
        if given.command == "secrets":
            return _secrets(given.folder, keep_owner=given.keep_owner)
        if given.command == "health":
            return _health("/healthz" if given.live else "/readyz")
        if given.command == "operator-key":
            return int(import_module("agentkeep.distributed.operator_key").print_key())
        settings = load(ServiceSettings)  # what is wrong with them is said before anything slow happens
        return int(import_module("agentkeep.distributed.serving").serve(given.command, settings))
    except (SettingsInvalid, SecretsMissing) as error:
        return _fail(error, _WRONG)
    except (AgentkeepError, OSError) as error:
        return _fail(error, 1)


def _fail(error: object, status: int) -> int:
    sys.stderr.write(f"agentkeep.service: {error}\n")
    return status


def _secrets(folder: Path, *, keep_owner: bool) -> int:
    made = make_secrets(folder, FileMasterKey.load_or_create, users=None if keep_owner else IMAGE_USERS)
    for path in made:
        sys.stdout.write(f"made {path}\n")
    sys.stdout.write(f"{folder} has all secrets\n" if made else f"{folder} had all secrets already\n")
    return 0


def _health(path: str) -> int:
    """Without curl: images have none."""
    settings = load(ServiceSettings)
    host = "127.0.0.1" if settings.service_host == "0.0.0.0" else settings.service_host  # noqa: S104
    url = f"http://{host}:{settings.service_internal_port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            answer.read()
            return 0
    except urllib.error.HTTPError as error:
        return _fail(error.read(1000).decode(errors="replace"), 1)
    except OSError as error:
        return _fail(error, 1)
