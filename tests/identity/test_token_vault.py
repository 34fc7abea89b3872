"""The token vault's keys: the deployment's own, or a customer's of AWS KMS (IDN-3)."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp import web
from consent_stand import OPERATOR, ConsentStand
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from exchange_server import ExchangeServer
from kms_stand_in import KmsStandIn, key_arn, running_kms
from openid_provider import query

from agentkeep.core.call import Call
from agentkeep.core.errors import (
    KeyRefused,
    KeyServiceUnavailable,
    ResourceNotFoundException,
    ServiceUnavailableException,
    ValidationException,
)
from agentkeep.core.key_settings import KeySettings
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.sealing import Seal
from agentkeep.storage.interface import Put, partition
from agentkeep.storage.valkey import ValkeyKeyValueStore

SECRETS = partition("identity", "token-vaults", "default", "apikey")
OURS = {"keyType": "ServiceManagedKey"}
THEIRS = {"keyType": "CustomerManagedKey", "kmsKeyArn": key_arn()}


@pytest.fixture
async def kms(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KmsStandIn]:
    async with running_kms(monkeypatch) as stand_in:
        yield stand_in


@pytest.fixture
async def plane(
    kms: KmsStandIn, make_plane: Callable[..., IdentityPlane], master_key: FileMasterKey
) -> AsyncIterator[IdentityPlane]:
    settings = KeySettings(kms_endpoint_url=kms.url, kms_timeout=20, cache=60, outage=600)
    service = settings.services(master_key.derive("vault"))
    yield make_plane(key_service=service, key_settings=settings)
    await service.close()


async def create(plane: IdentityPlane, operator: Call, name: str) -> None:
    await plane.create_api_key_credential_provider(operator, {"name": name, "apiKey": f"key of {name}"})


async def test_a_customers_key(
    plane: IdentityPlane, kms: KmsStandIn, operator: Call, store: ValkeyKeyValueStore, clock: Any
) -> None:
    """New secrets are sealed under it, earlier ones still open; and back again."""
    await create(plane, operator, "first")
    before = await plane.get_token_vault(operator, {})
    assert before["kmsConfiguration"] == OURS
    clock.move(60)
    changed = await plane.set_token_vault_cmk(operator, {"kmsConfiguration": THEIRS})
    assert changed == {
        "tokenVaultId": "default",
        "kmsConfiguration": THEIRS,
        "lastModifiedDate": changed["lastModifiedDate"],
    }
    assert changed["lastModifiedDate"] > before["lastModifiedDate"]
    assert await plane.get_token_vault(operator, {"tokenVaultId": "default"}) == changed
    clock.move(60)
    assert await plane.set_token_vault_cmk(operator, {"kmsConfiguration": THEIRS}) == changed
    await create(plane, operator, "second")
    assert kms.contexts[-1] == {"agentkeep:token-vault": "default", "agentkeep:secret": "apikey/second"}
    first, second = await store.get_many(SECRETS, ["first", "second"])
    assert first is not None and second is not None
    assert key_arn().encode() not in base64.b64decode(json.loads(first)["wrapped"])
    assert key_arn().encode() in base64.b64decode(json.loads(second)["wrapped"])
    assert await plane._api_keys.secret("first") == "key of first"
    assert await plane._api_keys.secret("second") == "key of second"
    await plane.set_token_vault_cmk(operator, {"kmsConfiguration": OURS})
    await create(plane, operator, "third")
    assert key_arn().encode() not in base64.b64decode(json.loads((await store.get(SECRETS, "third")) or b"")["wrapped"])
    assert await plane._api_keys.secret("second") == "key of second"


async def test_kms_away_is_never_a_lesser_key(
    plane: IdentityPlane, kms: KmsStandIn, operator: Call, clock: Any
) -> None:
    await plane.set_token_vault_cmk(operator, {"kmsConfiguration": THEIRS})
    await create(plane, operator, "old")
    await kms.stop()
    assert await plane._api_keys.secret("old") == "key of old"  # in use, so remembered for a while
    with pytest.raises(KeyServiceUnavailable, match="try again"):
        await create(plane, operator, "new")
    with pytest.raises(KeyServiceUnavailable, match="try again"):
        await plane.update_api_key_credential_provider(operator, {"name": "old", "apiKey": "x"})
    clock.move(1000)
    with pytest.raises(KeyServiceUnavailable, match="try again"):
        await plane._api_keys.secret("old")
    with pytest.raises(ResourceNotFoundException):
        await plane.get_api_key_credential_provider(operator, {"name": "new"})
    await kms.start()
    assert await plane._api_keys.secret("old") == "key of old"
    clock.move(61)
    kms.disabled.add(key_arn())
    with pytest.raises(KeyRefused, match="DisabledException"):
        await plane._api_keys.secret("old")


@pytest.mark.parametrize(
    "configuration",
    [
        {"keyType": "CustomerManagedKey"},
        {"keyType": "ServiceManagedKey", "kmsKeyArn": key_arn()},
        {"keyType": "CustomerManagedKey", "kmsKeyArn": "arn:aws:s3:::bucket"},
    ],
)
async def test_what_is_no_configuration(plane: IdentityPlane, operator: Call, configuration: Any) -> None:
    with pytest.raises(ValidationException):
        await plane.set_token_vault_cmk(operator, {"kmsConfiguration": configuration})
    assert (await plane.get_token_vault(operator, {}))["kmsConfiguration"] == OURS


async def test_a_key_that_cannot_be_used_is_not_taken(plane: IdentityPlane, kms: KmsStandIn, operator: Call) -> None:
    """Else every secret after it would be refused, or lost."""
    unknown = {"keyType": "CustomerManagedKey", "kmsKeyArn": key_arn(9)}
    with pytest.raises(KeyRefused, match="NotFoundException"):
        await plane.set_token_vault_cmk(operator, {"kmsConfiguration": unknown})
    await kms.stop()
    with pytest.raises(KeyServiceUnavailable):
        await plane.set_token_vault_cmk(operator, {"kmsConfiguration": THEIRS})
    with pytest.raises(ResourceNotFoundException, match="no token vault mine"):
        await plane.set_token_vault_cmk(operator, {"tokenVaultId": "mine", "kmsConfiguration": OURS})
    assert (await plane.get_token_vault(operator, {}))["kmsConfiguration"] == OURS


async def test_envelopes_from_before_there_were_key_services(
    plane: IdentityPlane, operator: Call, store: ValkeyKeyValueStore, master_key: FileMasterKey
) -> None:
    await create(plane, operator, "old")
    key, nonce, label = AESGCM.generate_key(256), b"n" * 12, "apikey/old"
    former = {
        "key": Seal(master_key, "token-vault-keys").seal({"key": base64.b64encode(key).decode(), "label": label}),
        "secret": base64.b64encode(nonce + AESGCM(key).encrypt(nonce, b"as it was", label.encode())).decode(),
    }
    vaults = partition("identity", "token-vaults")
    await store.transact([Put(SECRETS, "old", json.dumps(former).encode()), Put(vaults, "default", b"1767225600000")])
    assert await plane._api_keys.secret("old") == "as it was"
    vault = await plane.get_token_vault(operator, {})
    assert (vault["kmsConfiguration"], vault["lastModifiedDate"].year) == (OURS, 2026)
    await plane.set_token_vault_cmk(operator, {"kmsConfiguration": THEIRS})
    assert await plane._api_keys.secret("old") == "as it was"


async def test_a_key_that_is_gone(
    plane: IdentityPlane, kms: KmsStandIn, operator: Call, exchange: ExchangeServer, clock: Any
) -> None:
    """ResetTokenVaultKeyMaterial: only once the customer's key is deleted; tokens and consents go, providers stay, and
    their secrets are to be given again."""
    reset: Any = {"tokenVaultId": "default"}
    with pytest.raises(ValidationException, match="under no customer managed key"):
        await plane.reset_token_vault_key_material(operator, reset)
    with pytest.raises(ResourceNotFoundException):
        await plane.reset_token_vault_key_material(operator, {"tokenVaultId": "other"})
    await create(plane, operator, "before")
    await plane.set_token_vault_cmk(operator, {"kmsConfiguration": THEIRS})
    await create(plane, operator, "weather")
    stand = ConsentStand("http://127.0.0.1:9", plane)
    await stand.workload()
    await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    token = await stand.token_of("alice")
    given = (await stand.ask(token, "M2M"))["accessToken"]
    begun = await stand.ask(token)

    for still in ("is there", "disabled", "away"):
        if still == "disabled":
            kms.disabled.add(key_arn())
        if still == "away":
            await kms.stop()
        with pytest.raises(KeyServiceUnavailable if still == "away" else ValidationException):
            await plane.reset_token_vault_key_material(operator, reset)
    assert (await stand.ask(token, "M2M"))["accessToken"] == given
    await kms.start()
    kms.keys.clear()
    clock.move(1)
    changed = await plane.reset_token_vault_key_material(operator, reset)
    assert changed == await plane.get_token_vault(operator, {})
    assert changed["kmsConfiguration"] == OURS

    clock.move(700)
    assert await plane._api_keys.secret("before") == "key of before"
    with pytest.raises(KeyRefused):
        await plane._api_keys.secret("weather")
    await plane.update_api_key_credential_provider(operator, {"name": "weather", "apiKey": "again"})
    assert await plane._api_keys.secret("weather") == "again"
    await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    token = await stand.token_of("alice")
    assert (await stand.ask(token, "M2M"))["accessToken"] != given
    with pytest.raises(ResourceNotFoundException):
        await stand.ask(token, sessionUri=begun["sessionUri"])


# Consents while the key service is away.


@pytest.fixture
async def consents(
    kms: KmsStandIn, make_plane: Callable[..., IdentityPlane], master_key: FileMasterKey, free_tcp_port: int,
    exchange: ExchangeServer,
) -> AsyncIterator[ConsentStand]:  # fmt: skip
    """With a vault under a customer's key, and a provider whose tokens are renewed."""
    url = f"http://127.0.0.1:{free_tcp_port}"
    settings = KeySettings(kms_endpoint_url=kms.url, kms_timeout=20, cache=60, outage=6000)
    service = settings.services(master_key.derive("vault"))
    stand = ConsentStand(url, make_plane(key_service=service, key_settings=settings, public_url=url))
    await stand.start()
    await stand.plane.set_token_vault_cmk(OPERATOR, {"kmsConfiguration": THEIRS})
    await stand.workload()
    await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    yield stand
    await stand.stop()
    await service.close()


async def test_a_browser_that_comes_back_while_kms_is_away(consents: ConsentStand, kms: KmsStandIn) -> None:
    """It is told to load the page again, and then all is well; nothing is sealed under a lesser key meanwhile."""
    begun = await consents.ask(await consents.token_of("alice"))
    sent = query(begun["authorizationUrl"])
    back = f"{sent['redirect_uri']}?{urlencode({'state': sent['state'], 'code': 'c0de'})}"
    await kms.stop()
    page = await consents.get(back)
    assert page.status_code == 503
    assert page.headers["content-type"].startswith("text/plain")
    assert "load this page again" in page.text and "c0de" not in page.text
    assert page.headers["cache-control"] == "no-store" and page.headers["referrer-policy"] == "no-referrer"
    await kms.start()
    assert (await consents.get(back)).status_code == 302


async def test_tokens_that_come_once_outlast_the_key_service(
    consents: ConsentStand, kms: KmsStandIn, exchange: ExchangeServer, clock: Any
) -> None:
    """KMS goes away while the server answers: neither a code nor a refresh token can be used again, so what they gave
    is kept all the same, under the key that was asked for before."""
    shown: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        form = await request.post()
        shown.append(str(form.get("refresh_token") or form["code"]))
        await kms.stop()
        count = len(shown)
        tokens = {"access_token": f"access-{count}", "refresh_token": f"refresh-{count}", "expires_in": 300}
        return web.json_response({**tokens, "token_type": "Bearer"})

    exchange.answer = answer
    token = await consents.token_of("alice")
    begun = await consents.ask(token)
    sent = query(begun["authorizationUrl"])
    await consents.get(f"{sent['redirect_uri']}?{urlencode({'state': sent['state'], 'code': 'c0de'})}")
    await consents.complete("alice", begun["sessionUri"])
    for count in (1, 2, 3):
        assert (await consents.ask(token))["accessToken"] == f"access-{count}"
        await kms.start()
        clock.move(300)
    assert shown == ["c0de", "refresh-1", "refresh-2"]
    await kms.stop()
    with pytest.raises(ServiceUnavailableException):
        await consents.ask(token)
    assert len(shown) == 3, "without a key to keep it under, nothing is asked for"
