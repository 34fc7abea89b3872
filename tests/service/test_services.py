"""Five services, unmodified clients, real sessions: what works in one process works in five.

And what fails, fails closed.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import boto3
import pytest
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from canaries import canary, leaking_files, leaks
from service_processes import Services, running_services, secret_values

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.distributed.secrets import Secrets
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.observability.settings import ObservabilitySettings
from agentkeep.observability.spans_sqlite import SqliteSpanStore
from agentkeep.service.ownership import PLANES
from agentkeep.storage.valkey import ValkeyKeyValueStore

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(240)]

AGENT = Path(__file__).parents[1] / "agents" / "caller"
VARIABLE = canary()
PIECES, GAP = 6, 0.25
STATED = SessionRef("agent-0123456789", "s" * 36)


class Model(BaseHTTPRequestHandler):
    """An OpenAI-compatible server: says what it is told, a streamed answer in pieces with a pause before each."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = request["messages"][-1]["content"]
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        if not request.get("stream"):
            said = f"said: {text}"
            if "response_format" in request:  # memory asks what to remember
                said = json.dumps({"facts": [{"fact": "The order is A-1.", "messages": [0]}]})
            choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            return self.answer("application/json", [json.dumps({"choices": [choice], "usage": usage})])
        chunks = [{"choices": [{"delta": {"content": f"piece {number} "}}]} for number in range(PIECES)]
        end = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage}
        return self.answer(
            "text/event-stream",
            [*(f"data: {json.dumps(each)}\n\n" for each in (*chunks, end)), "data: [DONE]\n\n"],
            GAP,
        )

    def answer(self, kind: str, pieces: list[str], gap: float = 0) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            time.sleep(gap)
            self.wfile.write(f"{len(piece.encode()):x}\r\n{piece}\r\n".encode())
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Place:
    services: Services
    operator: dict[str, str]
    provider_key: str
    arn: str = ""
    memory: str = ""

    @cached_property
    def credentials(self) -> Credentials:
        return Credentials(self.operator["accessKeyId"], self.operator["secretAccessKey"])

    def client(self, service: str, plane: str) -> Any:
        """An unmodified client, pointed at the service that an edge would choose."""
        return boto3.client(
            service,
            endpoint_url=self.services[plane].url,
            region_name="us-east-1",
            aws_access_key_id=self.credentials.access_key,
            aws_secret_access_key=self.credentials.secret_key,
            config=Config(retries={"total_max_attempts": 1}, read_timeout=60),
        )

    def signed(self, method: str, plane: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """A request to one of the platform's own routes, signed by the operator."""
        url = self.services[plane].url + path
        request = AWSRequest(method, url, data=body, headers=headers)
        SigV4Auth(self.credentials, "bedrock-agentcore", "us-east-1").add_auth(request)
        with urllib3.PoolManager(retries=False, timeout=30) as http:
            answer = http.request(method, url, body=body, headers=dict(request.headers.items()))
        return answer.status, answer.data

    def deploy(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder, "agent.zip")
            with ZipFile(archive, "w") as bundle:
                for file in sorted(AGENT.iterdir()):
                    if file.is_file():
                        bundle.write(file, file.name)
            status, answer = self.signed("PUT", "runtime", "/artifacts/agentkeep/caller.zip", archive.read_bytes())
        assert status in (200, 201), answer
        control = self.client("bedrock-agentcore-control", "runtime")
        code = {
            "code": {"s3": {"bucket": "agentkeep", "prefix": "caller.zip"}},
            "runtime": "PYTHON_3_11",
            "entryPoint": ["agent.py"],
        }
        made = control.create_agent_runtime(
            agentRuntimeName="caller",
            agentRuntimeArtifact={"codeConfiguration": code},
            roleArn="arn:aws:iam::000000000000:role/agentkeep",
            networkConfiguration={"networkMode": "PUBLIC"},
            environmentVariables={"API_KEY": VARIABLE},
        )
        deadline = time.monotonic() + 90
        while (state := control.get_agent_runtime(agentRuntimeId=made["agentRuntimeId"]))["status"] == "CREATING":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert state["status"] == "READY", state
        assert state["environmentVariables"] == {"API_KEY": VARIABLE}
        return str(made["agentRuntimeArn"])

    def ask(self, *steps: list[Any], session: str, user: str = "alice") -> Any:
        """What the agent got, step by step."""
        answer = self.client("bedrock-agentcore", "runtime").invoke_agent_runtime(
            agentRuntimeArn=self.arn,
            runtimeSessionId=session,
            runtimeUserId=user,
            payload=json.dumps({"steps": steps}).encode(),
        )
        return json.loads(answer["response"].read())


def new_session() -> str:
    return str(uuid.uuid4())


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="agentkeep-services-"))
    model = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=model.serve_forever, daemon=True).start()
    settings = {
        "AGENTKEEP_GATEWAY_ROUTES": "*=openai",
        "AGENTKEEP_GATEWAY_OPENAI_URL": f"http://127.0.0.1:{model.server_address[1]}/v1",
        "AGENTKEEP_MEMORY_EMBEDDING": "none",
        "AGENTKEEP_SERVICE_STOP_TIMEOUT": "10",
    }
    try:
        with running_services(folder, **settings) as services:
            place = Place(services, services.operator(), canary())
            place.memory = place.client("bedrock-agentcore-control", "memory").create_memory(
                name="remembers", eventExpiryDuration=30
            )["memory"]["id"]
            place.client("bedrock-agentcore-control", "identity").create_api_key_credential_provider(
                name="tools", apiKey=place.provider_key
            )
            place.arn = place.deploy()
            yield place
    finally:
        model.shutdown()
        model.server_close()
        shutil.rmtree(folder, ignore_errors=True)


def results(answers: list[dict[str, Any]]) -> list[Any]:
    assert all("result" in answer for answer in answers), answers
    return [answer["result"] for answer in answers]


def test_a_session_reaches_every_plane(place: Place) -> None:
    """EXE-2, MEM-1, IDN-4: an agent talks to one address; its model, its memory and its credentials are other
    services."""
    user = f"user-{uuid.uuid4()}"
    said, event, texts, length, refused = place.ask(
        ["converse", "hello"],
        ["create_event", place.memory, user, "my order is A-1"],
        ["list_events", place.memory, user],
        ["api_key", "tools"],
        ["list_runtimes"],
        session=new_session(),
        user=user,
    )
    assert [said["result"], texts["result"], length["result"]] == [
        "said: hello", ["my order is A-1"], len(place.provider_key)
    ], (said, texts, length)  # fmt: skip
    assert event["result"]
    # What is not open to sessions is not, wherever it is served.
    assert (refused["error"], refused["status"]) == ("AccessDeniedException", 403)


def test_what_memory_extracts_is_asked_of_the_gateway(place: Place) -> None:
    """MEM-3: the memory service asks the gateway service's model, and the session's use tells of it."""
    override = {"extraction": {"appendToPrompt": "Of orders.", "modelId": "any"}}
    control = place.client("bedrock-agentcore-control", "memory")
    strategy = {"name": "orders", "configuration": {"semanticOverride": override}, "namespaces": ["/of/{actorId}/"]}
    memory = control.create_memory(
        name=f"m{uuid.uuid4().hex}", eventExpiryDuration=7, memoryStrategies=[{"customMemoryStrategy": strategy}]
    )["memory"]["id"]
    session, user = new_session(), f"user-{uuid.uuid4()}"
    results(place.ask(["create_event", memory, user, "my order is A-1"], session=session, user=user))
    data = place.client("bedrock-agentcore", "memory")

    def texts() -> list[str]:
        found = data.list_memory_records(memoryId=memory, namespace=f"/of/{user}/")["memoryRecordSummaries"]
        return [one["content"]["text"] for one in found]

    until(lambda: bool(texts()), 60)
    assert texts() == ["The order is A-1."]
    status, answer = place.signed("GET", "observability", f"/usage/{place.arn.rsplit('/', 1)[1]}/{session}")
    assert (status, json.loads(answer)["totals"]["calls"]) == (200, 1)


def test_another_users_memory_is_refused_by_the_memory_service(place: Place) -> None:
    """MEM-2: the memory service knows the session's user from the key it verified itself."""
    session = new_session()
    results(place.ask(["create_event", place.memory, "alice", "alice's own"], session=session))
    [answer] = place.ask(["list_events", place.memory, "alice"], session=new_session(), user="bob")
    assert (answer["error"], answer["status"]) == ("AccessDeniedException", 403), answer


def test_an_attempt_on_another_users_memory_is_told_to_operators(place: Place) -> None:
    """MEM-5: refused by one service, kept as an alert by another."""
    session = new_session()
    place.ask(["list_events", place.memory, "alice"], session=session, user="mallory")

    def told() -> bool:
        status, answer = place.signed("GET", "observability", "/alerts")
        assert status == 200, answer
        return any(
            session in json.dumps(each) and "mallory" in json.dumps(each) for each in json.loads(answer)["alerts"]
        )

    until(told)


def test_a_sessions_trace_has_steps_of_every_service(place: Place) -> None:
    """OBS-1: five services tell one story, in order, without a line in the agent."""
    session = new_session()
    results(
        place.ask(
            ["create_event", place.memory, "alice", "a fact"],
            ["converse", "hello"],
            ["api_key", "tools"],
            session=session,
        )
    )
    runtime_id = place.arn.rsplit("/", 1)[1]

    def told() -> bool:
        status, answer = place.signed("GET", "observability", f"/traces/{runtime_id}/{session}")
        assert status == 200, answer
        return all(
            step in answer.decode() for step in ("InvokeAgentRuntime", "CreateEvent", "GetResourceApiKey", "hello")
        )

    until(told)


def until(true: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_answers_stream_through_the_relay(place: Place) -> None:
    [pieces] = results(place.ask(["converse_stream", "go"], session=new_session()))
    assert [text for text, _ in pieces] == [f"piece {number} " for number in range(PIECES)]
    times = [moment for _, moment in pieces]
    assert all(later - sooner > GAP / 2 for sooner, later in pairwise(times)), times


def test_use_of_a_session_is_counted_where_it_is_kept(place: Place) -> None:
    """OBS-3: the gateway service counts, over a port, in the observability service."""
    session = new_session()
    results(place.ask(["converse", "one"], ["converse", "two"], session=session))
    runtime_id = place.arn.rsplit("/", 1)[1]
    status, answer = place.signed("GET", "observability", f"/usage/{runtime_id}/{session}")
    assert status == 200
    assert json.loads(answer)["totals"]["calls"] == 2


def listener_token(place: Place, of: str, audience: str) -> dict[str, str]:
    """A statement like the runtime service's, made with the key of the service `of`."""
    credentials = Secrets(place.services.secrets / of, of).credentials(SystemClock())
    return {"x-agentkeep-session": credentials.token(audience, STATED)}


def test_an_agent_cannot_state_whose_listener_it_uses(place: Place) -> None:
    """IDN-2: even a true statement, come by somehow, is dropped where the session's connection comes in."""
    session = new_session()
    stolen = listener_token(place, "runtime", "observability") | {"content-type": "application/json"}
    span = {"traceId": "0" * 31 + "1", "spanId": "0" * 15 + "1", "name": "planted", "startTimeUnixNano": "1"}
    spans = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
    answers = place.ask(
        ["raw", "POST", "/v1/traces", stolen, spans],
        ["raw", "POST", "/memories/", stolen],
        ["raw", "POST", "/ports/keys/find", {"authorization": "Bearer x"}, '{"access_key_id": "AKIA"}'],
        session=session,
    )
    traces, memories, ports = results(answers)
    assert traces[0] == 200, traces  # as its own session's
    assert memories[0] == 403, memories  # unsigned
    assert ports[0] in (403, 404), ports
    own = SessionRef(place.arn.rsplit("/", 1)[1], session)
    assert "planted" in asyncio.run(span_names(place, own))
    assert asyncio.run(span_names(place, STATED)) == []


async def span_names(place: Place, session: SessionRef) -> list[str]:
    """What the observability service has kept of a session."""
    file = place.services.folder / "observability" / "spans.db"
    spans = SqliteSpanStore(file, ObservabilitySettings().span_limits, SystemClock())
    try:
        return [span.name for span in await spans.of_session(session)]
    finally:
        await spans.close()


def test_statements_are_the_runtime_services_and_for_one_service(place: Place) -> None:
    """At the internal listeners: the runtime service's statement is believed; made by another service, made for
    another, or presented at a public listener, it is not."""

    def post(url: str, headers: dict[str, str]) -> int:
        headers = headers | {"content-type": "application/json"}
        with urllib3.PoolManager(retries=False, timeout=10) as http:
            return int(http.request("POST", url + "/v1/traces", body=b'{"resourceSpans": []}', headers=headers).status)

    observability = place.services["observability"]
    true = listener_token(place, "runtime", "observability")
    assert post(observability.internal_url, true) == 200
    for forged in ("gateway", "memory", "identity", "observability"):
        assert post(observability.internal_url, listener_token(place, forged, "observability")) == 401
    assert post(observability.internal_url, listener_token(place, "runtime", "memory")) == 401
    call = Secrets(place.services.secrets / "runtime", "runtime").credentials(SystemClock()).token("observability")
    assert post(observability.internal_url, {"x-agentkeep-session": call}) == 401
    assert post(observability.url, true) in (403, 404)
    # An operator's key is refused on a session's listener; so it being accepted shows that the statement is not read.
    for_memory = listener_token(place, "runtime", "memory")
    assert place.signed("POST", "memory", "/memories/", b"{}", **for_memory)[0] == 200


def test_the_collectors_token_opens_telemetry_and_nothing_else(place: Place) -> None:
    token = (place.services.secrets / "collector" / "otlp-token").read_text()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    observability = place.services["observability"]
    with urllib3.PoolManager(retries=False, timeout=10) as http:

        def post(url: str, path: str) -> int:
            return int(http.request("POST", url + path, body=b'{"resourceSpans": []}', headers=headers).status)

        assert post(observability.internal_url, "/v1/traces") == 200
        assert post(observability.internal_url, "/ports/usage/record") == 401
        assert post(place.services["identity"].internal_url, "/ports/keys/find") == 401
        assert post(observability.url, "/v1/traces") in (403, 404)


@pytest.mark.parametrize("path", ["/ports", "/ports/keys/find", "/memories/", "/v1/traces", "/model/any/converse"])
def test_the_internal_listener_serves_nobody_else(place: Place, path: str) -> None:
    for plane in PLANES:
        url = place.services[plane].internal_url + path
        with urllib3.PoolManager(retries=False, timeout=10) as http:
            for headers in ({}, {"authorization": "Bearer x.y.z"}, {"x-agentkeep-session": "x.y.z"}):
                answer = http.request("POST", url, body=b"{}", headers=headers)
                assert answer.status == 401, (plane, path, headers, answer.data)
            # Nor an operator, whose key is good at the public listener.
            request = AWSRequest("POST", url, data=b"{}")
            SigV4Auth(place.credentials, "bedrock-agentcore", "us-east-1").add_auth(request)
            answer = http.request("POST", url, body=b"{}", headers=dict(request.headers.items()))
            assert answer.status == 401, (plane, path, answer.data)


def test_health_is_told_to_anybody(place: Place) -> None:
    for service in place.services.by_name.values():
        for internal in (True, False):
            assert service.get("/healthz", internal=internal) == (200, {"status": "Healthy"})
            assert service.get("/readyz", internal=internal) == (200, {"status": "Healthy"})


#: What fails while a service is away, and with which code (SDKs retry it); the others work on.
AWAY = {
    "memory": (["list_events", "MEMORY", "alice"], "ServiceUnavailableException"),
    "gateway": (["converse", "hello"], "ServiceUnavailableException"),
    "observability": (["converse", "hello"], "ServiceUnavailableException"),
}


@pytest.mark.parametrize("plane", AWAY)
def test_a_killed_service_is_missed_and_comes_back(place: Place, plane: str) -> None:
    """EXE-6: refused while it is away, in words SDKs understand; served again without restarting anything else."""
    session = new_session()
    step = [place.memory if part == "MEMORY" else part for part in AWAY[plane][0]]
    results(place.ask(step, session=session))
    service = place.services[plane]
    service.kill()
    [answer] = place.ask(step, session=session)
    assert answer.get("status") == 503, answer
    other = ["converse", "still here"] if plane == "memory" else ["list_events", place.memory, "alice"]
    results(place.ask(other, session=session))
    service.start()
    service.wait()
    results(place.ask(step, session=session))


def test_the_end_of_a_session_reaches_memory_though_it_was_away(place: Place) -> None:
    """MEM-4, EXE-6: told from one service to another, once that is back."""
    tags = {"agentkeep:events": "until-session-end"}
    control = place.client("bedrock-agentcore-control", "memory")
    name = f"forgets{uuid.uuid4().hex[:8]}"
    memory = control.create_memory(name=name, eventExpiryDuration=30, tags=tags)["memory"]["id"]
    data, session, user = place.client("bedrock-agentcore", "memory"), new_session(), f"user-{uuid.uuid4()}"
    where = {"memoryId": memory, "actorId": user, "sessionId": session}
    results(place.ask(["converse", "hello"], session=session, user=user))
    data.create_event(**where, eventTimestamp=int(time.time()), payload=[{"blob": "hello"}])
    service = place.services["memory"]
    service.kill()
    place.client("bedrock-agentcore", "runtime").stop_runtime_session(
        agentRuntimeArn=place.arn, runtimeSessionId=session
    )
    service.start()
    service.wait()
    until(lambda: data.list_events(**where)["events"] == [], 60)


def test_without_identity_nobody_new_is_believed(place: Place) -> None:
    session = new_session()
    results(place.ask(["converse", "hello"], session=session))
    service = place.services["identity"]
    service.kill()
    time.sleep(2.2)  # what the others knew of keys is forgotten
    for client, call in (
        ("bedrock-agentcore-control", lambda c: c.list_memories()),
        ("bedrock-agentcore", lambda c: c.list_events(memoryId=place.memory, actorId="alice", sessionId="s")),
    ):
        with pytest.raises(ClientError) as refused:
            call(place.client(client, "memory"))
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert place.services["memory"].get("/readyz") == (503, {"status": "NotReady", "missing": ["identity"]})
    assert place.services["memory"].get("/healthz")[0] == 200
    service.start()
    service.wait()
    place.services["memory"].wait()
    results(place.ask(["converse", "hello"], session=session))


def test_a_killed_store_comes_back(place: Place) -> None:
    """EXE-6: what was acknowledged is there, and no service needs to be started again."""
    session = new_session()
    results(place.ask(["create_event", place.memory, "alice", "before"], session=session))
    place.services.store.kill()
    place.services["memory"].wait("/readyz", 503)
    assert place.services["memory"].get("/readyz")[1]["missing"] == ["store"]
    place.services.store.start()
    for service in place.services.by_name.values():
        service.wait()
    [texts] = results(place.ask(["list_events", place.memory, "alice"], session=new_session()))
    assert "before" in texts


def test_a_killed_runtime_service_takes_its_sessions_along_and_comes_back(place: Place) -> None:
    """EXE-6: agents die with the service; the sessions' keys are revoked by the one that comes up."""
    session = new_session()
    results(place.ask(["converse", "hello"], session=session))
    service = place.services["runtime"]
    service.kill()
    service.start()
    service.wait()
    results(place.ask(["converse", "hello"], session=session))


def test_a_stopping_service_ends_its_streams(place: Place) -> None:
    """SIGTERM in the middle of a relayed stream: it is not ready, takes nothing new, and the stream is whole."""
    service = place.services["gateway"]
    session = new_session()
    results(place.ask(["converse", "warm"], session=session))
    with ThreadPoolExecutor() as pool:
        streaming = pool.submit(place.ask, ["converse_stream", "go"], session=session)
        time.sleep(GAP * 2.5)
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        service.wait("/readyz", 503)
        assert "stopping" in service.get("/readyz")[1]["missing"]
        [answer] = place.ask(["converse", "new"], session=new_session())
        assert answer["status"] == 503, answer
        [pieces] = results(streaming.result(30))
        assert service.process is not None
        assert service.process.wait(20) == 0
        stopped = time.monotonic() - began
    assert [text for text, _ in pieces] == [f"piece {number} " for number in range(PIECES)]
    assert stopped < 8, "it waits for the answers under way, not for its time limit"
    service.start()
    service.wait()


def test_a_revoked_operator_key_dies_in_five_seconds(place: Place) -> None:
    """IDN-2: whatever each service remembers of it."""
    master = FileMasterKey.load_or_create(Secrets(place.services.secrets / "identity", "identity").master_key)

    async def issue_or_revoke(key: str | None) -> Any:
        store = ValkeyKeyValueStore(place.services.store.whole_url)
        try:
            keys = AccessKeys(store, master, Deployment(), SystemClock(), IdentitySettings())
            return await (keys.issue_operator_key("leaver") if key is None else keys.revoke_operator_key(key))
        finally:
            await store.close()

    leaver = asyncio.run(issue_or_revoke(None))
    operator = {"accessKeyId": leaver.id, "secretAccessKey": leaver.secret}
    his = Place(place.services, operator, "").client("bedrock-agentcore-control", "memory")
    his.list_memories()
    asyncio.run(issue_or_revoke(leaver.id))
    revoked = time.monotonic()
    while (status := _status(his)) == 200:
        assert time.monotonic() - revoked < 5
        time.sleep(0.1)
    assert status == 403


def _status(client: Any) -> int:
    try:
        answer = client.list_memories()
    except ClientError as refused:
        answer = refused.response
    return int(answer["ResponseMetadata"]["HTTPStatusCode"])


def test_no_file_has_an_agents_variables(place: Place) -> None:
    """IDN-3: the store's, the services' data and logs; while the agent's sessions are started with them."""
    folder = place.services.folder
    assert place.arn
    assert leaking_files(folder, [VARIABLE]) == []
    assert leaking_files(folder, ["caller.zip"]) != [], "the search finds what is there"


def test_no_secret_in_any_log(place: Place) -> None:
    """After all of the above: kills, refusals and errors included."""
    secrets = [*secret_values(place.services.secrets), place.provider_key, place.operator["secretAccessKey"]]
    for service in place.services.by_name.values():
        assert not leaks(service.log.read_bytes(), secrets), service.name
        assert service.log.stat().st_size < 1_000_000
