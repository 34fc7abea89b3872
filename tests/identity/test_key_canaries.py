"""Keys of every kind, looked for in everything that comes out: the master key and what is derived of it, data keys of
the deployment and of AWS KMS, keys of operators and sessions, users' tokens and workload access tokens."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from canaries import leaking_files, leaks
from consent_stand import OPERATOR, session_call
from kms_stand_in import KmsStandIn, key_arn, running_kms

from agentkeep.core.call import Call, SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import AgentkeepError
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service import Context, DataKey, KeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.vault.token_vault import VAULT_KEYS
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.storage.valkey import ValkeyKeyValueStore

RUNTIME = "helper-1234567890"


class Overheard:
    """A key service, and the plain data keys that went through it."""

    def __init__(self, service: KeyService) -> None:
        self._service = service
        self.plain: list[bytes] = []

    async def generate(self, context: Context, arn: str | None = None) -> DataKey:
        made = await self._service.generate(context, arn)
        self.plain.append(made.plain)
        return made

    async def unwrap(self, wrapped: bytes, context: Context) -> bytes:
        self.plain.append(await self._service.unwrap(wrapped, context))
        return self.plain[-1]

    async def erase(self, wrapped: bytes) -> None:
        await self._service.erase(wrapped)

    async def close(self) -> None:
        await self._service.close()


class DerivedKeys(FileMasterKey):
    """A master key, and the keys that were derived from it."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.derived: list[bytes] = []

    def derive(self, purpose: str) -> bytes:
        self.derived.append(super().derive(purpose))
        return self.derived[-1]


@pytest.fixture
async def kms(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KmsStandIn]:
    async with running_kms(monkeypatch, secret="secret-for-kms") as stand_in:
        yield stand_in


async def test_no_key_comes_out(
    tmp_path: Path, kms: KmsStandIn, provider: Any, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """IDN-1, IDN-3: not into a log, an error, an audit record, the repr of what holds it, nor anything that Valkey was
    ever told."""
    caplog.set_level(logging.DEBUG)
    master = secrets.token_bytes(32)
    keys = DerivedKeys(master)
    settings = KeySettings(kms_endpoint_url=kms.url)
    service = Overheard(settings.services(keys.derive(VAULT_KEYS)))
    told: list[object] = []
    planted: list[str | bytes] = [master, "secret-for-kms"]

    async def refused(attempt: Any) -> None:
        with pytest.raises(AgentkeepError) as error:
            await attempt
        told.append((error.value, error.value.args, error.value.__cause__, error.value.__context__))

    async with EmbeddedValkey(tmp_path / "valkey", appendfsync="no") as valkey:
        store = ValkeyKeyValueStore(valkey.url)
        audit = KeyValueAudit(store)
        plane = IdentityPlane(
            store, keys, Deployment(), SystemClock(), IdentitySettings(),
            trusted_issuers=[provider.discovery_url], audit=audit, key_service=service, key_settings=settings,
        )  # fmt: skip
        operator = await plane.keys.issue_operator_key("admin")
        session = SessionRef(RUNTIME, "s" * 33)
        user, user_token = User("alice", provider.url), provider.token()
        issued = await plane.keys.issue_for_session(session, user, user_token)
        await plane.workload_tokens.create_for_service(RUNTIME)
        handed = await plane.workload_tokens.issue(RUNTIME, user, user_token)
        assert handed is not None
        await plane.create_workload_identity(OPERATOR, {"name": "agent"})
        minted = await plane.get_workload_access_token_for_jwt(
            OPERATOR, {"workloadName": "agent", "userToken": user_token}
        )  # fmt: skip
        token = minted["workloadAccessToken"]
        for name, key in (("ours", {"keyType": "ServiceManagedKey"}),
                          ("theirs", {"keyType": "CustomerManagedKey", "kmsKeyArn": key_arn()})):  # fmt: skip
            changed: Any = {"kmsConfiguration": key}
            await plane.set_token_vault_cmk(OPERATOR, changed)
            await plane.create_api_key_credential_provider(OPERATOR, {"name": name, "apiKey": f"key-{name}"})
            asked: Any = {"workloadIdentityToken": token, "resourceCredentialProviderName": name}
            assert (await plane.get_resource_api_key(OPERATOR, asked))["apiKey"] == f"key-{name}"
        for call, other in ((session_call("bob", RUNTIME), handed), (OPERATOR, token[:-1]), (OPERATOR, user_token)):
            await refused(_api_key(plane, call, other))
        wrong: Any = {"workloadName": "agent", "userToken": user_token[:-5]}
        await refused(plane.get_workload_access_token_for_jwt(OPERATOR, wrong))
        kms.disabled.add(key_arn())
        await refused(plane.create_api_key_credential_provider(OPERATOR, {"name": "late", "apiKey": "k"}))
        assert await plane.keys.find(issued.access_key_id) is not None

        planted += [
            *keys.derived, *service.plain, operator.secret, issued.secret_access_key, issued.session_token, user_token,
            handed, token,
        ]  # fmt: skip
        records, _ = await audit.page(AuditFilter(), 1000)
        kinds = {record.kind for record in records}
        assert kinds >= {"api-key-used", "api-key-refused", "workload-token", "workload-token-refused",
                         "identity-change", "identity-change-refused"}  # fmt: skip
        holders = [plane, plane.keys, operator, issued, keys, plane._vault, plane.workload_tokens, *told]
        await plane.close()
        await service.close()
        await store.close()
    assert len(service.plain) >= 4 and len(keys.derived) >= 4
    assert not leaks(json.dumps([asdict(record) for record in records], default=str).encode(), planted)
    for holder in holders:
        assert not leaks((repr(holder) + str(holder)).encode(), planted), type(holder)
    assert len(caplog.records) > 10
    for record in caplog.records:
        line = logging.Formatter().format(record)
        assert not leaks(line.encode() + repr(record.__dict__).encode(), planted), line
    assert leaking_files(tmp_path, planted) == []
    assert leaking_files(tmp_path, ["credential-providers"]) != []


async def _api_key(plane: IdentityPlane, call: Call, token: str) -> None:
    await plane.get_resource_api_key(
        call, {"workloadIdentityToken": token, "resourceCredentialProviderName": "ours"}
    )  # fmt: skip
