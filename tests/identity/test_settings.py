"""Settings are checked at start."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from agentkeep.identity.settings import IdentitySettings


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTKEEP_IDENTITY_TRUSTED_ISSUERS", '["https://idp/.well-known/openid-configuration"]')
    monkeypatch.setenv("AGENTKEEP_IDENTITY_KEY_CACHE", "2")
    settings = IdentitySettings()
    assert settings.trusted_issuers == ("https://idp/.well-known/openid-configuration",)
    assert settings.key_cache == 2


@pytest.mark.parametrize(
    "values",
    [
        {"trusted_issuers": ["http://idp.example.com/.well-known/openid-configuration"]},
        {"trusted_issuers": ["idp"]},
        {"session_key_life": 1},
        {"key_cache": 3600},
        {"clock_skew": 3600},
    ],
)
def test_unsafe_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        IdentitySettings(**values)  # type: ignore[arg-type]
