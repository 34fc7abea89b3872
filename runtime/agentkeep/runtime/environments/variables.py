"""The environment variables of a session: what the platform says, what the deployer may say, what he may not.

Sources: what a live AgentCore container sees, the SDK's and the OpenTelemetry distribution's variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from agentkeep.core.identifiers import Deployment

__all__ = ["CREDENTIALS_PATH", "SESSION_ENDPOINT", "is_reserved", "platform_variables", "session_environment"]

#: ECS's credentials address: the AWS SDKs' container-credentials provider trusts it over plain HTTP.
SESSION_ENDPOINT: Final = "http://169.254.170.2"
CREDENTIALS_PATH: Final = "/credentials"

#: What would lead an agent past the session endpoint, or give it another identity. By exact name or as a prefix.
_RESERVED: Final = frozenset(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE"}
    | {"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_BEARER_TOKEN_BEDROCK", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"}
    | {"AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_CREDENTIAL_EXPIRATION"}
)
_RESERVED_PREFIXES: Final = ("AWS_ENDPOINT_URL", "AWS_CONTAINER_", "OTEL_EXPORTER_OTLP_")

#: Sensible, and the deployer's to change.
_DEFAULTS: Final = {"PYTHONUNBUFFERED": "1"}


def platform_variables(
    deployment: Deployment, public_url: str, runtime_id: str, endpoint: str, observability: bool, egress: bool = False
) -> dict[str, str]:
    """What the platform sets, and nobody else. `endpoint`: the qualifier under which the session was opened. `egress`:
    whether there are hosts outside that the agent may reach."""
    arn = deployment.arn(f"runtime/{runtime_id}")
    log_group = f"/aws/bedrock-agentcore/runtimes/{runtime_id}-{endpoint}"
    service = f"{runtime_id.rsplit('-', 1)[0]}.{endpoint}"
    variables = {
        "AWS_REGION": deployment.region,
        "AWS_DEFAULT_REGION": deployment.region,
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": CREDENTIALS_PATH,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL_BEDROCK_AGENTCORE": SESSION_ENDPOINT,
        "AWS_ENDPOINT_URL_BEDROCK_AGENTCORE_CONTROL": SESSION_ENDPOINT,
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": SESSION_ENDPOINT,
        "AWS_ENDPOINT_URL_BEDROCK": SESSION_ENDPOINT,
        # The SDK binds to all interfaces (of its own network namespace) only where it believes in a container, and
        # then takes its identity from the platform's headers, never from a local file.
        "DOCKER_CONTAINER": "1",
        "AGENTCORE_RUNTIME_URL": f"{public_url.rstrip('/')}/runtimes/{quote(arn, safe='')}/invocations/",
    }
    if observability:
        variables |= {
            "AGENT_OBSERVABILITY_ENABLED": "true",
            "OTEL_PYTHON_DISTRO": "aws_distro",
            "OTEL_PYTHON_CONFIGURATOR": "aws_configurator",
            "OTEL_EXPORTER_OTLP_ENDPOINT": SESSION_ENDPOINT,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "otlp",
            # The distribution's default, awsemf, sends nothing from a machine without CloudWatch.
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS": (
                f"x-aws-log-group={log_group},x-aws-log-stream=otel-rt-logs,x-aws-metric-namespace=bedrock-agentcore"
            ),
            "OTEL_RESOURCE_ATTRIBUTES": ",".join(
                (
                    f"service.name={service}",
                    "aws.service.type=gen_ai_agent",
                    f"aws.log.group.names={log_group}",
                    f"cloud.resource_id={arn}/runtime-endpoint/{endpoint}:{endpoint}",
                    "cloud.platform=aws_bedrock_agentcore",
                    f"cloud.region={deployment.region}",
                )
            ),
        }
    if egress:
        # In both cases, since each is all that some clients look at; with the port, or Python's own takes 443.
        proxied = {"https_proxy": f"{SESSION_ENDPOINT}:80", "no_proxy": "169.254.170.2,localhost,127.0.0.1"}
        variables |= proxied | {name.upper(): value for name, value in proxied.items()}
    return variables


def is_reserved(name: str) -> bool:
    """Whether a deployer may not set `name`."""
    return name in _RESERVED or name in _PLATFORM_NAMES or name.startswith(_RESERVED_PREFIXES)


def session_environment(platform: Mapping[str, str], user: Mapping[str, str], public_url: str) -> dict[str, str]:
    """The whole environment of a session. The platform's variables win. A deployer's that is a URL of this platform
    (a gateway's, say, as GetGateway tells it) leads to the same place by the one address a session has for it."""
    return {**_DEFAULTS, **{name: _from_inside(value, public_url) for name, value in user.items()}, **platform}


def _from_inside(value: str, public_url: str) -> str:
    outside = public_url.rstrip("/")
    return SESSION_ENDPOINT + value[len(outside) :] if value.startswith(f"{outside}/") else value


_PLATFORM_NAMES: Final = frozenset(platform_variables(Deployment(), "", "-", "", observability=True, egress=True))
