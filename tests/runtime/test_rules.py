"""What a runtime's settings must satisfy beyond the service model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel

from agentkeep.core.errors import ValidationException
from agentkeep.runtime.agents.documents import ECHOED
from agentkeep.runtime.environments.variables import SESSION_ENDPOINT
from agentkeep.runtime.invocations.headers import why_not_forwardable
from agentkeep.runtime.pump import target


async def _refused(platform: Any, **settings: Any) -> ValidationException:
    with pytest.raises(ValidationException) as refused:
        await platform.call("create_agent_runtime", agentRuntimeName="x", **platform.definition(**settings))
    return refused.value


async def test_images_are_refused_with_the_reason(platform: Any) -> None:
    image = {"containerConfiguration": {"containerUri": "public.ecr.aws/a/b:1"}}
    refused = await _refused(platform, agentRuntimeArtifact=image)
    assert "docker driver" in refused.message
    assert "AGENTKEEP_RUNTIME_DOCKER=true" in refused.message
    assert refused.fields[0].name == "agentRuntimeArtifact.containerConfiguration"


@pytest.mark.parametrize(
    ("lifecycle", "expected"),
    [
        ({}, (900, 28_800)),
        ({"maxLifetime": 600}, (600, 600)),
        ({"idleRuntimeSessionTimeout": 60}, (60, 28_800)),
        ({"idleRuntimeSessionTimeout": 1000, "maxLifetime": 2000}, (1000, 2000)),
    ],
)
async def test_lifecycle_defaults(platform: Any, lifecycle: dict[str, int], expected: tuple[int, int]) -> None:
    runtime_id = await platform.create(lifecycleConfiguration=lifecycle)
    found = (await platform.call("get_agent_runtime", agentRuntimeId=runtime_id))["lifecycleConfiguration"]
    assert (found["idleRuntimeSessionTimeout"], found["maxLifetime"]) == expected


async def test_idle_may_not_exceed_lifetime(platform: Any) -> None:
    refused = await _refused(platform, lifecycleConfiguration={"idleRuntimeSessionTimeout": 700, "maxLifetime": 600})
    assert "700 > 600" in refused.message


@pytest.mark.parametrize(
    "header",
    ["Cookie", "content-type", "Sec-WebSocket-Key", "X-Amz-Date", "X-Amzn-Foo", "Authorization", "WorkloadAccessToken"],
)
async def test_restricted_headers_are_refused(platform: Any, header: str) -> None:
    refused = await _refused(platform, requestHeaderConfiguration={"requestHeaderAllowlist": ["X-Good", header]})
    assert [fault.name for fault in refused.fields] == ["requestHeaderConfiguration.requestHeaderAllowlist.2.member"]


async def test_header_names_are_unique_whatever_the_case(platform: Any) -> None:
    refused = await _refused(platform, requestHeaderConfiguration={"requestHeaderAllowlist": ["X-Good", "x-good"]})
    assert "more than once" in refused.message


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "http://elsewhere"},
        {"AWS_ENDPOINT_URL_S3": "http://elsewhere"},
        {"AWS_ACCESS_KEY_ID": "AKIA"},
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://elsewhere"},
        {"AWS_REGION": "eu-west-1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere"},
        {"DOCKER_CONTAINER": "0"},
        {"A=B": "1"},
        {"A": "x" * 4096},
    ],
)
async def test_variables_that_would_lead_round_the_platform(platform: Any, variables: dict[str, str]) -> None:
    """IDN-3, OBS-1. The deployer cannot give an agent another way out, or other credentials."""
    await _refused(platform, environmentVariables=variables)


async def test_a_variable_set_as_the_platform_sets_it_is_fine(platform: Any) -> None:
    await platform.create(environmentVariables={"AWS_REGION": "us-west-2", "MODE": "test"})
    turn = await platform.begin(await platform.create("other", environmentVariables={"MODE": "test"}), "s" * 40)
    turn.end()
    seen = platform.driver.agents[0].spec.environment
    assert seen["MODE"] == "test"
    assert seen["AWS_REGION"] == seen["AWS_DEFAULT_REGION"] == "us-west-2"
    assert seen["AWS_ENDPOINT_URL_BEDROCK_AGENTCORE"] == SESSION_ENDPOINT
    assert seen["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] == "/credentials"
    assert seen["OTEL_EXPORTER_OTLP_ENDPOINT"] == SESSION_ENDPOINT
    assert "/runtime-endpoint/DEFAULT:DEFAULT" in seen["OTEL_RESOURCE_ATTRIBUTES"]
    assert not any("SECRET" in name or "TOKEN" in name for name in seen)


async def test_every_fault_is_named_at_once(platform: Any) -> None:
    refused = await _refused(
        platform,
        lifecycleConfiguration={"idleRuntimeSessionTimeout": 700, "maxLifetime": 600},
        environmentVariables={"AWS_REGION": "x"},
        protocolConfiguration={"serverProtocol": "HTTP", "port": 8443},
    )
    assert len(refused.fields) == 3
    assert refused.message.startswith("3 validation errors detected")


async def test_an_authorizer_must_check_something(platform: Any) -> None:
    authorizer = {"customJWTAuthorizer": {"discoveryUrl": "https://idp.example/.well-known/openid-configuration"}}
    await _refused(platform, authorizerConfiguration=authorizer)


@pytest.mark.parametrize(
    ("systems", "complaint"),
    [
        ([{"sessionStorage": {"mountPath": "/mnt/.."}}], "one folder below /mnt"),
        ([{"sessionStorage": {"mountPath": "/mnt/./"}}], "one folder below /mnt"),
        ([{"sessionStorage": {"mountPath": "/mnt/a/b"}}], "one folder below /mnt"),
        ([{"sessionStorage": {"mountPath": "/mnt/a,rw"}}], "one folder below /mnt"),
        ([{"sessionStorage": {"mountPath": "/mnt/a\n"}}], "one folder below /mnt"),
        ([{"sessionStorage": {"mountPath": "/tmp/ab"}}], "one folder below /mnt"),
        ([{"sessionStorage": {"mountPath": "/mnt/a"}}, {"sessionStorage": {"mountPath": "/mnt/a/"}}], "twice"),
        ([{"efsAccessPoint": {"accessPointArn": "arn:x", "mountPath": "/mnt/a"}}], "not supported here: EFS"),
        ([{"s3FilesAccessPoint": {"accessPointArn": "arn:x", "mountPath": "/mnt/a"}}], "not supported here: S3 Files"),
    ],
)
async def test_storage_that_no_session_can_have(platform: Any, systems: list[Any], complaint: str) -> None:
    refused = await _refused(platform, filesystemConfigurations=systems)
    assert complaint in refused.message
    assert refused.fields[-1].name.startswith(f"filesystemConfigurations.{len(systems)}.member.")


async def test_session_storage_is_told_to_the_driver(platform: Any) -> None:
    systems = [{"sessionStorage": {"mountPath": "/mnt/data/"}}, {"sessionStorage": {"mountPath": "/mnt/my.cache-1"}}]
    await platform.create(filesystemConfigurations=systems)
    assert platform.driver.prepared[-1].storage == ("/mnt/data", "/mnt/my.cache-1")


async def test_what_is_not_acted_upon_is_stored_and_echoed(platform: Any) -> None:
    extra = {
        "metadataConfiguration": {"requireMMDSV2": True},
        "platformVersion": "V2",
        "allowedPorts": [{"port": 9000}],
        "hooksConfiguration": {"build": {"warmup": {"action": {"httpPost": {"path": "/warm"}}}}},
        "resourceConfigurations": [{"minimumMemoryInMiB": 512}],
    }
    runtime_id = await platform.create(**extra)
    found = await platform.call("get_agent_runtime", agentRuntimeId=runtime_id)
    assert {name: found[name] for name in extra} == extra


@pytest.mark.parametrize(
    ("ports", "complaint"),
    [
        ([{"port": 8443}], "taken"),
        ([{"portRange": {"from": 8400, "to": 8500}}], "taken"),
        ([{"portRange": {"from": 9001, "to": 9000}}], "greater"),
        ([{"port": 9000}, {"portRange": {"from": 8999, "to": 9001}}], "overlaps"),
        ([{}], "either"),
        ([{"port": 9000, "portRange": {"from": 9001, "to": 9002}}], "either"),
    ],
)
async def test_ports_that_say_nothing_sensible(platform: Any, ports: list[Any], complaint: str) -> None:
    assert complaint in str(await _refused(platform, allowedPorts=ports))


async def test_more_memory_than_a_session_has(platform: Any) -> None:
    """Refused rather than stored: the agent would be killed at what it was promised."""
    await platform.create(resourceConfigurations=[{"minimumMemoryInMiB": 1024}])
    for mebibytes in (0, 1025):
        refused = await _refused(platform, resourceConfigurations=[{"minimumMemoryInMiB": mebibytes}])
        assert "between 1 and 1024" in str(refused)


async def test_every_header_the_sdk_calls_restricted_is(platform: Any) -> None:
    """EXE-4: the list of the SDK's `RESTRICTED_HEADERS`; HTTP/2's own fields are no names for the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bedrock_agentcore.runtime.models import RESTRICTED_HEADERS
    names = {name.lower() for name in RESTRICTED_HEADERS if not name.startswith(":")}
    assert len(names) > 90
    assert [name for name in names if why_not_forwardable(name, has_authorizer=True) is None] == []


def _members(model: ServiceModel, shape: str) -> set[str]:
    return set(model.shape_for(shape).members)


def test_no_member_of_the_model_is_forgotten() -> None:
    """EXE-4: whatever the service adds to these is stored, echoed or refused by a decision, not by accident."""
    model = ServiceModel(Loader().load_service_model("bedrock-agentcore-control", "service-2"))
    settings = _members(model, "UpdateAgentRuntimeRequest") - {"agentRuntimeId", "clientToken"}
    assert _members(model, "CreateAgentRuntimeRequest") - {"agentRuntimeName", "clientToken", "tags"} <= settings
    assert settings == set(ECHOED)
    assert settings <= _members(model, "GetAgentRuntimeResponse")


def test_the_pump_checks_headers_as_the_model_says() -> None:
    """EXE-1: InvokeAgentRuntime is not parsed by the wire layer, so that its lengths stand in the pump too."""
    model = ServiceModel(Loader().load_service_model("bedrock-agentcore", "service-2"))
    modelled = {
        member.serialization["name"].lower(): (name, member.metadata.get("min", 0), member.metadata["max"])
        for name, member in model.shape_for("InvokeAgentRuntimeRequest").members.items()
        if member.serialization.get("location") == "header"
    }
    assert dict(target._LENGTHS) == modelled
