"""A session's trace as its operator sees it: all planes on it, without a line in the agent, and nobody else's word.

The model provider is a server on loopback; all else is the platform, started by its command.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import apsw
import pytest
from canaries import canary, leaking_files, leaks
from platform_process import PlatformProcess, running_platform

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

#: An agent as its developer writes it: no word of telemetry.
PLAIN = """
import os
from datetime import datetime, timezone

import boto3
from bedrock_agentcore import BedrockAgentCoreApp
from bedrock_agentcore.identity.auth import requires_api_key
from botocore.exceptions import ClientError

app = BedrockAgentCoreApp()
data, models = boto3.client("bedrock-agentcore"), boto3.client("bedrock-runtime")
memory = os.environ["BEDROCK_AGENTCORE_MEMORY_ID"]

@requires_api_key(provider_name="weather")
def forecast(*, api_key):
    return len(api_key)

@app.entrypoint
def invoke(payload, context):
    said = [{"role": "user", "content": [{"text": payload["prompt"]}]}]
    if "actor" in payload:
        try:
            data.list_events(memoryId=memory, sessionId=context.session_id, actorId=payload["actor"])
        except ClientError as error:
            return error.response["Error"]["Code"]
    message = {"conversational": {"role": "USER", "content": {"text": payload["prompt"]}}}
    data.create_event(
        memoryId=memory, actorId="alice", sessionId=context.session_id,
        eventTimestamp=datetime.now(timezone.utc), payload=[message],
    )
    whole = models.converse(modelId="gpt-4o", messages=said)["output"]["message"]["content"][0]["text"]
    streamed = models.converse_stream(modelId="gpt-4o", messages=said)["stream"]
    pieces = [event["contentBlockDelta"]["delta"]["text"] for event in streamed if "contentBlockDelta" in event]
    if payload.get("weather"):
        forecast()
    return whole + "".join(pieces)

app.run()
"""

#: One that says of its telemetry what it likes, by the standard library alone.
LYING = """
import json, time, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Agent(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b'{"status":"Healthy"}')

    def do_POST(self):
        victim = json.loads(self.rfile.read(int(self.headers["content-length"])))
        _, trace_id, span_id, _ = self.headers["traceparent"].split("-")
        now = time.time_ns()
        owner = {"session.id": victim["session"], "aws.agent.id": victim["runtime"], "enduser.id": "bob"}
        spans = [
            {"traceId": trace_id, "spanId": span_id, "name": "nothing happened here"},
            {"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "chat gpt-4o"},
        ]
        owner |= {"aws.operation.name": "InvokeAgentRuntime", "gen_ai.operation.name": "chat"}
        for span in spans:
            span |= {
                "kind": 2, "startTimeUnixNano": str(now), "endTimeUnixNano": str(now + 10**12),
                "attributes": [{"key": k, "value": {"stringValue": v}} for k, v in owner.items()]
                + [{"key": "gen_ai.usage.input_tokens", "value": {"intValue": "999999"}}],
            }
        document = {"resourceSpans": [{"scopeSpans": [{"scope": {"name": "agentkeep.runtime"}, "spans": spans}]}]}
        request = urllib.request.Request(
            "http://169.254.170.2/v1/traces", json.dumps(document).encode(), {"content-type": "application/json"}
        )
        self.answer(urllib.request.urlopen(request).read() or b"{}")

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

ThreadingHTTPServer(("0.0.0.0", 8080), Agent).serve_forever()
"""


class Provider(BaseHTTPRequestHandler):
    """Chat completions: 100 tokens in, 20 out, whole or streamed."""

    usage: ClassVar = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked.get("stream"):
            said = {"choices": [{"index": 0, "delta": {"content": "streamed"}, "finish_reason": None}]}
            end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            events = [said, end, {"choices": [], "usage": self.usage}]
            body = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
            self.answer(body, "text/event-stream")
        else:
            message = {"role": "assistant", "content": "whole"}
            document = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": self.usage}
            self.answer(json.dumps(document).encode(), "application/json")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformProcess]:
    provider = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    settings = {
        "AGENTKEEP_GATEWAY_ROUTES": "*=openai:gpt-4o",
        "AGENTKEEP_GATEWAY_OPENAI_URL": f"http://127.0.0.1:{provider.server_port}/v1",
    }
    with running_platform(tmp_path_factory.mktemp("platform"), **settings) as platform:
        yield platform
    provider.shutdown()
    provider.server_close()


@pytest.fixture(scope="module")
def api_key(platform: PlatformProcess) -> str:
    key = canary()
    platform.client("bedrock-agentcore-control").create_api_key_credential_provider(name="weather", apiKey=key)
    return key


def deploy(platform: PlatformProcess, folder: Path, name: str, main: str, *requirements: str) -> str:
    (folder / "main.py").write_text(main)
    (folder / "requirements.txt").write_text("\n".join(requirements))
    return str(platform.json("deploy", str(folder), "--name", name, "--memory", "notes")["agentRuntimeId"])


@pytest.fixture(scope="module")
def plain(platform: PlatformProcess, tmp_path_factory: pytest.TempPathFactory) -> str:
    return deploy(platform, tmp_path_factory.mktemp("plain"), "plain", PLAIN, "bedrock-agentcore==1.25.0")


def invoke(platform: PlatformProcess, agent: str, session: str, payload: dict[str, Any], user: str = "alice") -> str:
    arguments = ("invoke", agent, json.dumps(payload), "--user", user, "--session-id", session)
    return str(platform.json(*arguments)["answer"])


def kinds(story: dict[str, Any]) -> list[tuple[str, str]]:
    return [(event["kind"], event["name"]) for event in story["events"]]


def test_a_trace_has_every_plane_in_order(platform: PlatformProcess, plain: str, api_key: str) -> None:
    """OBS-1: invocation, identity, memory, model, without a line in the agent; OBS-2: with its cost. No secret is on
    it, nor in the store behind it."""
    session = str(uuid.uuid4())
    assert invoke(platform, "plain", session, {"prompt": "What is it like?", "weather": True}) == "wholestreamed"
    platform.run("stop", session)
    story = platform.json("trace", session)
    assert story["session"] == {"runtime_id": plain, "session_id": session}
    assert story["user"] == "alice"
    assert kinds(story) == [
        ("invocation", "InvokeAgentRuntime"),
        ("session", "start session"),
        ("identity", "IssueSessionCredentials"),
        ("identity", "IssueWorkloadAccessToken"),
        ("memory", "CreateEvent"),
        ("model", "chat gpt-4o"),
        ("model", "chat gpt-4o"),
        ("identity", "GetResourceApiKey"),
        ("session", "end session"),
    ]
    events = {event["name"]: event for event in story["events"]}
    assert {event["status"] for event in story["events"]} == {"ok"}
    assert events["InvokeAgentRuntime"]["input"] == {"prompt": "What is it like?", "weather": True}
    assert events["InvokeAgentRuntime"]["output"] == "wholestreamed"
    whole, streamed = [event for event in story["events"] if event["kind"] == "model"]
    [question] = whole["input"]
    assert question["parts"] == [{"type": "text", "content": "What is it like?"}]
    assert whole["output"][0]["parts"] == [{"type": "text", "content": "whole"}]
    assert streamed["output"][0]["parts"] == [{"type": "text", "content": "streamed"}]
    # gpt-4o: 2.50 dollars a million in, 10 out.
    for call in (whole, streamed):
        assert (call["input_tokens"], call["output_tokens"]) == (100, 20)
        assert Decimal(call["cost_usd"]) == Decimal("0.00045")
    assert story["totals"]["calls"] == 2
    assert Decimal(story["totals"]["cost_usd"]) == Decimal("0.0009")
    assert platform.json("usage", session)["totals"]["cost_usd"] == story["totals"]["cost_usd"]

    read = platform.run("trace", session).stdout
    for told in ("What is it like?", "100 + 20 tokens", "$0.00045", "GetResourceApiKey", "user alice", "2 model calls"):
        assert told in read
    assert not leaks(json.dumps(story).encode() + read.encode(), [api_key])
    assert leaking_files(platform.data_dir, [api_key]) == []
    assert "accessToken" not in json.dumps(story) and "eyJ" not in json.dumps(story)


def test_a_refused_crossing_is_on_the_trace_and_an_alert(platform: PlatformProcess, plain: str) -> None:
    """MEM-5: refused, audited, alerted; a loop of attempts is one alert."""
    session = str(uuid.uuid4())
    for _ in range(5):
        assert invoke(platform, "plain", session, {"prompt": "", "actor": "bob"}) == "AccessDeniedException"
    story = platform.json("trace", session)
    refused = [event for event in story["events"] if event["name"] == "ListEvents"]
    assert [event["status"] for event in refused] == ["refused"] * 5
    assert "may only name the user it acts for" in refused[0]["reason"]
    alerts = [event for event in story["events"] if event["kind"] == "alert"]
    assert sum(event["details"]["count"] for event in alerts) == 5
    assert len(alerts) <= 2  # a minute may have ended in between
    [kept, *_] = [
        found
        for found in platform.json("alerts")["alerts"]
        if found["session"] and found["session"]["session_id"] == session
    ]
    assert (kept["kind"], kept["user_id"]) == ("cross-user-access", "alice")
    assert "cross-user-access" in platform.run("alerts").stdout


def test_another_users_session_is_refused_and_alerted(platform: PlatformProcess, plain: str) -> None:
    session = str(uuid.uuid4())
    invoke(platform, "plain", session, {"prompt": "mine"})
    before = kinds(platform.json("trace", session))
    arguments = ("invoke", "plain", "hello", "--user", "bob", "--session-id", session)
    assert platform.run(*arguments, check=False).returncode == 1
    assert kinds(platform.json("trace", session)) == before  # what bob tried is not on alice's trace
    assert any(found["user_id"] == "bob" and session in found["summary"] for found in platform.json("alerts")["alerts"])


def test_a_lying_agent_writes_in_no_trace_but_its_own(platform: PlatformProcess, plain: str, tmp_path: Path) -> None:
    """OBS-5: it names another session, and the platform's own spans by their ids: neither is touched, no token of its
    telling counts, and what it says is marked as its word."""
    victim, session = str(uuid.uuid4()), str(uuid.uuid4())
    invoke(platform, "plain", victim, {"prompt": "mine"})
    before = platform.json("trace", victim)
    deploy(platform, tmp_path, "lying", LYING)
    invoke(platform, "lying", session, {"runtime": plain, "session": victim}, user="bob")
    assert platform.json("trace", victim) == before
    story = platform.json("trace", session)
    assert story["user"] == "bob"
    platforms = [(e["kind"], e["name"]) for e in story["events"] if e["origin"] == "platform"]
    assert platforms.count(("invocation", "InvokeAgentRuntime")) == 1
    [word] = [event for event in story["events"] if event["origin"] == "agent"]
    assert (word["kind"], word["name"]) == ("agent", "chat gpt-4o")
    assert (story["totals"]["calls"], story["totals"]["input_tokens"]) == (0, 0)
    assert story["seconds"] < 100
    assert "the agent's word" in platform.run("trace", session).stdout


def test_an_instrumented_agent_joins_the_trace_and_no_call_is_counted_twice(
    platform: PlatformProcess, plain: str, tmp_path: Path
) -> None:
    """OBS-1, OBS-2: AgentCore's own distribution among an agent's packages is switched on without a line in the agent.
    Its spans are children of the invocation's; its view of a model call is not told beside the gateway's."""
    requirements = ("bedrock-agentcore==1.25.0", "aws-opentelemetry-distro==0.21.0")
    runtime_id = deploy(platform, tmp_path, "instrumented", PLAIN, *requirements)
    session = str(uuid.uuid4())
    assert invoke(platform, "instrumented", session, {"prompt": "hello"}) == "wholestreamed"
    ours, agents = [], []
    deadline = time.monotonic() + 60
    while len([span for span in agents if span["attributes"].get("gen_ai.operation.name") == "chat"]) < 2:
        assert time.monotonic() < deadline, [span["name"] for span in agents]
        time.sleep(0.5)  # its exporter sends every five seconds
        ours, agents = spans_of(platform, runtime_id, session)
    [invocation] = [span for span in ours if span["name"] == "InvokeAgentRuntime"]
    calls = [span for span in ours if span["name"] == "chat gpt-4o"]
    assert {span["trace_id"] for span in calls} == {invocation["trace_id"]}
    assert {span["trace_id"] for span in agents if "gen_ai.operation.name" in span["attributes"]} == {
        invocation["trace_id"]
    }
    story = platform.json("trace", session)
    assert [name for kind, name in kinds(story) if name.startswith("chat")] == ["chat gpt-4o"] * 2
    assert story["totals"]["calls"] == 2
    assert story["totals"]["input_tokens"] == 200
    depths = {event["name"]: event["depth"] for event in story["events"]}
    assert depths["InvokeAgentRuntime"] < depths["CreateEvent"] <= depths["chat gpt-4o"]


def spans_of(platform: PlatformProcess, runtime_id: str, session: str) -> tuple[list[Any], list[Any]]:
    """The platform's spans of a session, and its agent's, from the file they are kept in."""
    connection = apsw.Connection(str(platform.data_dir / "spans.db"), flags=apsw.SQLITE_OPEN_READONLY)
    query = "SELECT origin, span FROM session_spans WHERE runtime_id = ? AND session_id = ?"
    rows = list(connection.execute(query, (runtime_id, session)))
    connection.close()
    found = [(origin, json.loads(span)) for origin, span in rows]
    return [span for origin, span in found if origin == "platform"], [
        span for origin, span in found if origin == "agent"
    ]


def test_a_session_without_a_trace(platform: PlatformProcess, plain: str) -> None:
    done = platform.run("trace", str(uuid.uuid4()), check=False)
    assert done.returncode == 1
    assert "There is no trace" in done.stderr
