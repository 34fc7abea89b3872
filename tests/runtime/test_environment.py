"""The variables a session sees."""

from __future__ import annotations

import pytest

from agentkeep.runtime.environments.variables import SESSION_ENDPOINT, session_environment


@pytest.mark.parametrize("public_url", ["http://127.0.0.1:4780", "http://127.0.0.1:4780/"])
def test_a_url_of_the_platform_is_one_that_a_session_reaches(public_url: str) -> None:
    """A gateway's URL can be given to an agent as GetGateway tells it."""
    given = {
        "GATEWAY_URL": "http://127.0.0.1:4780/gateways/g-0123456789/mcp",
        "OTHER_PORT": "http://127.0.0.1:47801/mcp",
        "OTHER": "https://example.com/http://127.0.0.1:4780/",
        "TEXT": "see http://127.0.0.1:4780/x",
    }
    found = session_environment({"AWS_REGION": "us-east-1"}, {**given, "AWS_REGION": "elsewhere"}, public_url)
    assert found["GATEWAY_URL"] == f"{SESSION_ENDPOINT}/gateways/g-0123456789/mcp"
    assert {name: found[name] for name in ("OTHER_PORT", "OTHER", "TEXT")} == {
        name: given[name] for name in ("OTHER_PORT", "OTHER", "TEXT")
    }
    assert found["AWS_REGION"] == "us-east-1"
