"""Who serves a path: every route and every mount has an owner, and it is the plane that implements it."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from botocore import xform_name

from agentkeep.core.identifiers import Arn
from agentkeep.service.ownership import BY_RESOURCE, PREFIXES, plane_of
from agentkeep.wire.model import SERVICES, service

ROOT = Path(__file__).parents[2]
ROUTES = [
    (operation, *service(name).route(operation)) for name in SERVICES for operation in service(name).operation_names
]
OPERATIONS = {
    "runtime": ["agentkeep.runtime.operations"],
    "memory": ["agentkeep.memory.operations"],
    "identity": ["agentkeep.identity.operations"],
    "gateway": ["agentkeep.gateway.operations", "agentkeep.gateway.control.operations"],
}


def test_every_route_has_an_owner() -> None:
    for operation, _, path in ROUTES:
        first = path.strip("/").split("/")[0]
        assert first in PREFIXES or first in BY_RESOURCE, operation


def test_the_owner_is_the_plane_that_implements_it() -> None:
    owners = {xform_name(operation): PREFIXES.get(path.strip("/").split("/")[0]) for operation, _, path in ROUTES}
    seen = 0
    for plane in OPERATIONS:
        for cls in classes(plane):
            for name in vars(cls):
                if owners.get(name) is not None:
                    assert owners[name] == plane, name
                    seen += 1
    assert seen > 60


def classes(plane: str) -> list[type]:
    found: list[type] = []
    folder = ROOT / plane / "agentkeep" / plane
    for file in folder.rglob("*.py"):
        if "class " in file.read_text() and "arn_kinds" in file.read_text():
            module = import_module(".".join(file.relative_to(ROOT / plane).with_suffix("").parts))
            found += [each for each in vars(module).values() if isinstance(each, type) and hasattr(each, "arn_kinds")]
    assert found or plane == "observability", plane
    return found


@pytest.mark.parametrize(
    ("path", "plane"),
    [
        (b"/runtimes/arn%3Aaws%3Abedrock-agentcore%3Aus-east-1%3A1%3Aruntime%2Fa/invocations", "runtime"),
        (b"/memories/m/events", "memory"),
        (b"/model/anthropic.claude%3A0/converse-stream", "gateway"),
        (b"/gateways/g-0123456789/mcp", "gateway"),
        (b"/identities/GetWorkloadAccessToken", "identity"),
        (b"/v1/traces", "observability"),
        (b"/credentials", "runtime"),
        (b"/", None),
        (b"/nothing", None),
        (b"/memories2", None),
        (b"/%6demories/", None),
        (b"//memories/", None),
        (b"/tags/nonsense", None),
    ],
)
def test_who_serves(path: bytes, plane: str | None) -> None:
    assert plane_of(path) == plane


@pytest.mark.parametrize(
    ("resource", "plane"),
    [
        ("runtime/a-0123456789", "runtime"),
        ("runtime/a-0123456789/runtime-endpoint/DEFAULT", "runtime"),
        ("gateway/g-0123456789", "gateway"),
        ("policy-engine/p-0123456789", "gateway"),
        ("memory/m-0123456789", "memory"),
        ("workload-identity-directory/default/workload-identity/a", "identity"),
        ("token-vault/default/apikeycredentialprovider/k", "identity"),
        ("unheard/of", None),
    ],
)
def test_tags_belong_to_their_resource(resource: str, plane: str | None) -> None:
    arn = str(Arn("bedrock-agentcore", "us-east-1", "123456789012", resource))
    plain, encoded = arn, arn.replace(":", "%3A").replace("/", "%2F")
    for form in (plain, encoded):
        for prefix in BY_RESOURCE:
            assert plane_of(f"/{prefix}/{form}".encode()) == plane


def test_the_edges_map_says_the_same() -> None:
    """nginx's, read as nginx reads it: the first pattern that matches the decoded path."""
    text = (ROOT / "infra" / "compose" / "edge" / "planes.map").read_text()
    patterns = [(re.compile(found[1]), found[2]) for found in re.finditer(r"^    ~(\S+) (\w+);$", text, re.M)]
    assert len(patterns) > 8
    arn = "arn:aws:bedrock-agentcore:us-east-1:123456789012:memory/m-1"
    paths = [path.replace("{resourceArn}", arn) for _, _, path in ROUTES]
    for path in paths:
        owner = next((plane for pattern, plane in patterns if pattern.search(path)), None)
        assert owner == plane_of(path.encode()), path


def test_every_mount_is_covered() -> None:
    for file in [*(ROOT / "core" / "agentkeep").rglob("*.py"), *(ROOT / "gateway" / "agentkeep").rglob("*.py")]:
        for prefix in re.findall(r'Mount\("/([a-z0-9-]+)', file.read_text()):
            assert prefix in PREFIXES, f"{file.name}: /{prefix}"
