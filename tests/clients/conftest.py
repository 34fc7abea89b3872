"""The memory plane behind the real front, and an environment that points unmodified clients there."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_service import REGION, MemoryService, memory_service

from agentkeep.embedded.valkey import EmbeddedValkey


@pytest.fixture(scope="session")  # clients keep the first credentials they find
def service(valkey: EmbeddedValkey) -> Iterator[MemoryService]:
    with memory_service(valkey.url) as service:
        yield service


@pytest.fixture
def environment(service: MemoryService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variables that point clients here; nothing of this machine's own."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": service.credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": service.credentials.secret_key,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL_BEDROCK_AGENTCORE": service.url,
        "AWS_ENDPOINT_URL_BEDROCK_AGENTCORE_CONTROL": service.url,
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def data(service: MemoryService) -> Any:
    return service.client("bedrock-agentcore")


@pytest.fixture
def memory(service: MemoryService) -> Iterator[str]:
    control = service.client("bedrock-agentcore-control")
    created = control.create_memory(name=f"m{uuid.uuid4().hex}", eventExpiryDuration=7)["memory"]
    control.get_waiter("memory_created").wait(memoryId=created["id"])
    yield created["id"]
    control.delete_memory(memoryId=created["id"])
