"""The operator's key, for people at the host where the identity service runs."""

from __future__ import annotations

import asyncio
import sys

import orjson

from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.distributed.secrets import Secrets
from agentkeep.distributed.settings import ServiceSettings, load
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.storage.valkey import ValkeyKeyValueStore

__all__ = ["print_key"]


def print_key() -> int:
    """As JSON; made where there is none yet. Needs the identity service's settings and secrets."""
    return asyncio.run(_print_key())


async def _print_key() -> int:
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
        key = await keys.operator_key("operator", acts_for_users=settings.operator_acts_for_users)
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
