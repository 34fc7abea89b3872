"""What a runtime's settings must satisfy beyond the service model, and what is added to them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentkeep.core.errors import FieldError, ValidationException
from agentkeep.core.identifiers import Deployment
from agentkeep.runtime.environments.variables import is_reserved, platform_variables
from agentkeep.runtime.environments.warm_up import WarmUp
from agentkeep.runtime.invocations.headers import why_not_forwardable

__all__ = ["DEFAULT_IDLE", "DEFAULT_LIFETIME", "Settings", "check_settings", "invalid"]

DEFAULT_IDLE: Final = 900
DEFAULT_LIFETIME: Final = 28_800
ENVIRONMENT_LIMIT: Final = 4096
_MIB: Final = 1 << 20
PORTS: Final = {"HTTP": 8080, "AGUI": 8080, "MCP": 8000, "A2A": 9000}
PATHS: Final = {"HTTP": "/invocations", "AGUI": "/invocations", "MCP": "/mcp", "A2A": "/"}

_PATH: Final = re.compile(r"/[A-Za-z0-9\-._~/%]{0,2047}")

#: Members that change how a session runs and that this deployment cannot honour. Ignoring them would be a lie; the
#: rest (network mode, platform version, metadata service, allowed ports) is stored and echoed.
_UNSUPPORTED: Final = {
    "capacityProviderConfiguration": "capacity providers are AWS infrastructure",
}
_FILE_SYSTEMS: Final = {
    "s3FilesAccessPoint": "S3 Files is AWS infrastructure",
    "efsAccessPoint": "EFS is AWS infrastructure",
    "capacityProviderVolume": "capacity providers are AWS infrastructure",
}
_MOUNT_PATH: Final = re.compile(r"/mnt/(?!\.{1,2}/?$)[a-zA-Z0-9._-]{1,195}/?")


@dataclass(frozen=True)
class Settings:
    """A version's settings, as the platform acts on them (from the stored document)."""

    protocol: str
    port: int
    path: str
    idle: float
    lifetime: float
    authorizer: Mapping[str, Any] | None
    forwarded_headers: frozenset[str]  # lower case
    entry_point: tuple[str, ...]
    role_arn: str
    storage: tuple[str, ...]  # where each session has a folder of its own
    warm_up: WarmUp | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Settings:
        protocol = document.get("protocolConfiguration", {})
        name = protocol.get("serverProtocol", "HTTP")
        lifecycle = document["lifecycleConfiguration"]
        code = document["agentRuntimeArtifact"].get("codeConfiguration", {})
        allowed = document.get("requestHeaderConfiguration", {}).get("requestHeaderAllowlist", ())
        port = protocol.get("port", PORTS[name])
        return cls(
            protocol=name,
            port=port,
            path=protocol.get("path", PATHS[name]),
            idle=lifecycle["idleRuntimeSessionTimeout"],
            lifetime=lifecycle["maxLifetime"],
            authorizer=document.get("authorizerConfiguration", {}).get("customJWTAuthorizer"),
            forwarded_headers=frozenset(header.lower() for header in allowed),
            entry_point=tuple(code.get("entryPoint", ())),
            role_arn=document["roleArn"],
            storage=tuple(
                system["sessionStorage"]["mountPath"].rstrip("/")
                for system in document.get("filesystemConfigurations", ())
                if "sessionStorage" in system  # one of those stored before others were refused has none
            ),
            warm_up=WarmUp.of(document.get("hooksConfiguration", {}), port),
        )


def invalid(*fields: FieldError) -> ValidationException:
    """All failing fields at once, worded as AWS words its own."""
    count = len(fields)
    text = "; ".join(f"Value at '{field.name}' failed to satisfy constraint: {field.message}" for field in fields)
    return ValidationException(f"{count} validation error{'s' if count > 1 else ''} detected: {text}", fields=fields)


def check_settings(
    request: Mapping[str, Any],
    deployment: Deployment,
    public_url: str,
    *,
    images: bool,
    bundles: bool = True,
    memory: int = 1 << 30,
) -> dict[str, Any]:
    """The settings of a new version: the request's members with defaults filled in. `images`, `bundles`: whether this
    deployment runs container images, and code; `memory`: bytes that a session may use.

    Raises ValidationException naming every member at fault.
    """
    document = dict(request)
    document.setdefault("networkConfiguration", {"networkMode": "PUBLIC"})
    lifecycle, faults = _lifecycle(document.get("lifecycleConfiguration", {}))
    document["lifecycleConfiguration"] = lifecycle
    faults += _artifact(document["agentRuntimeArtifact"], images, bundles)
    faults += _headers(document)
    faults += _environment(document.get("environmentVariables", {}), deployment, public_url)
    faults += _protocol(document.get("protocolConfiguration", {}))
    faults += _storage(document.get("filesystemConfigurations", ()))
    faults += _hooks(document)
    faults += _ports(document.get("allowedPorts", ()))
    faults += _resources(document.get("resourceConfigurations", ()), memory)
    faults += [FieldError(name, f"not supported here: {why}") for name, why in _UNSUPPORTED.items() if name in document]
    if faults:
        raise invalid(*faults)
    return document


def _artifact(artifact: Mapping[str, Any], images: bool, bundles: bool) -> list[FieldError]:
    where = "agentRuntimeArtifact"
    if "containerConfiguration" in artifact:
        if images:
            return []
        return [
            FieldError(
                f"{where}.containerConfiguration",
                "container images need the docker driver, which this deployment does not have; deploy the code as a "
                "bundle (codeConfiguration), or have the operator set AGENTKEEP_RUNTIME_DOCKER=true",
            )
        ]
    if not bundles:
        return [
            FieldError(
                f"{where}.codeConfiguration",
                "code bundles need the process driver, which this deployment does not have; give a container image "
                "(containerConfiguration)",
            )
        ]
    code = artifact["codeConfiguration"]
    faults = []
    if "s3" not in code["code"]:
        faults.append(FieldError(f"{where}.codeConfiguration.code", "the bundle's place (s3) is missing"))
    if not code["runtime"].startswith("PYTHON_"):
        faults.append(FieldError(f"{where}.codeConfiguration.runtime", "only Python bundles run here"))
    main = code["entryPoint"][-1]
    if not main.endswith(".py") or main.startswith("/") or "\\" in main or ".." in main.split("/"):
        faults.append(
            FieldError(f"{where}.codeConfiguration.entryPoint", "its last part must be a .py file inside the bundle")
        )
    if len(code["entryPoint"]) == 2 and code["entryPoint"][0] != "opentelemetry-instrument":
        faults.append(
            FieldError(
                f"{where}.codeConfiguration.entryPoint", "of two parts the first must be opentelemetry-instrument"
            )
        )
    return faults


def _lifecycle(given: Mapping[str, int]) -> tuple[dict[str, int], list[FieldError]]:
    lifetime = given.get("maxLifetime", DEFAULT_LIFETIME)
    idle = given.get("idleRuntimeSessionTimeout", min(DEFAULT_IDLE, lifetime))
    faults = []
    if idle > lifetime:
        faults.append(
            FieldError(
                "lifecycleConfiguration.idleRuntimeSessionTimeout",
                f"must not be greater than maxLifetime ({idle} > {lifetime})",
            )
        )
    for name, value in (("idleRuntimeSessionTimeout", idle), ("maxLifetime", lifetime)):
        if value > DEFAULT_LIFETIME:
            faults.append(
                FieldError(f"lifecycleConfiguration.{name}", f"must be between 60 and {DEFAULT_LIFETIME} seconds")
            )
    return {"idleRuntimeSessionTimeout": idle, "maxLifetime": lifetime}, faults


def _headers(document: Mapping[str, Any]) -> list[FieldError]:
    allowed: Sequence[str] = document.get("requestHeaderConfiguration", {}).get("requestHeaderAllowlist", ())
    has_authorizer = "customJWTAuthorizer" in document.get("authorizerConfiguration", {})
    faults = []
    seen: set[str] = set()
    for index, name in enumerate(allowed, 1):
        where = f"requestHeaderConfiguration.requestHeaderAllowlist.{index}.member"
        if name.lower() in seen:
            faults.append(FieldError(where, f"{name} is there more than once (case does not matter)"))
        seen.add(name.lower())
        if reason := why_not_forwardable(name, has_authorizer):
            faults.append(FieldError(where, reason))
    return faults


def _environment(variables: Mapping[str, str], deployment: Deployment, public_url: str) -> list[FieldError]:
    faults = []
    own = platform_variables(deployment, public_url, "-", "DEFAULT", observability=True)
    for name, value in variables.items():
        where = f"environmentVariables.{name}"
        if "=" in name or "\0" in name or "\0" in value:
            faults.append(FieldError(where, "a name holds no '=', and neither name nor value a NUL character"))
        elif is_reserved(name) and own.get(name) != value:
            faults.append(FieldError(where, "the platform sets this variable; leave it out"))
    size = sum(len(name.encode()) + len(value.encode()) for name, value in variables.items())
    if size > ENVIRONMENT_LIMIT:
        faults.append(
            FieldError("environmentVariables", f"names and values together take at most {ENVIRONMENT_LIMIT} bytes")
        )
    return faults


def _protocol(protocol: Mapping[str, Any]) -> list[FieldError]:
    faults = []
    if protocol.get("port") == 8443:
        faults.append(FieldError("protocolConfiguration.port", "8443 is taken"))
    # The model says so too; but this goes into the heads of requests as it is.
    if _PATH.fullmatch(protocol.get("path", "/")) is None:
        faults.append(
            FieldError("protocolConfiguration.path", "begins with / and has up to 2048 letters, digits and - . _ ~ / %")
        )
    return faults


def _hooks(document: Mapping[str, Any]) -> list[FieldError]:
    settings = Settings.of(document)
    hook = settings.warm_up
    where = "hooksConfiguration.build.warmup.action.httpPost"
    if hook is None:
        return []
    if re.fullmatch(r"/[A-Za-z0-9._~/-]{0,31}", hook.path) is None:
        return [FieldError(f"{where}.path", "begins with / and has up to 32 letters, digits and . _ ~ / -")]
    if hook.port == settings.port and hook.path in (settings.path, "/ping", "/ws"):
        return [FieldError(f"{where}.path", f"the agent serves {hook.path} for the platform; give the hook its own")]
    return []


def _storage(systems: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    faults = []
    taken: set[str] = set()
    for index, system in enumerate(systems, 1):
        where = f"filesystemConfigurations.{index}.member"
        faults += [
            FieldError(f"{where}.{kind}", f"not supported here: {why}; a session may have sessionStorage of its own")
            for kind, why in _FILE_SYSTEMS.items()
            if kind in system
        ]
        if "sessionStorage" not in system:
            continue
        path = system["sessionStorage"]["mountPath"]
        if _MOUNT_PATH.fullmatch(path) is None:
            faults.append(
                FieldError(
                    f"{where}.sessionStorage.mountPath",
                    "must be one folder below /mnt, such as /mnt/data: letters, digits, '.', '_' and '-'",
                )
            )
        elif path.rstrip("/") in taken:
            faults.append(FieldError(f"{where}.sessionStorage.mountPath", f"{path} is mounted twice"))
        taken.add(path.rstrip("/"))
    return faults


def _ports(allowed: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    """Rules of the model's documentation. No port but the agent's own is reachable here; a version that asks for more
    answers without a session endpoint's URL, as AgentCore does where there is no direct access."""
    faults = []
    taken: set[int] = set()
    for index, entry in enumerate(allowed, 1):
        where = f"allowedPorts.{index}.member"
        span = entry.get("portRange", {"from": entry.get("port", 0), "to": entry.get("port", -1)})
        ports = range(span["from"], span["to"] + 1)
        if ("port" in entry) == ("portRange" in entry):
            faults.append(FieldError(where, "must have either port or portRange"))
        elif not ports:
            faults.append(FieldError(f"{where}.portRange", "from must not be greater than to"))
        elif 8443 in ports:
            faults.append(FieldError(where, "8443 is taken"))
        elif not taken.isdisjoint(ports):
            faults.append(FieldError(where, "overlaps another entry"))
        taken.update(ports)
    return faults


def _resources(wanted: Sequence[Mapping[str, Any]], memory: int) -> list[FieldError]:
    return [
        FieldError(
            f"resourceConfigurations.{index}.member.minimumMemoryInMiB",
            f"must be between 1 and {memory // _MIB}, which is what a session has here (the operator's "
            "AGENTKEEP_RUNTIME_SESSION_MEMORY)",
        )
        for index, entry in enumerate(wanted, 1)
        if not 1 <= entry["minimumMemoryInMiB"] <= memory // _MIB
    ]
