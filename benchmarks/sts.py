"""What a session pays for its user's AWS credentials: our own share of one exchange, and asking again.

One process, a real Valkey. STS is a server on loopback that answers at once with credentials of the right form: AWS's
own time (a region's STS takes some tens of milliseconds) comes on top, once for a session and once for a renewal.
"""

from __future__ import annotations

import json
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvloop
from _history import keep
from aiohttp import web
from identity import SESSIONS, Provider, per_call, timed

from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.runtime.sessions.keys import SessionKeys
from agentkeep.runtime.sessions.session import Session
from agentkeep.storage.valkey import ValkeyKeyValueStore

RUNTIME = "helper-1234567890"
ROLE = "arn:aws:iam::111122223333:role/helper"
ASKED = 20_000


class InstantSts:
    """AssumeRoleWithWebIdentity's answer for whoever asks, with AWS's sizes."""

    def __init__(self) -> None:
        self.asked = 0

    async def start(self) -> tuple[web.AppRunner, str]:
        app = web.Application()
        app.router.add_post("/", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _answer(self, request: web.Request) -> web.Response:
        form = await request.post()
        name = str(form["RoleSessionName"])
        self.asked += 1
        expires = (datetime.now(UTC) + timedelta(seconds=900)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return web.Response(
            text="<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult>"
            f"<SubjectFromWebIdentityToken>{name.split('+')[0]}</SubjectFromWebIdentityToken><Audience>web</Audience>"
            f"<AssumedRoleUser><Arn>arn:aws:sts::111122223333:assumed-role/helper/{name}</Arn></AssumedRoleUser>"
            f"<Credentials><AccessKeyId>ASIA{self.asked:016}</AccessKeyId><SecretAccessKey>{'s' * 40}</SecretAccessKey>"
            f"<SessionToken>{'t' * 1200}</SessionToken><Expiration>{expires}</Expiration></Credentials>"
            "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
            content_type="text/xml",
        )


async def measure(plane: IdentityPlane, provider: Provider) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    tokens = provider.tokens("RS256", SESSIONS)
    users = [User(f"user-{number}", provider.url) for number in range(SESSIONS)]

    async def exchange(number: int) -> None:
        found = await plane.keys.begin_session(
            SessionRef(RUNTIME, f"session-{number:028}"), users[number], tokens[number]
        )
        assert found is not None

    figures["exchange_ms"] = await timed(SESSIONS, exchange)
    print(f"exchange, audit record, key stored  {figures['exchange_ms']} ms   (STS answers at once)")

    session = Session(SessionRef(RUNTIME, "asked-" + "0" * 34), users[0], 1, "DEFAULT", None, 0.0)  # type: ignore[arg-type]
    session.user_token = tokens[0]
    keys = SessionKeys(plane.keys, SystemClock())
    await keys.begin(session)
    before = time.process_time()
    for _ in range(ASKED):
        await keys.of(session)
    spent = time.process_time() - before
    figures["asked_again_us"] = round(spent / ASKED * 1e6, 2)
    print(f"keys asked for again                {per_call(spent, ASKED)}")
    return figures


async def main() -> None:
    provider, sts = Provider(), InstantSts()
    runner = await provider.start()
    sts_runner, url = await sts.start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rule = {"name": "helpers", "agents": ["helper"], "issuer": provider.url, "role": ROLE}
        (folder / "rules.json").write_text(json.dumps({"rules": [rule], "default": "refuse"}))
        settings = IdentitySettings(sts_rules=folder / "rules.json", sts_endpoint=url)
        async with EmbeddedValkey(folder / "valkey") as valkey:
            store = ValkeyKeyValueStore(valkey.url)
            key, audit = FileMasterKey(b"b" * 32), KeyValueAudit(store)
            plane = IdentityPlane(store, key, Deployment(), SystemClock(), settings, audit=audit)
            figures = await measure(plane, provider)
            await plane.close()
            await store.close()
    await runner.cleanup()
    await sts_runner.cleanup()
    keep("sts", figures)


if __name__ == "__main__":
    uvloop.run(main())
