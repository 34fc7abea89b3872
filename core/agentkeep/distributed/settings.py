"""Settings of a service; those of its plane are the plane's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import AliasChoices, Field, FilePath, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentkeep.core.errors import AgentkeepError
from agentkeep.service.ownership import PLANES

__all__ = ["ServiceSettings", "SettingsInvalid", "load"]

S = TypeVar("S", bound=BaseSettings)


class SettingsInvalid(AgentkeepError):
    """One line for each setting that cannot be used: its variable, what is wrong, what to do."""


class ServiceSettings(BaseSettings):
    """`AGENTKEEP_*`. Secrets are no settings: they are files in the folder `AGENTKEEP_SECRETS`."""

    model_config = SettingsConfigDict(
        env_prefix="AGENTKEEP_",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    store_url: SecretStr = Field(
        SecretStr("redis://valkey:6379/0"),
        description="Valkey or Redis: redis://, rediss:// or unix://. The password is best left to the secrets folder.",
    )
    search_url: str | None = Field(
        None, description="OpenSearch, for long-term memory and spans; none: SQLite files in the service's data folder."
    )
    search_user: str = Field(
        "", description="OpenSearch's user, whose password is `search-password` in the secrets folder; none: no login."
    )
    search_certificates: FilePath | None = Field(
        None,
        description="A file of the authorities that OpenSearch's certificates are checked against (https); none: those "
        "of the machine.",
    )
    search_shards: int = Field(
        1, ge=1, description="Shards of OpenSearch's indexes, for when they are made: a user's records are on one."
    )
    secrets: Path = Field(
        Path("/run/secrets/agentkeep"), description="This service's secrets, as `agentkeep.service secrets` made them."
    )
    service_host: str = Field("0.0.0.0", description="The address both listeners are bound to.")  # noqa: S104
    service_port: int = Field(8080, ge=0, le=65_535, description="The public listener: operations and mounts.")
    service_internal_port: int = Field(
        8081, ge=0, le=65_535, description="The internal listener: ports, sessions' requests. Not for the edge."
    )
    service_urls: str = Field(
        "http://{service}:8081",
        description="The other services' internal listeners: one URL with {service} in it, or name=url pairs separated "
        "by commas.",
    )
    service_data: Path = Field(
        Path("/var/lib/agentkeep"), description="What the service keeps itself: agents' code and logs, SQLite files."
    )
    service_stop_timeout: float = Field(
        20, gt=0, description="Seconds for which answers under way may go on after SIGTERM."
    )
    public_url: str = Field("http://127.0.0.1:4780", description="Where clients reach the edge.")
    region: str = Field(
        "us-east-1", pattern=r"^[a-z]{2}(-[a-z]+)+-\d$", description="The region in every ARN made here."
    )
    account: str = Field("000000000000", pattern=r"^\d{12}$", description="The account in every ARN made here.")
    operator_acts_for_users: bool = Field(
        False,
        description="Whether the key that `agentkeep.service operator-key` prints acts for users: reads and writes "
        "their memory, names them in invocations. Each use is on record (`agentkeep audit`).",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Of the service's own log.")
    otlp_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint"),
        description="Where the service's own spans go, e.g. a Collector; none: nowhere.",
    )

    @field_validator("store_url")
    @classmethod
    def _is_store(cls, url: SecretStr) -> SecretStr:
        if urlsplit(url.get_secret_value()).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("must begin with redis://, rediss:// or unix://, e.g. redis://valkey:6379/0")
        return url

    @field_validator("search_url", "public_url", "otlp_endpoint")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is not None and not _http(url):
            raise ValueError("must be an http:// or https:// URL with a host")
        return url

    @field_validator("service_urls")
    @classmethod
    def _names_services(cls, text: str) -> str:
        _urls(text)
        return text

    @property
    def urls(self) -> Mapping[str, str]:
        return _urls(self.service_urls)

    def store_url_with(self, password: str | None) -> str:
        """The store's URL; `password` is put in where the URL has none."""
        url = self.store_url.get_secret_value()
        parts = urlsplit(url)
        if password is None or parts.password is not None or parts.scheme == "unix":
            return url
        user = f"{parts.username}:" if parts.username else ":"
        return urlunsplit(parts._replace(netloc=f"{user}{quote(password, safe='')}@{parts.netloc.rpartition('@')[2]}"))


def _http(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _urls(text: str) -> dict[str, str]:
    if "=" in text and "{service}" not in text:
        found = dict(part.strip().split("=", 1) for part in text.split(",") if "=" in part)
    else:
        found = {plane: text.replace("{service}", plane) for plane in PLANES}
    missing = [plane for plane in PLANES if plane not in found]
    if missing or ("{service}" not in text and "=" not in text):
        raise ValueError("must have {service} in it, or name all five services, e.g. identity=http://identity:8081")
    for name, url in found.items():
        if not _http(url):
            raise ValueError(f"must give {name} an http:// or https:// URL with a host")
    return found


def load(settings: type[S]) -> S:
    """`settings` from the environment. Raises SettingsInvalid."""
    try:
        return settings()
    except ValidationError as error:
        prefix = settings.model_config.get("env_prefix", "")
        raise SettingsInvalid(
            "\n".join(
                f"{_variable(prefix, each['loc'])}: {each['msg'].removeprefix('Value error, ')}. "
                f"Set it right or leave it out (docs/settings.md)"
                for each in error.errors(include_input=False, include_url=False, include_context=False)
            )
        ) from None


def _variable(prefix: str, place: tuple[int | str, ...]) -> str:
    """Of a field; fields with names of other tools are found under those."""
    name = str(place[0]) if place else "?"
    return name if name.isupper() else f"{prefix}{name.upper()}"
