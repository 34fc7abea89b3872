"""MEM-1: which embedding model there is, by settings."""

import pytest
from pydantic import ValidationError

from agentkeep.memory.settings import MemorySettings
from agentkeep.storage.embedding_minilm import MiniLmEmbedder


async def test_by_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    local = MemorySettings().embedder()
    assert isinstance(local, MiniLmEmbedder)
    await local.close()
    assert MemorySettings(embedding="none").embedder() is None
    for name, value in {
        "": "openai",
        "_MODEL": "small",
        "_DIMENSIONS": "8",
        "_URL": "https://host/v1",
        "_KEY": "sk-secret",
    }.items():
        monkeypatch.setenv(f"AGENTKEEP_MEMORY_EMBEDDING{name}", value)
    settings = MemorySettings()
    assert "sk-secret" not in repr(settings)
    remote = settings.embedder()
    assert remote is not None
    assert (remote.name, remote.dimensions) == ("openai/small", 8)
    await remote.close()
    monkeypatch.setenv("AGENTKEEP_MEMORY_EMBEDDING", "bedrock")
    monkeypatch.setenv("AGENTKEEP_MEMORY_EMBEDDING_REGION", "eu-west-1")
    remote = MemorySettings().embedder()
    assert remote is not None
    assert (remote.name, remote.dimensions) == ("bedrock/small", 8)
    await remote.close()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"embedding": "openai", "embedding_model": "m"}, "EMBEDDING_DIMENSIONS, AGENTKEEP_MEMORY_EMBEDDING_URL"),
        ({"embedding": "bedrock", "embedding_dimensions": 3}, "needs AGENTKEEP_MEMORY_EMBEDDING_MODEL"),
        ({"embedding_url": "host/v1"}, "must begin with https"),
        ({"embedding": "else"}, "'minilm', 'bedrock', 'openai' or 'none'"),
    ],
)
def test_says_what_is_missing(given: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        MemorySettings.model_validate(given)
