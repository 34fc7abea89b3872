"""The identity provider, AWS KMS and AWS STS, each away or slow: sessions that are there go on until what they go by
ends; new ones are refused with an error that says so and that clients try again after; nothing lesser is given instead;
and all is well when they are back (IDN-1, IDN-2, IDN-3)."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from exchange_server import ExchangeServer
from kms_stand_in import key_arn
from whole_session import OPERATOR, STEPS, Carried, WholeSession, whole_session

from agentkeep.core.errors import ServiceUnavailableException
from agentkeep.storage.interface import partition
from agentkeep.storage.valkey import ValkeyKeyValueStore

pytestmark = pytest.mark.slow

#: Seconds that nobody waits for longer, however slow what he waits for is; the stand's own limits are 2.
SOON = 15


@pytest.fixture
async def whole(
    store: ValkeyKeyValueStore, provider: Any, clock: Any, exchange: ExchangeServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[WholeSession]:  # fmt: skip
    async with whole_session(store, provider, clock, exchange, tmp_path, monkeypatch) as whole:
        yield whole


async def _everything(whole: WholeSession, carried: Carried, but: frozenset[str] = frozenset()) -> None:
    for step in STEPS:
        if step not in but:
            await whole.step(step, carried)


async def _unavailable(whole: WholeSession, step: str, carried: Carried) -> None:
    """503, which clients try again by themselves; in words that say so."""
    with pytest.raises(PermissionError) as refused:
        await whole.step(step, carried)
    status, said = refused.value.args
    assert status == 503 and "try again" in said.lower(), (step, status, said)


async def _sts_slow(whole: WholeSession) -> None:
    whole.sts.delay = 60


async def _sts_away(whole: WholeSession) -> None:
    whole.sts.fails("ServiceUnavailable", 503)


async def _sts_throttles(whole: WholeSession) -> None:
    whole.sts.fails("Throttling")


async def _sts_back(whole: WholeSession) -> None:
    whole.sts.delay, whole.sts.failure = 0, None


STS = {"slow": _sts_slow, "failing": _sts_away, "throttling": _sts_throttles}


@pytest.mark.parametrize("how", STS)
async def test_sts(whole: WholeSession, clock: Any, how: str) -> None:
    alice = await whole.begin(whole.alices())
    await STS[how](whole)
    given = len(whole.sts.given)
    began = time.monotonic()
    with pytest.raises(ServiceUnavailableException, match=r"Nothing is given in its place\. Try again"):
        await whole.begin(whole.alices())
    assert time.monotonic() - began < SOON
    await _everything(whole, alice, but=frozenset({"aws"}))  # which is STS itself
    clock.move(901)
    await whole.step("tool", Carried(alice.session, alice.user, whole.token("alice"), port=alice.port))
    with pytest.raises(PermissionError, match=r"security token .* invalid"):
        await whole.step("memory", alice)
    assert len(whole.sts.given) == given, "no keys of any other kind"
    await _sts_back(whole)
    await _everything(whole, await whole.begin(whole.alices()))


async def _kms_slow(whole: WholeSession) -> None:
    whole.kms.answering.clear()


async def _kms_away(whole: WholeSession) -> None:
    await whole.kms.stop()


async def _kms_throttles(whole: WholeSession) -> None:
    whole.kms.throttling = True


async def _kms_back(whole: WholeSession) -> None:
    whole.kms.answering.set()
    whole.kms.throttling = False
    if whole.kms._runner is None:
        await whole.kms.start()


KMS = {"slow": _kms_slow, "away": _kms_away, "throttling": _kms_throttles}


@pytest.mark.parametrize("how", KMS)
async def test_kms(whole: WholeSession, clock: Any, how: str) -> None:
    alice = await whole.begin(whole.alices())
    await whole.step("api key", alice)
    await KMS[how](whole)
    began = time.monotonic()
    clock.move(120)  # the key of what is in use would be asked for again
    assert await whole.step("api key", alice) == "s3cret", "in use, and goes on"
    new: Any = {"name": "other", "apiKey": "never sealed otherwise"}
    with pytest.raises(ServiceUnavailableException, match="try again"):
        await whole.identity.create_api_key_credential_provider(OPERATOR, new)
    fresh = await whole.begin(whole.alices())  # sessions need no key service
    await _everything(whole, fresh, but=frozenset({"api key", "oauth token"}))
    clock.move(700)
    fresh = await whole.begin(whole.alices(user_token=whole.token("alice")))
    for step in ("api key", "oauth token"):
        await _unavailable(whole, step, fresh)
    assert time.monotonic() - began < 4 * SOON
    place = partition("identity", "token-vaults", "default", "apikey")
    assert await whole.store.get(place, "other") is None
    kept = json.loads(await whole.store.get(place, "weather") or b"")
    assert key_arn().encode() in base64.b64decode(kept["wrapped"]), "under no lesser key"
    await _kms_back(whole)
    await _everything(whole, fresh)


async def _provider_slow(whole: WholeSession) -> None:
    whole.provider.delay = 60


async def _provider_failing(whole: WholeSession) -> None:
    whole.provider.up = False


async def _provider_back(whole: WholeSession) -> None:
    whole.provider.delay, whole.provider.up = 0, True


PROVIDER = {"slow": _provider_slow, "failing": _provider_failing}


@pytest.mark.parametrize("how", PROVIDER)
async def test_identity_provider(whole: WholeSession, clock: Any, new_signing_key: Any, how: str) -> None:
    """Its keys are known for an hour after it was last heard of: nobody notices. Then nobody is believed, new or not;
    and a key that it may have published meanwhile refuses nobody for good."""
    alice = await whole.begin(whole.alices())
    await _everything(whole, alice)
    await PROVIDER[how](whole)
    clock.move(60)
    newer = new_signing_key("RS256", "published-meanwhile")
    began = time.monotonic()
    await _unavailable(whole, "tool", Carried(alice.session, alice.user, _by(whole, newer), port=alice.port))
    assert time.monotonic() - began < SOON
    await _everything(whole, alice)
    token = whole.token("alice", exp=int(clock.now().timestamp()) + 10_000)
    clock.move(3600)
    longer = Carried(alice.session, alice.user, token, port=alice.port)
    await _unavailable(whole, "tool", longer)
    request: Any = {"workloadName": "nobody", "userToken": token}
    await whole.identity.create_workload_identity(OPERATOR, {"name": "nobody"})
    with pytest.raises(ServiceUnavailableException, match="Try again"):
        await whole.identity.get_workload_access_token_for_jwt(OPERATOR, request)
    await _provider_back(whole)
    whole.provider.keys = [newer, *whole.provider.keys]
    clock.move(10)
    await asyncio.sleep(0)
    await whole.step("tool", longer)
    await whole.step("tool", Carried(alice.session, alice.user, _by(whole, newer), port=alice.port))


def _by(whole: WholeSession, key: Any) -> str:
    return str(whole.provider.token(key, sub="alice", client_id="agentkeep"))
