"""Services with OpenSearch, as they run in containers: records and spans are kept there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from service_processes import Services, running_services

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, opensearch_url: str) -> Iterator[Services]:
    settings = {"AGENTKEEP_SEARCH_URL": opensearch_url, "AGENTKEEP_MEMORY_EMBEDDING": "none"}
    with running_services(tmp_path_factory.mktemp("services"), **settings) as running:
        yield running


def test_records_and_spans_are_kept_in_opensearch(services: Services, opensearch_url: str) -> None:
    """MEM-2, OBS-1."""
    operator = services.operator()
    keys = {"aws_access_key_id": operator["accessKeyId"], "aws_secret_access_key": operator["secretAccessKey"]}
    memory = {"endpoint_url": services["memory"].url, "region_name": "us-east-1", **keys}
    made = boto3.client("bedrock-agentcore-control", **memory).create_memory(name="kept", eventExpiryDuration=30)
    data, memory_id = boto3.client("bedrock-agentcore", **memory), made["memory"]["id"]
    written = data.batch_create_memory_records(
        memoryId=memory_id,
        records=[
            {
                "requestIdentifier": "r1",
                "namespaces": ["/facts/alice/"],
                "content": {"text": "Alice likes jasmine tea."},
                "timestamp": datetime.now(UTC),
            }
        ],
    )
    assert not written["failedRecords"], written
    found = data.retrieve_memory_records(
        memoryId=memory_id, namespace="/facts/alice/", searchCriteria={"searchQuery": "tea"}
    )
    assert [each["content"]["text"] for each in found["memoryRecordSummaries"]] == ["Alice likes jasmine tea."]
    assert post(services, operator, "observability", "/v1/traces") == 404  # the public listener takes no telemetry
    with urllib3.PoolManager(retries=False, timeout=10) as http:
        token = (services.secrets / "collector" / "otlp-token").read_text()
        answer = http.request(
            "POST",
            services["observability"].internal_url + "/v1/traces",
            body=json.dumps(SPANS).encode(),
            headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
        )
        assert answer.status == 200, answer.data
        deadline = time.monotonic() + 15
        while True:
            story = signed(services, operator, "observability", "GET", "/traces/agent-0123456789/session-1")
            if story[0] == 200 and b"planted" in story[1]:
                break
            assert time.monotonic() < deadline, story
            time.sleep(0.3)
        names = http.request("GET", f"{opensearch_url}/_cat/indices?h=index").data.decode().split()
    assert {"agentkeep-records", "agentkeep-spans"} <= {name.rstrip("-0123456789") for name in names} | set(names), (
        names
    )
    for plane in ("memory", "observability"):
        assert not list((services.folder / plane).glob("*.db"))


SPANS: dict[str, Any] = {
    "resourceSpans": [
        {
            "scopeSpans": [
                {
                    "spans": [
                        {
                            "traceId": "0" * 31 + "1",
                            "spanId": "0" * 15 + "1",
                            "name": "planted",
                            "startTimeUnixNano": str(time.time_ns()),
                            "endTimeUnixNano": str(time.time_ns()),
                            "attributes": [
                                {"key": "session.id", "value": {"stringValue": "session-1"}},
                                {"key": "aws.agent.id", "value": {"stringValue": "agent-0123456789"}},
                            ],
                        }
                    ]
                }
            ]
        }
    ]
}


def signed(services: Services, operator: dict[str, str], plane: str, method: str, path: str) -> tuple[int, bytes]:
    request = AWSRequest(method, services[plane].url + path)
    key = Credentials(operator["accessKeyId"], operator["secretAccessKey"])
    SigV4Auth(key, "bedrock-agentcore", "us-east-1").add_auth(request)
    with urllib3.PoolManager(retries=False, timeout=30) as http:
        answer = http.request(method, str(request.url), headers=dict(request.headers.items()))
    return answer.status, answer.data


def post(services: Services, operator: dict[str, str], plane: str, path: str) -> int:
    return signed(services, operator, plane, "POST", path)[0]
