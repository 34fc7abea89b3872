"""The identity plane with roles, behind the front where people and applications reach it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.alarm import Alarm
from agentkeep.core.clock import SystemClock
from agentkeep.core.ports import Alert
from agentkeep.identity.access_keys.keys import IssuedOperatorKey
from agentkeep.identity.access_keys.operators_app import OperatorKeysApp
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.roles.sts_app import LARGEST_REQUEST
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.mounts import Access, Mount
from agentkeep.wire import Router

ACCOUNT, REGION = "123456789012", "us-west-2"


def role_arn(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"


def write_roles(path: Path, *roles: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"roles": roles}))
    return path


class _NoAlerts:
    """Nothing that is done here raises one."""

    async def raise_alert(self, alert: Alert) -> None:
        raise AssertionError(alert)


class RoleStand:
    """`url`: its public one. `sts` and `client` are boto3's, unmodified."""

    def __init__(self, plane: IdentityPlane, audit: KeyValueAudit, port: int, clock: Any = None) -> None:
        self.plane = plane
        self.audit = audit
        self.url = f"http://127.0.0.1:{port}"
        self.admin: IssuedOperatorKey
        self.alarm = Alarm(_NoAlerts(), SystemClock(), audit)
        self.authenticator = Authenticator(plane.keys, clock, self.alarm)
        operator_keys = OperatorKeysApp(plane.keys, audit, SystemClock())
        mounts = [
            Mount("/sts", plane.sts_app, Access.PUBLIC, LARGEST_REQUEST),
            Mount("/sts", plane.sts_app, Access.SESSION, LARGEST_REQUEST),
            Mount("/roles", plane.roles_app, Access.OPERATOR),
            Mount("/operator-keys", operator_keys, Access.OPERATOR),
        ]
        self.application = Application(
            Router(), Switch(SelfBackend([plane], self.alarm)), self.authenticator, mounts=mounts
        )
        self._front = Front(self.application)
        self._server = Server(self._front, "127.0.0.1", port)

    async def start(self) -> None:
        await self._server.start()
        self.admin = await self.plane.keys.issue_operator_key("admin")

    async def stop(self) -> None:
        await self._server.stop(0)
        await self.alarm.close()
        await self._front.close()

    def client(self, service: str, credentials: dict[str, Any] | None = None) -> Any:
        """With what AssumeRoleWithWebIdentity answered, or, without, the administrator's key."""
        given = credentials or {"AccessKeyId": self.admin.id, "SecretAccessKey": self.admin.secret}
        return boto3.client(
            service,
            endpoint_url=f"{self.url}/sts" if service == "sts" else self.url,
            region_name=REGION,
            aws_access_key_id=given["AccessKeyId"],
            aws_secret_access_key=given["SecretAccessKey"],
            aws_session_token=given.get("SessionToken"),
            config=Config(retries={"max_attempts": 0}),
        )

    async def assume(self, role: str, token: str, name: str = "olivia", **more: Any) -> Any:
        """By boto3, which signs nothing here."""
        config = Config(signature_version=UNSIGNED, retries={"max_attempts": 0})
        client = boto3.client("sts", endpoint_url=f"{self.url}/sts", region_name=REGION, config=config)
        asked = {"RoleArn": role_arn(role), "RoleSessionName": name, "WebIdentityToken": token, **more}
        return await asyncio.to_thread(lambda: client.assume_role_with_web_identity(**asked))

    async def call(self, credentials: dict[str, Any] | None, service: str, call: Callable[[Any], Any]) -> Any:
        client = self.client(service, credentials)
        return await asyncio.to_thread(call, client)

    async def recorded(self, kind: str) -> list[Any]:
        records, _ = await self.audit.page(AuditFilter(kind=kind), 100)
        return list(records)
