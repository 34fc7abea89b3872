"""Key services, the data keys they wrap, and what these seal (MEM-6)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kms_stand_in import REGION, KmsStandIn, key_arn, running_kms

from agentkeep.core.data_keys import DataKeys
from agentkeep.core.errors import KeyRefused, KeyServiceUnavailable, SealBroken, ValidationException
from agentkeep.core.key_service import KeyService, KeyServices
from agentkeep.core.key_service_kms import KmsKeyService
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.core.sealing import SealingKey
from agentkeep.testing.clock import SetClock

SECRET = b"s" * 32
CONTEXT = {"agentkeep:memory": "m-1"}


@pytest.fixture
async def kms(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KmsStandIn]:
    async with running_kms(monkeypatch, key_arn(1), key_arn(2)) as stand_in:
        yield stand_in


@pytest.fixture
async def kms_keys(kms: KmsStandIn) -> AsyncIterator[KmsKeyService]:
    service = KmsKeyService(kms.url, time_limit=20.0)
    yield service
    await service.close()


@pytest.fixture(params=["local", "local in halves", "kms"])
def service(request: pytest.FixtureRequest, tmp_path: Path, kms_keys: KmsKeyService) -> KeyService:
    local = LocalKeyService(SECRET, tmp_path / "keys" if request.param == "local in halves" else None)
    return KeyServices(local, kms_keys, key_arn() if request.param == "kms" else None)


async def test_a_data_key_opens_for_its_context_alone(service: KeyService) -> None:
    made, other = await service.generate(CONTEXT), await service.generate(CONTEXT)
    assert len(made.plain) == 32
    assert made.plain != other.plain
    assert made.plain not in made.wrapped
    assert repr(made.plain) not in repr(made)
    assert await service.unwrap(made.wrapped, CONTEXT) == made.plain
    for context in ({}, {"agentkeep:memory": "m-2"}, {**CONTEXT, "more": "x"}):
        with pytest.raises(KeyRefused):
            await service.unwrap(made.wrapped, context)
    changed = made.wrapped[:-1] + bytes([made.wrapped[-1] ^ 1])
    for wrapped in (changed, made.wrapped[:-5], made.wrapped[:1], b"", b"\x07" + made.wrapped[1:]):
        with pytest.raises(KeyRefused):
            await service.unwrap(wrapped, CONTEXT)


async def test_services_tell_their_keys_apart(kms_keys: KmsKeyService) -> None:
    """Which is the deployment's own may change; what is wrapped stays where it was wrapped."""
    before, after = (
        KeyServices(LocalKeyService(SECRET), kms_keys),
        KeyServices(LocalKeyService(SECRET), kms_keys, key_arn()),
    )
    made = await before.generate(CONTEXT)
    named = await before.generate(CONTEXT, key_arn(2))
    assert await after.unwrap(made.wrapped, CONTEXT) == made.plain
    assert await after.unwrap(named.wrapped, CONTEXT) == named.plain
    assert key_arn(1).encode() in (await after.generate(CONTEXT)).wrapped


async def test_an_erased_half_leaves_nothing_that_opens(tmp_path: Path) -> None:
    """Although the secret stays, and a copy of the wrapped key."""
    service = LocalKeyService(SECRET, tmp_path / "keys")
    made, other = await service.generate(CONTEXT), await service.generate(CONTEXT)
    halves = list((tmp_path / "keys").iterdir())
    assert {half.stat().st_mode & 0o777 for half in halves} == {0o600}
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    for _ in range(2):
        await service.erase(made.wrapped)
    with pytest.raises(KeyRefused, match="erased"):
        await service.unwrap(made.wrapped, CONTEXT)
    assert await service.unwrap(other.wrapped, CONTEXT) == other.plain
    # Nor does it take the half from elsewhere, or the secret without one.
    with pytest.raises(KeyRefused):
        await LocalKeyService(SECRET).unwrap(other.wrapped, CONTEXT)
    with pytest.raises(KeyRefused, match="another secret"):
        await LocalKeyService(b"t" * 32, tmp_path / "keys").unwrap(other.wrapped, CONTEXT)


async def test_a_half_that_cannot_be_kept_is_no_key(tmp_path: Path) -> None:
    """What would be sealed under it could be lost."""
    (tmp_path / "keys").write_text("no folder")
    with pytest.raises(KeyServiceUnavailable):
        await LocalKeyService(SECRET, tmp_path / "keys").generate(CONTEXT)


async def test_a_key_of_kms_needs_kms(kms: KmsStandIn, kms_keys: KmsKeyService) -> None:
    with pytest.raises(ValidationException, match="no access to AWS KMS"):
        await LocalKeyService(SECRET).generate(CONTEXT, key_arn())
    for arn in ("arn:aws:s3:::bucket", "key", "", "arn:aws:kms:evil.example/?:123456789012:key/x", key_arn() + "\n"):
        with pytest.raises(ValidationException, match="ARN of a key"):
            await kms_keys.generate(CONTEXT, arn)
    assert not kms.asked


async def test_what_kms_refuses_is_said(kms: KmsStandIn, kms_keys: KmsKeyService) -> None:
    made = await kms_keys.generate(CONTEXT, key_arn())
    assert kms.contexts == [CONTEXT]
    kms.disabled.add(key_arn())
    with pytest.raises(KeyRefused, match=f"{key_arn()}.*DisabledException"):
        await kms_keys.unwrap(made.wrapped, CONTEXT)
    with pytest.raises(KeyRefused, match="NotFoundException"):
        await kms_keys.generate(CONTEXT, key_arn(9))
    moved = made.wrapped.replace(key_arn(1).encode(), key_arn(2).encode(), 1)
    with pytest.raises(KeyRefused, match="IncorrectKeyException"):
        await kms_keys.unwrap(moved, CONTEXT)


async def test_an_alias_that_moves_leaves_what_it_wrapped(kms: KmsStandIn, kms_keys: KmsKeyService) -> None:
    alias = f"arn:aws:kms:{REGION}:123456789012:alias/agentkeep"
    kms.aliases[alias] = key_arn(1)
    made = await kms_keys.generate(CONTEXT, alias)
    kms.aliases[alias] = key_arn(2)
    assert await kms_keys.unwrap(made.wrapped, CONTEXT) == made.plain


async def test_kms_away_slow_or_throttling_is_to_be_asked_again(kms: KmsStandIn) -> None:
    """With a limit to the time it may take, and never another key instead."""
    service = KeyServices(LocalKeyService(SECRET), KmsKeyService(kms.url, time_limit=3.0), key_arn())
    made = await service.generate(CONTEXT)
    kms.answering.clear()
    began = time.monotonic()
    with pytest.raises(KeyServiceUnavailable, match="try again"):
        await service.unwrap(made.wrapped, CONTEXT)
    assert time.monotonic() - began < 20
    kms.answering.set()
    kms.throttling = True
    with pytest.raises(KeyServiceUnavailable, match="try again"):
        await service.generate(CONTEXT)
    kms.throttling = False
    await kms.stop()
    with pytest.raises(KeyServiceUnavailable, match="try again"):
        await service.generate(CONTEXT)
    with pytest.raises(KeyServiceUnavailable, match="try again"):
        await service.unwrap(made.wrapped, CONTEXT)
    await kms.start()
    assert await service.unwrap(made.wrapped, CONTEXT) == made.plain
    await service.close()


async def test_without_credentials_of_its_own_the_platform_says_so(
    kms: KmsStandIn, kms_keys: KmsKeyService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(KeyRefused, match="no AWS credentials"):
        await kms_keys.generate(CONTEXT, key_arn())


async def test_keys_in_use_outlive_an_outage_for_a_while(kms: KmsStandIn, kms_keys: KmsKeyService) -> None:
    clock = SetClock(datetime(2026, 1, 1, tzinfo=UTC))
    keys = DataKeys(kms_keys, clock, KeySettings(cache=10, outage=100))
    made = await keys.generate(CONTEXT, key_arn())
    assert await keys.unwrap(made.wrapped, CONTEXT) == made.plain
    assert kms.asked == {"GenerateDataKey": 1}
    with pytest.raises(KeyRefused):
        await keys.unwrap(made.wrapped, {"agentkeep:memory": "m-2"})
    await kms.stop()
    clock.advance(50)
    assert await keys.unwrap(made.wrapped, CONTEXT) == made.plain
    clock.advance(100)
    with pytest.raises(KeyServiceUnavailable):
        await keys.unwrap(made.wrapped, CONTEXT)
    await kms.start()
    assert await keys.unwrap(made.wrapped, CONTEXT) == made.plain
    clock.advance(11)
    kms.disabled.add(key_arn())
    for _ in range(2):
        with pytest.raises(KeyRefused):
            await keys.unwrap(made.wrapped, CONTEXT)


async def test_a_key_service_that_is_away_holds_few_up(kms: KmsStandIn, kms_keys: KmsKeyService) -> None:
    """Those who come at one time ask once, and one who gives up takes the key from no other. While it does not answer
    nobody asks for a while."""
    clock = SetClock(datetime(2026, 1, 1, tzinfo=UTC))
    keys = DataKeys(kms_keys, clock, KeySettings(cache=10, outage=100))
    made = await keys.generate(CONTEXT, key_arn())
    clock.advance(11)
    kms.answering.clear()
    asking = [asyncio.create_task(keys.unwrap(made.wrapped, CONTEXT)) for _ in range(20)]
    async with asyncio.timeout(20):
        while not kms.asked["Decrypt"]:
            await asyncio.sleep(0.01)
    asking.pop(0).cancel()
    kms.answering.set()
    assert await asyncio.gather(*asking) == [made.plain] * 19
    assert kms.asked["Decrypt"] == 1

    clock.advance(11)
    await kms.stop()
    assert await keys.unwrap(made.wrapped, CONTEXT) == made.plain
    await kms.start()
    clock.advance(9)
    assert await keys.unwrap(made.wrapped, CONTEXT) == made.plain
    assert kms.asked["Decrypt"] == 1, "nobody asks again so soon"
    clock.advance(2)
    assert await keys.unwrap(made.wrapped, CONTEXT) == made.plain
    assert kms.asked["Decrypt"] == 2

    await keys.erase(made.wrapped)
    kms.disabled.add(key_arn())
    with pytest.raises(KeyRefused):
        await keys.unwrap(made.wrapped, CONTEXT)


def test_what_is_sealed_opens_unchanged_and_in_its_place_alone() -> None:
    key, other = SealingKey(b"k" * 32), SealingKey(b"o" * 32)
    sealed = key.seal(b"hello", "here")
    assert sealed != key.seal(b"hello", "here")
    assert b"hello" not in sealed
    assert key.open(sealed, "here") == b"hello"
    for opener, data, label in (
        *((key, sealed, "there"), (other, sealed, "here"), (key, sealed[:-1], "here"), (key, sealed[:10], "here")),
        *((key, b"", "here"), (key, b"hello", "here"), (key, sealed[:-1] + b"\0", "here")),
    ):
        with pytest.raises(SealBroken):
            opener.open(data, label)
    assert key.derive("a") == key.derive("a") != key.derive("b")
    assert "k" * 32 not in repr(key)
