"""Settings of the runtime plane. Times are seconds, sizes bytes."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentkeep.runtime.environments.warm_pool_sizes import pool_size

__all__ = ["RuntimeSettings"]

_GB = 1 << 30
_MB = 1 << 20


class RuntimeSettings(BaseSettings):
    """`AGENTKEEP_RUNTIME_*`. The package index is read from uv's or pip's own variables, so that a machine set up for
    either needs nothing more."""

    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_RUNTIME_", populate_by_name=True, extra="ignore")

    # Sessions.
    start_timeout: float = Field(120, gt=0, description="An agent that does not answer /ping by then has failed.")
    stop_grace: float = Field(5, ge=0, description="Between asking an environment to end and killing it.")
    connect_timeout: float = Field(10, gt=0, description="For a connection to a running agent.")
    reap_interval: float = Field(5, gt=0, description="How often sessions are checked against their time limits.")
    ping_interval: float = Field(30, gt=0, description="How often an idle session is asked whether it is busy.")
    ping_timeout: float = Field(5, gt=0, description="For the answer to a ping.")
    ping_failures: int = Field(3, ge=1, description="So many unanswered pings in a row end a session.")
    lease: float = Field(
        8,
        gt=0,
        description="A replica silent for this long is dead to the others, who take over what it had. (One that ended "
        "on the same data volume is noticed at once.)",
    )
    replica_host: str = Field(
        "",
        description="The host at which other replicas of the runtime service reach this one; empty: found out by "
        "itself. Between replicas both listeners must be open to each other.",
    )
    max_sessions: int = Field(500, ge=1, description="Sessions alive at once on this replica; more are refused (402).")
    sessions_per_user: int = Field(
        0,
        ge=0,
        le=1000,
        description="Sessions of one user alive at once, on all replicas together; more are refused (402). 0: as many "
        "as they like.",
    )
    starts_at_once: int = Field(32, ge=1, description="Environments this replica makes at one time.")
    starts_waiting: int = Field(
        300, ge=0, description="Sessions that wait for their start besides; more are refused (429), and clients retry."
    )
    start_patience: float = Field(
        45, gt=0, description="A session that waits for its start for so long is refused (429)."
    )
    invocations: int = Field(
        5000, ge=1, description="Invocations under way at once on this replica; more are refused (429)."
    )
    invocations_of_session: int = Field(256, ge=1, description="Of them in one session; more are refused (429).")
    session_record_retention: float = Field(30 * 86_400, gt=0, description="How long an ended session's user is known.")
    workload_token_reuse: float = Field(300, ge=0, description="How long turns share one workload access token.")

    # Warm pools: environments started ahead, of each endpoint's version, by each replica.
    warm_pool: str = Field(
        "0",
        description="Environments that wait for each endpoint's next sessions: a number, `auto` (follows demand, up to "
        "10) or `auto:N` (up to N). A tag `agentkeep:warm-pool` on a runtime or an endpoint says otherwise. They "
        "count as sessions, and give way to them.",
    )
    warm_pool_max_age: float = Field(3600, gt=0, description="One that has waited for so long is replaced.")
    warm_pool_idle: float = Field(
        600, gt=0, description="A pool that follows demand is empty when no session has begun for so long."
    )
    warm_pool_starts: int = Field(2, ge=1, description="Environments started ahead at one time.")

    # Limits of one session.
    session_memory: int = Field(_GB, ge=64 * _MB, description="Of one session; an agent beyond it is killed.")
    session_processes: int = Field(128, ge=8, description="Processes and threads of one session.")
    session_open_files: int = Field(1024, ge=64, description="Of each process.")
    session_cpus: float = Field(2.0, gt=0, description="Processors one session may keep busy.")
    session_commands: int = Field(8, ge=1, description="Commands at once in one session (InvokeAgentRuntimeCommand).")
    session_disk: int = Field(512 * _MB, ge=_MB, description="Written by one session, in /tmp and the like.")

    # Drivers.
    process: bool = Field(
        True,
        description="Agents given as code run in sandboxes of this machine. Off: they are refused, and container "
        "images only are run. (A service in a container cannot make sandboxes.)",
    )
    docker: bool = Field(
        False,
        description="Agents given as container images run in this machine's Docker engine; needs root. Off: they are "
        "refused, and code bundles only are run.",
    )

    # Egress.
    egress_rules: Path | None = Field(
        None,
        description="A file of rules: which agents may reach which hosts outside, over TLS, by the proxy at the "
        "session endpoint (docs/development/egress.md). None: sessions reach nothing but their endpoint.",
    )
    egress_connections_of_session: int = Field(
        64, ge=1, le=200, description="To hosts outside, of one session at once."
    )
    egress_connections: int = Field(2000, ge=1, description="Of all sessions of this replica at once.")
    egress_connect_timeout: float = Field(10, gt=0, description="To find a host's addresses and connect to one.")
    egress_idle: float = Field(300, gt=0, description="A connection on which nothing passes for so long is ended.")
    egress_life: float = Field(3600, gt=0, description="And any one after so long.")

    # Code bundles.
    bundle_limit: int = Field(250 * _MB, ge=1, description="Of the zip file.")
    unpacked_limit: int = Field(750 * _MB, ge=1, description="Of what the zip holds.")
    python_substitution: bool = Field(
        True,
        description="Accept bundles for another Python 3 than the platform's, if they compile on it and hold no "
        "extension modules built for another.",
    )
    install_timeout: float = Field(600, gt=0, description="For installing a bundle's requirements.")

    # Logs.
    log_limit: int = Field(10 * _MB, ge=4096, description="Kept of one session's output: the newest.")
    log_retention: float = Field(30 * 86_400, gt=0, description="Logs nobody has written to for so long are removed.")

    # What agents are told.
    public_url: str = Field("http://127.0.0.1:4780", description="Where clients reach the platform.")
    oauth2_callback_url: str | None = Field(None, description="Default of the OAuth2CallbackUrl header agents receive.")
    observability: bool = Field(True, description="Agents' telemetry is exported to the session endpoint.")

    # The package index for requirements, by the names of uv and pip.
    default_index: str | None = Field(
        None,
        description="Where packages come from; also read from uv's and pip's own variables, as are the following.",
        validation_alias=AliasChoices(
            "default_index", "AGENTKEEP_RUNTIME_DEFAULT_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"
        ),
    )
    extra_index: str | None = Field(
        None,
        description="Further indexes, separated by spaces.",
        validation_alias=AliasChoices(
            "extra_index", "AGENTKEEP_RUNTIME_EXTRA_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"
        ),
    )
    find_links: str | None = Field(
        None,
        description="Folders or pages with wheels.",
        validation_alias=AliasChoices("find_links", "AGENTKEEP_RUNTIME_FIND_LINKS", "UV_FIND_LINKS", "PIP_FIND_LINKS"),
    )
    no_index: bool = Field(
        False,
        validation_alias=AliasChoices("no_index", "AGENTKEEP_RUNTIME_NO_INDEX", "UV_NO_INDEX", "PIP_NO_INDEX"),
        description="Packages come from find-links only.",
    )
    certificates: str | None = Field(
        None,
        description="File of certificate authorities to trust.",
        validation_alias=AliasChoices("certificates", "AGENTKEEP_RUNTIME_CERTIFICATES", "SSL_CERT_FILE", "PIP_CERT"),
    )
    https_proxy: str | None = Field(
        None,
        description="Proxy for fetching packages.",
        validation_alias=AliasChoices("https_proxy", "AGENTKEEP_RUNTIME_HTTPS_PROXY", "HTTPS_PROXY"),
    )
    no_proxy: str | None = Field(
        None,
        description="Hosts reached without it.",
        validation_alias=AliasChoices("no_proxy", "AGENTKEEP_RUNTIME_NO_PROXY", "NO_PROXY"),
    )

    @field_validator("warm_pool")
    @classmethod
    def _is_pool_size(cls, value: str) -> str:
        pool_size(value)
        return value

    @model_validator(mode="after")
    def _runs_something(self) -> RuntimeSettings:
        if not self.process and not self.docker:
            raise ValueError("AGENTKEEP_RUNTIME_PROCESS and AGENTKEEP_RUNTIME_DOCKER must not both be off")
        return self
