"""Environment variables of versions: sealed in the store, opened to start sessions and for who may read them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from canaries import canary, leaking_files, leaks
from kms_stand_in import KmsStandIn, key_arn, running_kms

from agentkeep.core.data_keys import DataKeys
from agentkeep.core.errors import (
    ConflictException,
    KeyRefused,
    KeyServiceUnavailable,
    ResourceNotFoundException,
    SealBroken,
)
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.runtime.agents.catalogue import _versions
from agentkeep.runtime.agents.sealed_variables import RETRY_SECONDS, VARIABLES
from agentkeep.runtime.environments.warm_pool_sizes import WARM_POOL_TAG
from agentkeep.runtime.records import Version
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.storage.interface import Put
from agentkeep.storage.records import encode
from agentkeep.storage.valkey import ValkeyKeyValueStore

SECRET = b"a secret that only tests have..."


@pytest.fixture
async def platform(platform: Any) -> Any:
    """With a folder of halves, so that keys can be erased."""
    await platform.plane.stop()
    platform.key_service = LocalKeyService(SECRET, platform.folder / "keys")
    platform.build()
    await platform.plane.start()
    return platform


@pytest.fixture
async def kms(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KmsStandIn]:
    async with running_kms(monkeypatch) as stand_in:
        yield stand_in


@pytest.fixture
async def under_kms(platform: Any, kms: KmsStandIn) -> AsyncIterator[Any]:
    """Every start asks KMS, as if it were the first for a long time."""
    settings = KeySettings(kms_endpoint_url=kms.url, kms_timeout=2, kms_key_arn=key_arn(), cache=0, outage=0)
    await platform.plane.stop()
    platform.key_service, platform.key_settings = settings.services(SECRET), settings
    platform.build()
    await platform.plane.start()
    yield platform
    await platform.key_service.close()


def halves(platform: Any) -> int:
    folder: Path = platform.folder / "keys"
    return len(list(folder.iterdir())) if folder.exists() else 0


async def stored(platform: Any, runtime_id: str, number: int = 1) -> Version:
    version: Version = (await platform.plane._parts.catalogue.version(runtime_id, number)).record
    return version


async def everything_stored(store: ValkeyKeyValueStore) -> bytes:
    """Every key and value of the store, whatever wrote them."""
    execute, found = store._client.execute, []
    readers = {b"string": ("GET",), b"hash": ("HGETALL",), b"zset": ("ZRANGE", 0, -1), b"set": ("SMEMBERS",)}
    for key in await execute(("KEYS", f"{store._prefix}*"), repeatable=True):
        command, *rest = readers[await execute(("TYPE", key), repeatable=True)]
        found.append(key + repr(await execute((command, key, *rest), repeatable=True)).encode())
    return b"\n".join(found)


async def gone(platform: Any, runtime_id: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await platform.call("get_agent_runtime", agentRuntimeId=runtime_id)
            except ResourceNotFoundException:
                return
            await asyncio.sleep(0.01)


async def test_the_store_never_has_them(
    platform: Any, store: ValkeyKeyValueStore, caplog: pytest.LogCaptureFixture
) -> None:
    """IDN-3: nor does a log, or anything that could be shown; sessions and GetAgentRuntime do, each its version's."""
    caplog.set_level(logging.DEBUG)
    first, second = {"KEY": canary()}, {"KEY": canary(), "OTHER": "ü"}
    runtime_id = await platform.create(environmentVariables=first, description="found-if-looked-for")
    await platform.call("create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name="old")
    definition = platform.definition(environmentVariables=second)
    await platform.call("update_agent_runtime", agentRuntimeId=runtime_id, token="u" * 36, **definition)
    assert (await platform.ready(runtime_id))[VARIABLES] == second
    for qualifier in ("DEFAULT", "old"):
        (await platform.begin(runtime_id, str(uuid.uuid4()), qualifier=qualifier)).end()
    newest, before = (agent.spec.environment for agent in platform.driver.agents)
    assert (newest["KEY"], newest["OTHER"], before["KEY"]) == (second["KEY"], "ü", first["KEY"])
    old = await platform.call("get_agent_runtime", agentRuntimeId=runtime_id, agentRuntimeVersion="1")
    assert old[VARIABLES] == first
    listed = [
        await platform.call("list_agent_runtimes"),
        await platform.call("list_agent_runtime_versions", agentRuntimeId=runtime_id),
    ]

    planted = [first["KEY"], second["KEY"]]
    content = await everything_stored(store)
    assert b"found-if-looked-for" in content, "the search finds what is there"
    assert not leaks(content, planted)
    parts = platform.plane._parts
    shown = [listed, caplog.text, parts.variables, parts.catalogue, await stored(platform, runtime_id, 2)]
    shown += [parts.targets._kept, parts.sessions.all_live(), parts.runtimes]
    assert not leaks(repr(shown).encode(), planted)


async def test_they_open_in_their_own_place_only(platform: Any) -> None:
    """IDN-3: neither in another runtime nor in another version of their own, nor under another key; whoever can write
    to the store cannot have an agent of theirs started with them."""
    own = await platform.create("own", environmentVariables={"KEY": "own"})
    await platform.call(
        "update_agent_runtime", agentRuntimeId=own, **platform.definition(environmentVariables={"KEY": "newer"})
    )
    await platform.ready(own)
    theirs = await platform.create("theirs", environmentVariables={"KEY": "theirs"})
    mine = (await stored(platform, own)).variables
    other = (await stored(platform, theirs)).variables
    assert mine is not None and other is not None
    parts = platform.plane._parts
    for target, number in ((theirs, 1), (own, 2)):
        found = await parts.catalogue.version(target, number)
        kept = found.record.variables
        for moved, error in (
            (mine, KeyRefused),
            (replace(mine, key=kept.key), SealBroken),
            (replace(mine, key=other.key), KeyRefused if number == 2 else SealBroken),
            (replace(mine, data="not base64"), KeyRefused),
            (replace(kept, data="not base64"), SealBroken),
            (replace(kept, key="*"), SealBroken),
        ):
            written = parts.catalogue.put_version(replace(found.record, variables=moved))
            await parts.catalogue.store.transact([written])
            with pytest.raises(error):
                await parts.variables.open(await stored(platform, target, number))
        await parts.catalogue.store.transact([parts.catalogue.put_version(found.record)])
        assert await parts.variables.open(await stored(platform, target, number)) == {
            "KEY": "theirs" if target == theirs else "newer"
        }


async def test_a_key_lives_as_long_as_its_version(platform: Any) -> None:
    """Where it can be erased: with the version or the runtime; and none is left of a version that was not made."""
    with_variables = {"environmentVariables": {"KEY": "secret"}}
    await platform.create("bare")
    assert halves(platform) == 0
    runtime_id = await platform.create("agent", **with_variables)
    assert halves(platform) == 1
    with pytest.raises(ConflictException, match="exists"):
        await platform.call(
            "create_agent_runtime", agentRuntimeName="agent", **platform.definition(**with_variables)
        )  # fmt: skip
    definition = platform.definition(**with_variables)
    made = [
        await platform.call("create_agent_runtime", token="t" * 36, agentRuntimeName="twice", **definition)
        for _ in range(2)
    ]
    assert made[0]["agentRuntimeId"] == made[1]["agentRuntimeId"]
    assert halves(platform) == 2
    await platform.ready(made[0]["agentRuntimeId"])

    await platform.call("update_agent_runtime", agentRuntimeId=runtime_id, **definition)
    await platform.ready(runtime_id)
    assert halves(platform) == 3
    copy = await stored(platform, runtime_id)
    await platform.call("delete_agent_runtime", agentRuntimeId=runtime_id, agentRuntimeVersion="1")
    assert halves(platform) == 2
    newest = await stored(platform, runtime_id, 2)
    await platform.call("delete_agent_runtime", agentRuntimeId=runtime_id)
    await gone(platform, runtime_id)
    assert halves(platform) == 1
    for erased in (copy, newest):
        with pytest.raises(KeyRefused, match="erased"):
            await platform.plane._parts.variables.open(erased)


async def test_while_the_key_service_is_away(under_kms: Any, kms: KmsStandIn) -> None:
    """Living sessions do not notice; what needs variables is refused, to be tried again, and never has others instead;
    what needs none goes on."""
    platform = under_kms
    runtime_id = await platform.create("agent", environmentVariables={"KEY": "secret"})
    bare, living = await platform.create("bare"), str(uuid.uuid4())
    (await platform.begin(runtime_id, living)).end()
    assert {"agentkeep:runtime": runtime_id, "agentkeep:version": "1"} in kms.contexts
    asked = kms.asked.total()
    for _ in range(5):
        turn = platform.plane.invocations.begin_now(platform.request(runtime_id, living))
        turn.end()
    assert kms.asked.total() == asked, "a warm call asks no key service"

    await kms.stop()
    (await platform.begin(runtime_id, living)).end()
    (await platform.begin(bare, str(uuid.uuid4()))).end()
    started, refused = len(platform.driver.agents), str(uuid.uuid4())
    definition = platform.definition(environmentVariables={"KEY": "another"})
    for operation in (
        platform.begin(runtime_id, refused),
        platform.call("get_agent_runtime", agentRuntimeId=runtime_id),
        platform.call("create_agent_runtime", agentRuntimeName="new", **definition),
        platform.call("update_agent_runtime", agentRuntimeId=runtime_id, **definition),
    ):
        with pytest.raises(KeyServiceUnavailable):
            await operation
    assert len(platform.driver.agents) == started
    await platform.call("list_agent_runtimes")
    await platform.call("list_agent_runtime_versions", agentRuntimeId=runtime_id)
    assert (await platform.call("get_agent_runtime", agentRuntimeId=bare))["status"] == "READY"
    arn = (await platform.call("list_agent_runtimes"))["agentRuntimes"][0]["agentRuntimeArn"]
    assert await platform.call("get_resource_policy", resourceArn=arn) == {}

    await kms.start()
    (await platform.begin(runtime_id, refused)).end()
    assert platform.driver.agents[-1].spec.environment["KEY"] == "secret"
    kms.disabled.add(key_arn())
    with pytest.raises(KeyRefused, match="Disabled"):
        await platform.begin(runtime_id, str(uuid.uuid4()))
    (await platform.begin(runtime_id, living)).end()
    await platform.call("delete_agent_runtime", agentRuntimeId=runtime_id)  # which needs no key
    kms.disabled.clear()
    await gone(platform, runtime_id)


async def test_a_version_waits_for_the_key_service(
    under_kms: Any, kms: KmsStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that is tried out before it serves, and a warm pool, are made as soon as the key service is back."""
    platform = under_kms
    real, away, failed = DataKeys.unwrap, False, asyncio.Event()

    async def unwrap(keys: DataKeys, wrapped: bytes, context: Any) -> bytes:
        nonlocal away
        if not away:
            away = True
            await kms.stop()
        try:
            return await real(keys, wrapped, context)
        except KeyServiceUnavailable:
            failed.set()
            raise

    monkeypatch.setattr(DataKeys, "unwrap", unwrap)
    await platform.upload()
    hook = {"build": {"warmup": {"action": {"httpPost": {"path": "/warm"}}}}}
    made = await platform.call(
        "create_agent_runtime",
        agentRuntimeName="agent",
        **platform.definition(environmentVariables={"KEY": "secret"}, hooksConfiguration=hook),
    )
    runtime_id = made["agentRuntimeId"]
    async with asyncio.timeout(20):
        await failed.wait()
    catalogue = platform.plane._parts.catalogue
    assert (await catalogue.runtime(runtime_id)).record.status == "CREATING"
    await kms.start()
    async with asyncio.timeout(30):
        while (await catalogue.runtime(runtime_id)).record.status == "CREATING":
            await platform.clock.move(RETRY_SECONDS)
    assert (await catalogue.runtime(runtime_id)).record.status == "READY"
    assert platform.driver.agents[0].spec.environment["KEY"] == "secret"

    await kms.stop()
    pools, arn = platform.plane._parts.warm_pools, catalogue.runtime_arn(runtime_id)
    await platform.call("tag_resource", resourceArn=arn, tags={WARM_POOL_TAG: "1"})
    async with asyncio.timeout(30):
        while not any(pool["problem"] for pool in pools.describe(runtime_id)):
            await asyncio.sleep(0.01)
    (pool,) = pools.describe(runtime_id)
    assert "KMS" in pool["problem"] and pool["ready"] == 0
    await kms.start()
    async with asyncio.timeout(30):
        while not pools.describe(runtime_id)[0]["ready"]:
            await platform.clock.move(RETRY_SECONDS)
            await asyncio.sleep(0.01)
    assert pools.describe(runtime_id)[0]["problem"] is None
    assert platform.driver.living[0].spec.environment["KEY"] == "secret"


async def in_clear(platform: Any, runtime_id: str, variables: dict[str, str]) -> None:
    """As an earlier release stored it."""
    version = await stored(platform, runtime_id)
    former = replace(version, settings={**version.settings, VARIABLES: variables}, variables=None)
    await platform.store.transact([Put(_versions(runtime_id), "00001", encode(former))])


async def test_those_of_earlier_releases_are_sealed_at_the_start(
    platform: Any, store: ValkeyKeyValueStore, clock: Any
) -> None:
    """Once, and not those of others; until then they are read as they are."""
    runtime_id = await platform.create("agent")
    bare = await platform.create("bare")
    untouched, secret = await stored(platform, bare), canary()
    await in_clear(platform, runtime_id, {"KEY": secret})
    assert leaks(await everything_stored(store), [secret]), "the search finds what is there"
    assert (await platform.call("get_agent_runtime", agentRuntimeId=runtime_id))[VARIABLES] == {"KEY": secret}

    await platform.restart()
    assert not leaks(await everything_stored(store), [secret])
    sealed = await stored(platform, runtime_id)
    assert sealed.variables is not None and VARIABLES not in sealed.settings
    assert (await platform.call("get_agent_runtime", agentRuntimeId=runtime_id))[VARIABLES] == {"KEY": secret}
    (await platform.begin(runtime_id, str(uuid.uuid4()))).end()
    assert platform.driver.agents[-1].spec.environment["KEY"] == secret
    await platform.restart()
    assert await stored(platform, runtime_id) == sealed
    assert await stored(platform, bare) == untouched
    assert halves(platform) == 1


def leaking_valkey(folder: Path, secret: str) -> bool:
    try:
        return leaking_files(folder, [secret]) != []
    except FileNotFoundError:  # it was just removed
        return True


async def test_nothing_is_left_of_them_in_the_stores_file(
    make_platform: Any, settings: RuntimeSettings, clock: Any, tmp_path: Path
) -> None:
    """IDN-3: it still has what was written over, until it is written anew; which is asked for."""
    secret = canary()
    async with EmbeddedValkey(tmp_path / "valkey", appendfsync="no") as valkey:
        store = ValkeyKeyValueStore(valkey.url)
        identity = IdentityPlane(store, FileMasterKey(b"k" * 32), make_platform.deployment, clock, IdentitySettings())
        platform = make_platform(store, clock, tmp_path, identity, settings, rewrite_store=store.rewrite_file)
        await platform.plane.start()
        runtime_id = await platform.create("agent")
        await in_clear(platform, runtime_id, {"KEY": secret})
        assert leaking_valkey(tmp_path / "valkey", secret)
        await platform.restart()
        async with asyncio.timeout(30):
            while leaking_valkey(tmp_path / "valkey", secret):
                await asyncio.sleep(0.05)
        assert (await platform.call("get_agent_runtime", agentRuntimeId=runtime_id))[VARIABLES] == {"KEY": secret}
        await platform.plane.stop()
        await platform.driver.close()
        await identity.close()
        await store.close()


async def test_what_an_agent_wrote_is_masked(platform: Any) -> None:
    """Of a version that failed; but for values too short to be told from other words."""
    runtime_id = await platform.create(environmentVariables={"KEY": "key-123456", "LONGER": "key-123456-7", "ON": "1"})
    said = "1 of 1: no login with key-123456-7, nor with key-123456"
    masked = await platform.plane._parts.variables.mask(await stored(platform, runtime_id), said)
    assert masked == "1 of 1: no login with ***, nor with ***"


@pytest.mark.slow
async def test_those_of_earlier_releases_wait_for_the_key_service(
    under_kms: Any, store: ValkeyKeyValueStore, kms: KmsStandIn, clock: Any
) -> None:
    """The platform starts without it, and seals them when it is back."""
    platform = under_kms
    runtime_id, secret = await platform.create("agent"), canary()
    await in_clear(platform, runtime_id, {"KEY": secret})
    await kms.stop()
    await platform.restart()
    (await platform.begin(runtime_id, str(uuid.uuid4()))).end()
    assert leaks(await everything_stored(store), [secret])
    await kms.start()
    async with asyncio.timeout(30):
        while leaks(await everything_stored(store), [secret]):
            await clock.move(RETRY_SECONDS)
    assert (await platform.call("get_agent_runtime", agentRuntimeId=runtime_id))[VARIABLES] == {"KEY": secret}
