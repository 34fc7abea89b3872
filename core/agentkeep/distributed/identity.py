"""The identity service: keys, users' tokens, workload identities and the token vault; its ports are asked by all."""

from __future__ import annotations

from typing import Final

from agentkeep.core.key_settings import KeySettings
from agentkeep.core.ports import Keys
from agentkeep.distributed.service import CACHE_SECONDS, Composed, Service
from agentkeep.distributed.settings import load
from agentkeep.identity.access_keys.operators_app import OperatorKeysApp
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.oauth2.providers import CALLBACK_PATH
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.roles import sts_app
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.vault.token_vault import VAULT_KEYS
from agentkeep.service.mounts import Access, Mount
from agentkeep.service.ports.catalogue import AUDIT, AUTHORIZERS, KEYS, OUTBOUND_CREDENTIALS, WORKLOAD_TOKENS

__all__ = ["SETTINGS", "compose"]

#: Checked before the service waits for anything.
SETTINGS: Final = (IdentitySettings, KeySettings)


async def compose(service: Service) -> Composed:
    settings = load(IdentitySettings)
    # A revoked key dies within `key_cache` seconds everywhere: what the callers' memory and their questions take is not
    # this service's any more.
    remembered = max(settings.key_cache - CACHE_SECONDS - 1, 0)
    master_key, key_settings = FileMasterKey.load_or_create(service.secrets.master_key), load(KeySettings)
    key_service = key_settings.services(master_key.derive(VAULT_KEYS))
    service.on_exit(key_service.close)
    plane = IdentityPlane(
        service.store,
        master_key,
        service.deployment,
        service.clock,
        settings.model_copy(update={"key_cache": remembered}),
        public_url=service.settings.public_url,
        audit=service.port(AUDIT),
        key_service=key_service,
        key_settings=key_settings,
        alarm=service.alarm,
    )
    service.on_exit(plane.close)
    keys: Keys = plane.keys
    return Composed(
        (plane,),
        keys,
        mounts=[
            Mount(CALLBACK_PATH, plane.oauth2_callback, Access.PUBLIC),
            Mount(sts_app.PATH, plane.sts_app, Access.PUBLIC, sts_app.LARGEST_REQUEST),
            Mount(sts_app.PATH, plane.sts_app, Access.SESSION, sts_app.LARGEST_REQUEST),
            Mount("/roles", plane.roles_app, Access.OPERATOR),
            Mount("/operator-keys", OperatorKeysApp(plane.keys, service.audit, service.clock), Access.OPERATOR),
        ],
        ports={
            KEYS: keys,
            AUTHORIZERS: plane.authorizers,
            WORKLOAD_TOKENS: plane.workload_tokens,
            OUTBOUND_CREDENTIALS: plane.outbound,
        },
    )
