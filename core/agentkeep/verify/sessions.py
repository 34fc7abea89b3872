"""Sessions of the probe, and the users they act for, as any client of the deployment has them."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from agentkeep.verify.probe.attack import Own, Victim, masked

__all__ = ["SESSION_HEADER", "Answer", "Session", "Wire", "new_session"]

SESSION_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
START_SECONDS = 120.0  # that a session waits for its turn to start
USER_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-User-Id"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        return self.status < 300

    def __str__(self) -> str:
        return f"{self.status} {self.body[:300].decode(errors='replace')}"


class Wire:
    """Requests to the deployment's public port: signed, or with a user's token. No retries: what is refused is seen."""

    def __init__(self, endpoint: str, region: str, operator: Credentials, token: Callable[[str], str] | None) -> None:
        self.endpoint = endpoint
        self.operator = operator
        #: A user's access token; None: the deployment has no issuer that this command can ask.
        self.token = token
        self._region = region
        self._http = urllib3.PoolManager(
            maxsize=64, block=False, retries=False, timeout=urllib3.Timeout(connect=10, read=900)
        )

    def signed(
        self, method: str, path: str, document: Any, headers: Mapping[str, str], keys: Credentials | None = None
    ) -> Answer:
        body = b"" if document is None else json.dumps(document).encode()
        named = {"Content-Type": "application/json", **headers}
        request = AWSRequest(method, self.endpoint + path, data=body, headers=named)
        SigV4Auth(keys or self.operator, "bedrock-agentcore", self._region).add_auth(request)
        return self._send(method, path, body, dict(request.headers.items()))

    def bearing(self, path: str, document: Any, headers: Mapping[str, str], token: str) -> Answer:
        named = {"Content-Type": "application/json", "Authorization": f"Bearer {token}", **headers}
        return self._send("POST", path, json.dumps(document).encode(), named)

    def _send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        answer = self._http.request(method, self.endpoint + path, body=body, headers=headers)
        return Answer(answer.status, answer.data)


@dataclass
class Session:
    """One of a runtime's sessions. `bearer`: its runtime takes users' tokens; else operators speak for the user.

    `own`: what is planted in it; `victim`: what is its user's at the session endpoint."""

    wire: Wire
    runtime: str
    user: str
    id: str
    bearer: bool
    name: str
    secret: str
    port: int
    key: int
    own: Own = field(default_factory=Own)
    victim: Victim = field(default_factory=lambda: Victim(""))

    def invoke(self, payload: Mapping[str, Any], user: str | None = None) -> Answer:
        """`user`: another than its own."""
        path = f"/runtimes/{quote(self.runtime, safe='')}/invocations"
        return self._post(path, payload, user or self.user, name_user=True)

    def stop(self, user: str | None = None) -> Answer:
        path = f"/runtimes/{quote(self.runtime, safe='')}/stopruntimesession"
        return self._post(path, {}, user or self.user, name_user=False)

    def command(self, line: str, user: str | None = None) -> Answer:
        path = f"/runtimes/{quote(self.runtime, safe='')}/commands"
        return self._post(path, {"command": line, "timeout": 20}, user or self.user, name_user=True)

    def _post(self, path: str, document: Any, user: str, *, name_user: bool) -> Answer:
        headers = {SESSION_HEADER: self.id}
        if self.bearer:
            assert self.wire.token is not None
            return self.wire.bearing(path, document, headers, self.wire.token(user))
        return self.wire.signed("POST", path, document, headers | ({USER_HEADER: user} if name_user else {}))

    def ask(self, **payload: Any) -> Any:
        """Raises RuntimeError with what was answered, where that is no success."""
        answer = self.invoke(payload)
        if not answer.ok:
            raise RuntimeError(f"session {self.id} of {self.user} answered {payload['do']!r} with {answer}")
        return json.loads(answer.body)

    def plant(self) -> dict[str, Any]:
        """One of everything. A deployment that starts only so many sessions at once is given time."""
        deadline = time.monotonic() + START_SECONDS
        while not (first := self.invoke({"do": "who"})).ok:
            if first.status not in (409, 429, 503) or time.monotonic() > deadline:
                raise RuntimeError(f"session {self.id} of {self.user} did not start: {first}")
            time.sleep(0.5)
        planted: dict[str, Any] = self.ask(
            do="plant", name=self.name, secret=masked(self.secret), port=self.port, key=self.key
        )
        self.own = Own(**planted["own"])
        return planted


def new_session(
    wire: Wire, runtime: str, user: str, *, bearer: bool, number: int, beginning: str, id: str | None = None
) -> Session:
    """`beginning`: of all secrets of a run, by which they are searched for."""
    base = secrets.randbelow(1 << 20)
    return Session(
        wire, runtime, user, id or f"verify-{uuid.uuid4()}", bearer, f"planted-{number}-{secrets.token_hex(8)}",
        beginning + secrets.token_hex(16), 23000 + number, 0x5E000000 + base * 8 % (1 << 23) + number,
    )  # fmt: skip
