"""How a service starts, or says why it does not: settings, secrets, readiness, the command."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from platform_process import clean_environment

from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import StoreUnavailable
from agentkeep.distributed.readiness import Check, Readiness
from agentkeep.distributed.secrets import IMAGE_USERS, Secrets, SecretsMissing, make_secrets
from agentkeep.distributed.settings import ServiceSettings, SettingsInvalid, load
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.service.credentials import TokenKind
from agentkeep.service.ownership import PLANES


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentkeep.service", *arguments],
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


# Settings.


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AGENTKEEP_STORE_URL", "http://valkey:6379", "redis://"),
        ("AGENTKEEP_SEARCH_URL", "opensearch:9200", "http"),
        ("AGENTKEEP_SERVICE_PORT", "eighty", "integer"),
        ("AGENTKEEP_SERVICE_INTERNAL_PORT", "65536", "65535"),
        ("AGENTKEEP_SERVICE_URLS", "identity=http://identity:8081", "all five"),
        ("AGENTKEEP_SERVICE_URLS", "http://localhost:8081", "all five"),
        ("AGENTKEEP_SERVICE_URLS", "tcp://{service}", "http"),
        ("AGENTKEEP_SERVICE_STOP_TIMEOUT", "0", "greater than 0"),
        ("AGENTKEEP_REGION", "nowhere", "pattern"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector", "http"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsInvalid) as wrong:
        load(ServiceSettings)
    [line] = str(wrong.value).splitlines()
    assert line.startswith(f"{variable}: ")
    assert says in line


def test_the_command_says_it_in_one_line() -> None:
    done = run("memory", AGENTKEEP_STORE_URL="ftp://:hunter2@valkey")
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "AGENTKEEP_STORE_URL" in line
    assert "hunter2" not in line


def test_a_planes_settings_are_checked_too(tmp_path: Path) -> None:
    """Before it waits for anything."""
    make_secrets(tmp_path, FileMasterKey.load_or_create, users=None)
    done = run("runtime", AGENTKEEP_SECRETS=str(tmp_path / "runtime"), AGENTKEEP_RUNTIME_LEASE="-1")
    assert done.returncode == 2, done.stderr
    assert "AGENTKEEP_RUNTIME_LEASE" in done.stderr


def test_empty_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose files leave variables that nobody set."""
    monkeypatch.setenv("AGENTKEEP_SEARCH_URL", "")
    monkeypatch.setenv("AGENTKEEP_SERVICE_PORT", "")
    settings = load(ServiceSettings)
    assert (settings.search_url, settings.service_port) == (None, 8080)


def test_where_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(ServiceSettings).urls == {plane: f"http://{plane}:8081" for plane in PLANES}
    named = ", ".join(f"{plane}=http://10.0.0.1:{port}" for port, plane in enumerate(PLANES, 9000))
    monkeypatch.setenv("AGENTKEEP_SERVICE_URLS", named)
    assert load(ServiceSettings).urls["gateway"] == "http://10.0.0.1:9001"


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("redis://valkey:6379/0", "redis://:p%2F%40s@valkey:6379/0"),
        ("rediss://user@valkey", "rediss://user:p%2F%40s@valkey"),
        ("redis://:own@valkey", "redis://:own@valkey"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ],
)
def test_the_stores_password_is_a_file(monkeypatch: pytest.MonkeyPatch, url: str, whole: str) -> None:
    monkeypatch.setenv("AGENTKEEP_STORE_URL", url)
    settings = load(ServiceSettings)
    assert settings.store_url_with("p/@s") == whole
    assert settings.store_url_with(None) == url
    assert "own" not in repr(settings)


# Secrets.


def test_secrets_are_made_once(tmp_path: Path) -> None:
    done = run("secrets", str(tmp_path), "--keep-owner")
    assert done.returncode == 0, done.stderr
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path).as_posix() for path in before} >= {
        *(f"{plane}/{name}" for plane in PLANES for name in ("service.key", "services.jwks", "store-password")),
        "identity/master.key",
        "observability/otlp-token",
        "collector/otlp-token",
        "valkey/valkey.conf",
        "keycloak/admin-password",
    }
    for path, content in before.items():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        if path.name not in ("services.jwks", "master.key"):
            assert content.decode(errors="replace") not in done.stdout
    again = run("secrets", str(tmp_path), "--keep-owner")
    assert again.returncode == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_each_service_has_its_own_key_only(tmp_path: Path) -> None:
    make_secrets(tmp_path, FileMasterKey.load_or_create, users=None)
    private = {plane: json.loads((tmp_path / plane / "service.key").read_text())["d"] for plane in PLANES}
    assert len(set(private.values())) == len(PLANES)
    for consumer in tmp_path.iterdir():
        text = b"".join(path.read_bytes() for path in consumer.iterdir())
        assert [plane for plane in PLANES if private[plane].encode() in text] == [
            plane for plane in PLANES if plane == consumer.name
        ]
    clock = SystemClock()
    for plane in PLANES:
        token = Secrets(tmp_path / plane, plane).credentials(clock).token("identity")
        assert Secrets(tmp_path / "identity", "identity").trusted(clock).verify(token, TokenKind.CALL).service == plane


def test_a_key_is_replaced_by_removing_it(tmp_path: Path) -> None:
    """The old public key stays, for replicas that have not started again."""
    make_secrets(tmp_path, FileMasterKey.load_or_create, users=None)
    clock = SystemClock()
    old = Secrets(tmp_path / "gateway", "gateway").credentials(clock).token("identity")
    (tmp_path / "gateway" / "service.key").unlink()
    made = make_secrets(tmp_path, FileMasterKey.load_or_create, users=None)
    assert {path.name for path in made} == {"service.key", "services.jwks"}
    trusted = Secrets(tmp_path / "identity", "identity").trusted(clock)
    for token in (old, Secrets(tmp_path / "gateway", "gateway").credentials(clock).token("identity")):
        assert trusted.verify(token, TokenKind.CALL).service == "gateway"


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT SHOWN: giving files away takes root")
def test_secrets_belong_to_those_who_read_them(tmp_path: Path) -> None:
    make_secrets(tmp_path, FileMasterKey.load_or_create)
    for path in tmp_path.rglob("*"):
        consumer = path.relative_to(tmp_path).parts[0]
        assert path.stat().st_uid == IMAGE_USERS[consumer], path
        assert not path.stat().st_mode & 0o077, path


@pytest.mark.parametrize("missing", ["service.key", "services.jwks", "master.key"])
def test_a_missing_secret_is_named(tmp_path: Path, missing: str) -> None:
    make_secrets(tmp_path, FileMasterKey.load_or_create, users=None)
    (tmp_path / "identity" / missing).unlink()
    secrets = Secrets(tmp_path / "identity", "identity")
    with pytest.raises(SecretsMissing, match=missing):
        _ = (secrets.credentials(SystemClock()), secrets.trusted(SystemClock()), secrets.master_key)


def test_a_service_without_secrets_does_not_start(tmp_path: Path) -> None:
    done = run("gateway", AGENTKEEP_SECRETS=str(tmp_path))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert str(tmp_path / "service.key") in line
    assert "agentkeep.service secrets" in line


def test_the_public_keys_are_no_private_ones(tmp_path: Path) -> None:
    make_secrets(tmp_path, FileMasterKey.load_or_create, users=None)
    for key in json.loads((tmp_path / "runtime" / "services.jwks").read_text())["keys"]:
        assert "d" not in key


# Readiness and health.


async def test_readiness_names_what_does_not_answer() -> None:
    async def answers() -> bool:
        return True

    async def refuses() -> bool:
        return False

    async def fails() -> bool:
        raise StoreUnavailable("away")

    readiness = Readiness({"store": fails, "identity": refuses, "search": answers})
    assert await readiness.missing() == ["starting", "store", "identity"]
    readiness.state = None
    assert await readiness.missing() == ["store", "identity"]


async def test_parts_may_be_added_while_readiness_is_asked() -> None:
    checks: dict[str, Check] = {}

    async def adds() -> bool:
        checks["search"] = adds
        return True

    checks["store"] = adds
    readiness = Readiness(checks)
    readiness.state = None
    assert await readiness.missing() == []


async def test_a_step_that_a_store_refuses_is_taken_again() -> None:
    """EXE-6: a search store may answer checks and be too busy to make its index."""
    outcomes: list[Exception | None] = [StoreUnavailable("slow"), StoreUnavailable("slow"), None]

    async def step() -> None:
        if (error := outcomes.pop(0)) is not None:
            raise error

    await Readiness({}).until_stored(step)
    assert not outcomes
    outcomes.append(RuntimeError("a defect"))
    with pytest.raises(RuntimeError):
        await Readiness({}).until_stored(step)


def test_health_of_a_service_that_is_not_there() -> None:
    done = run("health", AGENTKEEP_SERVICE_INTERNAL_PORT="1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
