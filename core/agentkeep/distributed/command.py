"""`python -m agentkeep.service ...`: serves one plane; makes the secrets; tells the operator's key; asks for health."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

import orjson
import uvloop

from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import AgentkeepError
from agentkeep.core.identifiers import Deployment
from agentkeep.distributed.secrets import IMAGE_USERS, Secrets, make_secrets
from agentkeep.distributed.service import Compose, Service
from agentkeep.distributed.settings import ServiceSettings, SettingsInvalid, load
from agentkeep.identity.keys import AccessKeys
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.service.ownership import PLANES
from agentkeep.storage.valkey import ValkeyKeyValueStore

__all__ = ["main"]

logger = logging.getLogger(__name__)

#: The services that each needs, to start and to be ready. Without a circle: identity needs nobody.
NEEDS: Final[Mapping[str, Sequence[str]]] = {
    "identity": (),
    "observability": ("identity",),
    "memory": ("identity",),
    "gateway": ("identity", "observability"),
    "runtime": ("identity", "observability"),
}

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
            return asyncio.run(_operator_key())
        return _serve(given.command)
    except SettingsInvalid as error:
        return _fail(error, _WRONG)
    except (AgentkeepError, OSError, ValueError) as error:
        return _fail(error, 1)


def _fail(error: Exception, status: int) -> int:
    sys.stderr.write(f"agentkeep.service: {error}\n")
    return status


def _serve(plane: str) -> int:
    settings = load(ServiceSettings)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    root = import_module(f"agentkeep.distributed.{plane}")
    for each in root.SETTINGS:
        load(each)
    compose: Compose = root.compose
    try:
        service = Service(plane, settings, Secrets(settings.secrets, plane), compose, NEEDS[plane])
    except AgentkeepError as error:  # of its secrets
        return _fail(error, _WRONG)
    return uvloop.run(_run(service))


async def _run(service: Service) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    starting, stop = asyncio.create_task(service.start()), asyncio.create_task(stopping.wait())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()  # it waits for something that is not there
        await asyncio.wait((starting,))
        return 0
    starting.result()
    # What was made so far stays for good: collections need not look at it again.
    gc.collect()
    gc.freeze()
    await stop
    logger.info("stopping")
    await service.stop()
    return 0


def _secrets(folder: Path, *, keep_owner: bool) -> int:
    made = make_secrets(folder, FileMasterKey.load_or_create, users=None if keep_owner else IMAGE_USERS)
    for path in made:
        sys.stdout.write(f"made {path}\n")
    sys.stdout.write(f"{folder} has all secrets\n" if made else f"{folder} had all secrets already\n")
    return 0


async def _operator_key() -> int:
    settings = load(ServiceSettings)
    secrets = Secrets(settings.secrets, "identity")
    store = ValkeyKeyValueStore(settings.store_url_with(secrets.store_password))
    try:
        keys = AccessKeys(
            store,
            FileMasterKey.load_or_create(secrets.master_key),
            Deployment(settings.region, settings.account),
            SystemClock(),
            load(IdentitySettings),
        )
        key = await keys.operator_key("operator")
    finally:
        await store.close()
    document = {
        "accessKeyId": key.id,
        "secretAccessKey": key.secret,
        "region": settings.region,
        "endpoint": settings.public_url,
    }
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
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
        return _fail(ValueError(error.read(1000).decode(errors="replace")), 1)
    except OSError as error:
        return _fail(error, 1)
