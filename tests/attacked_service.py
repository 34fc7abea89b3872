"""What the attack list is tried against: operations behind the whole HTTP chain, listeners of sessions, and the edge
that compose puts before it; requests as bytes, signed as botocore signs them."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from service_stack import Subject

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import SessionRef, User
from agentkeep.identity.operations import IdentityPlane
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.wire import Router

__all__ = ["NGINX", "AttackedService", "Request", "attacked_service", "status_of"]

REGION = "us-west-2"
EDGE = Path(__file__).parents[1] / "infra" / "compose"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
_ROUTER = Router()


@dataclass(frozen=True)
class Request:
    """A request that was signed, as it is sent: `sent` changes what the signature does not know of."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def sent(self, **changes: Any) -> Request:
        return replace(self, **changes)

    def header(self, name: str, value: str | None) -> Request:
        """With one header replaced; None: without it."""
        kept = tuple(pair for pair in self.headers if pair[0].lower() != name.lower())
        return self.sent(headers=kept if value is None else (*kept, (name, value)))

    def added(self, *headers: tuple[str, str]) -> Request:
        return self.sent(headers=(*self.headers, *headers))

    def value(self, name: str) -> str:
        return next(value for known, value in self.headers if known.lower() == name.lower())

    def authorization(self, pattern: str, replacement: str) -> Request:
        changed, times = re.subn(pattern, replacement, self.value("authorization"), count=1)
        assert times, pattern
        return self.header("Authorization", changed)

    @property
    def data(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers)]
        names = {name.lower() for name, _ in self.headers}
        if not names & {"content-length", "transfer-encoding"}:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


@dataclass
class AttackedService:
    """`done`: what came through to an operation of `subject`: for whom, what, and the request. `ports`: of the
    listeners of sessions that a test made."""

    server: Server
    plane: IdentityPlane
    subject: Subject
    operator: Credentials
    listeners: list[asyncio.Server] = field(default_factory=list)
    ports: dict[SessionRef, int] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def done(self) -> list[tuple[str, str, Any]]:
        return [(call.caller.principal, call.operation, request) for call, request in self.subject.calls]

    async def listen(self, session: SessionRef) -> int:
        """The port of a listener of this session's."""
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self.server.front.protocol(session), "127.0.0.1", 0)
        self.listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    async def keys_of(self, session: SessionRef, user: User | None) -> Credentials:
        issued = await self.plane.keys.issue_for_session(session, user)
        return Credentials(issued.access_key_id, issued.secret_access_key, issued.session_token)

    def client(self, credentials: Credentials, port: int | None = None) -> Any:
        """An unmodified boto3 client."""
        return boto3.client(
            "bedrock-agentcore",
            endpoint_url=f"http://127.0.0.1:{port or self.port}",
            region_name=REGION,
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            aws_session_token=credentials.token,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def signed(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        credentials: Credentials | None = None,
        port: int | None = None,
        host: str | None = None,
        service: str = "bedrock-agentcore",
        at: datetime | None = None,
    ) -> Request:
        """By botocore; `at`: when, else now."""
        named = host or f"127.0.0.1:{port or self.port}"
        request = AWSRequest(method, f"http://{named}{target}", data=body, headers={"Host": named, **(headers or {})})
        signer = _SignerAt(at, credentials or self.operator, service, REGION)
        signer.add_auth(request)
        return Request(method, target, tuple(request.headers.items()), body)

    async def ask(self, *requests: Request | bytes, port: int | None = None, wait: float = 20.0) -> bytes:
        """All that is answered on one connection, until it is closed or an answer to each has come."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        writer.write(b"".join(one if isinstance(one, bytes) else one.data for one in requests))
        answer = b""
        try:
            async with asyncio.timeout(wait):
                while answers(answer) < len(requests) and (piece := await reader.read(65536)):
                    answer += piece
        except ConnectionResetError:
            pass
        finally:
            writer.transport.abort()
        return answer


class _SignerAt(SigV4Auth):
    def __init__(self, at: datetime | None, *args: Any) -> None:
        super().__init__(*args)
        self._at = at

    def add_auth(self, request: AWSRequest) -> None:
        if self._at is None:
            super().add_auth(request)
            return
        request.context["timestamp"] = self._at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        self._modify_request_before_signing(request)
        to_sign = self.string_to_sign(request, self.canonical_request(request))
        self._inject_signature_to_request(request, self.signature(to_sign, request))


_HEAD = re.compile(rb"HTTP/1\.1 (\d{3})[^\r]*\r\n(.*?)\r\n\r\n", re.DOTALL)


def statuses(answer: bytes) -> Sequence[int]:
    """Of each whole answer, one after the other."""
    found, place = [], 0
    while head := _HEAD.match(answer, place):
        length = re.search(rb"(?i)content-length: (\d+)", head[2])
        place = head.end() + (int(length[1]) if length else 0)
        if place > len(answer):
            break
        found.append(int(head[1]))
    return found


def answers(answer: bytes) -> int:
    return len(statuses(answer))


def status_of(answer: bytes) -> int:
    """Of the one answer there is. 0: the connection was closed without one."""
    found = statuses(answer)
    assert len(found) <= 1, answer
    return found[0] if found else 0


@asynccontextmanager
async def attacked_service(plane: IdentityPlane) -> AsyncIterator[AttackedService]:
    subject = Subject()
    application = Application(_ROUTER, Switch(SelfBackend([subject, plane])), Authenticator(plane.keys))
    server = Server(Front(application))
    await server.start()
    issued = await plane.keys.issue_operator_key("admin", acts_for_users=True)
    service = AttackedService(server, plane, subject, Credentials(issued.id, issued.secret))
    try:
        yield service
    finally:
        for listener in service.listeners:
            listener.close()
        await server.stop(0)
        await server.front.close()


@asynccontextmanager
async def edge_before(service: AttackedService, folder: Path, port: int) -> AsyncIterator[None]:
    """nginx with compose's own configuration at `port`; every plane is `service`."""
    assert NGINX is not None
    text = (EDGE / "nginx.conf").read_text()
    for told, here in (
        ("/tmp/", f"{folder}/"),
        ("listen 8080 backlog=1024;", f"listen 127.0.0.1:{port};"),
        ("http://$agentkeep_service:8080", f"http://127.0.0.1:{service.port}"),
        ("/etc/nginx/agentkeep/planes.map", str(EDGE / "edge" / "planes.map")),
        ("worker_processes auto;", "worker_processes 1; user root;"),
    ):
        assert told in text, told
        text = text.replace(told, here)
    text = re.sub(r"resolver[^;]*;", "", text)
    (folder / "edge.conf").write_text(text)
    async with AsyncExitStack() as exit:
        process = await asyncio.create_subprocess_exec(
            NGINX, "-c", str(folder / "edge.conf"), "-p", str(folder), "-e", "stderr", "-g", "daemon off;",
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        exit.push_async_callback(process.wait)
        exit.callback(lambda: process.terminate() if process.returncode is None else None)
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.transport.abort()
                    break
                except OSError:
                    if process.returncode is not None:
                        raise RuntimeError(f"nginx did not start with {folder / 'edge.conf'}") from None
                    await asyncio.sleep(0.02)
        yield
