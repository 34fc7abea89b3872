"""The front, the chain and the pump on a loopback port: what tests of the service are made with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import boto3
import httptools
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from loopback_agent import LoopbackSessions, ScriptedAgent

from agentkeep.core.call import Call, CallerKind, SessionRef, User, allow
from agentkeep.core.errors import ConflictException, DependencyError, StoreUnavailable
from agentkeep.core.identifiers import Deployment
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.runtime.pump import InvocationRoute
from agentkeep.service.front import Server

DEPLOYMENT = Deployment()
RUNTIME = DEPLOYMENT.arn("runtime/demo-0123456789")
SESSION_ID = "session-" + "0" * 32


class Subject:
    """A plane with operations that show what the chain hands over and takes back."""

    name = "subject"
    arn_kinds = frozenset({"memory"})

    def __init__(self) -> None:
        self.calls: list[tuple[Call, dict[str, Any]]] = []
        self.closed = 0

    @allow(CallerKind.SESSION)
    async def create_event(self, call: Call, request: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((call, request))
        return {"event": {**request, "eventId": "0#1", "branch": {"name": "main"}}}

    async def create_memory(self, call: Call, request: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((call, request))
        match request["name"]:
            case "conflict":
                raise ConflictException("There is a memory of this name")
            case "dependency":
                raise DependencyError("valkey said: password is hunter2")
            case "store":
                raise StoreUnavailable("valkey said: password is hunter2")
            case "defect":
                raise KeyError("hunter2")
        return {}

    async def converse_stream(self, call: Call, request: dict[str, Any]) -> dict[str, Any]:
        async def events() -> AsyncIterator[dict[str, Any]]:
            try:
                yield {"messageStart": {"role": "assistant"}}
                for i in range(int(request["messages"][0]["content"][0]["text"])):
                    yield {"contentBlockDelta": {"delta": {"text": f"word{i} "}, "contentBlockIndex": 0}}
                    await asyncio.sleep(0.005)
                yield {"messageStop": {"stopReason": "end_turn"}}
            finally:
                self.closed += 1

        return {"stream": events()}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """A mount: answers with the size of the body and who asks."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    caller = scope.get("agentkeep.caller")
    who = caller.principal if caller else str(scope.get("agentkeep.session"))
    answer = f"{size} {who}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


@dataclass
class Stack:
    server: Server
    agent: ScriptedAgent
    sessions: LoopbackSessions
    route: InvocationRoute
    keys: AccessKeys
    plane: Subject
    credentials: Credentials
    session_listeners: list[asyncio.Server] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.port

    async def session_listener(self, session: SessionRef) -> int:
        """A listener that belongs to this session; its port."""
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self.server.front.protocol(session), "127.0.0.1", 0)
        self.session_listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    async def session_credentials(self, session: SessionRef, user: User | None = None) -> Credentials:
        issued = await self.keys.issue_for_session(session, user)
        return Credentials(issued.access_key_id, issued.secret_access_key, issued.session_token)

    def client(self, service: str = "bedrock-agentcore", **options: Any) -> Any:
        """An unmodified boto3 client."""
        port = options.pop("port", self.port)
        credentials = options.pop("credentials", self.credentials)
        options.setdefault("retries", {"total_max_attempts": 1})
        return boto3.client(
            service,
            region_name=DEPLOYMENT.region,
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            aws_session_token=credentials.token,
            config=Config(**options),
        )

    def signed(
        self,
        body: bytes = b"",
        path: str | None = None,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        credentials: Credentials | None = None,
        port: int | None = None,
        version: str = "1.1",
        session_id: str | None = SESSION_ID,
    ) -> bytes:
        """A request's bytes, signed by botocore."""
        path = path or invocation_path()
        sent = {"Content-Type": "application/json", **(headers or {})}
        if session_id is not None:
            sent.setdefault("X-Amzn-Bedrock-AgentCore-Runtime-Session-Id", session_id)
        request = AWSRequest(method, f"http://127.0.0.1:{port or self.port}{path}", data=body, headers=sent)
        SigV4Auth(credentials or self.credentials, "bedrock-agentcore", DEPLOYMENT.region).add_auth(request)
        fields = dict(request.headers.items())
        fields.setdefault("Host", f"127.0.0.1:{port or self.port}")
        if "Transfer-Encoding" not in fields:
            fields["Content-Length"] = str(len(body))
        head = f"{method} {path} HTTP/{version}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        return head.encode() + body

    async def raw(self, *parts: bytes, port: int | None = None, wait: float = 5.0, gap: float = 0.02) -> bytes:
        """Sends bytes, returns all that comes until the server closes. Where it does not, `<open>` is put to the end:
        when nothing followed a whole answer, or nothing came at all for `wait` seconds."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        answers = _Answers()
        try:
            for number, part in enumerate(parts):
                if number:
                    await asyncio.sleep(gap)
                writer.write(part)
                await writer.drain()
            while True:
                async with asyncio.timeout(min(wait, 0.07) if answers.whole else wait):
                    data = await reader.read(65536)
                if not data:
                    return answers.data
                answers.feed(data)
        except TimeoutError:
            return answers.data + b"<open>"
        except ConnectionResetError:
            return answers.data + b"<reset>"
        finally:
            writer.transport.abort()


class _Answers:
    """What a server sent, and whether it ended with the end of an answer."""

    def __init__(self) -> None:
        self.data = b""
        self.whole = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self.data += data
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.whole = False

    def on_message_begin(self) -> None:
        self.whole = False

    def on_message_complete(self) -> None:
        self.whole = self._parser.get_status_code() >= 200


def invocation_path(runtime: str = RUNTIME, tail: str = "invocations") -> str:
    return f"/runtimes/{quote(runtime, safe='')}/{tail}"


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
