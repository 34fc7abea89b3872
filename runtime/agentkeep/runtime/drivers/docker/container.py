"""What the engine is told to make of a session: everything that isolates it is on this page, or in `network.py` and
`firewall.py`."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from typing import Any, Final

from agentkeep.runtime.drivers.docker.images import Image
from agentkeep.runtime.drivers.docker.network import LABEL, NETWORK, SUBNET
from agentkeep.runtime.drivers.docker.seccomp import profile
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import EnvironmentSpec, Limits, VersionSpec

__all__ = [
    "LEAST_DISK",
    "NAME",
    "OWNER",
    "PROBE",
    "SESSION",
    "configuration",
    "disk_shares",
    "labelled_port",
    "labelled_runtime",
    "new_name",
    "probe",
]

#: What the label says of a container.
SESSION, PROBE = "session", "probe"
OWNER: Final = f"{LABEL}.owner"
NAME: Final = re.compile(r"agentkeep-[0-9a-f]{16}")
_RUNTIME, _PORT = f"{LABEL}.runtime", f"{LABEL}.port"

#: Host users of sessions whose image names none: one for each address, from the range systemd leaves to containers.
_FIRST_USER: Final = 0x69000000
#: Writable places, all in memory, and which part each has of the session's disk.
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 -- these are inside the container
_WRITABLE: Final = {"/tmp": 2, "/var/tmp": 8, "/run": 8, _SHARED_MEMORY: 4}  # noqa: S108
LEAST_DISK: Final = 64 << 10


def configuration(
    spec: EnvironmentSpec, image: Image, address: str, owner: str, settings: DockerDriverSettings
) -> dict[str, Any]:
    """The body of the engine's "create a container"."""
    limits = spec.limits
    disk, shares = limits.disk, disk_shares(spec.version.storage)
    if spec.version.storage:
        disk -= disk % shares["/tmp"]  # noqa: S108 -- whose size alone then tells it
    variables = dict(spec.environment)
    user = image.user
    if not image.names_user and not settings.image_root:
        number = _FIRST_USER + int(IPv4Address(address)) - int(SUBNET.network_address)
        user = f"{number}:{number}"
        if "HOME" not in image.variables:
            variables.setdefault("HOME", "/tmp")  # noqa: S108 -- it has no home in the image
    host: dict[str, Any] = {
        "NetworkMode": NETWORK,
        # An internal network still answers names, and engines before 26.0 hand questions to a resolver on the host's
        # loopback. Told of a resolver of the container's own, which is not there, they ask nobody.
        "Dns": ["127.0.0.1"],
        "ReadonlyRootfs": True,
        "Tmpfs": {
            place: f"rw,exec,nosuid,nodev,mode=1777,size={max(disk // part, LEAST_DISK)}"
            for place, part in shares.items()
            if place != _SHARED_MEMORY
        },
        "ShmSize": max(disk // shares[_SHARED_MEMORY], LEAST_DISK),
        "IpcMode": "private",
        "CapDrop": ["ALL"],
        "Privileged": False,
        "SecurityOpt": ["no-new-privileges", f"seccomp={profile()}"],  # and AppArmor's default, where there is one
        "Memory": limits.memory,
        "MemorySwap": limits.memory,
        "PidsLimit": limits.processes,
        "NanoCpus": int(limits.cpus * 1e9),
        "Ulimits": [
            {"Name": name, "Soft": value, "Hard": value}
            for name, value in (("nofile", limits.open_files), ("memlock", 64 << 10), ("core", 0))
        ],
        "OomScoreAdj": 500,
        # A PID 1 that hands signals on and reaps: an agent that handles no SIGTERM ends by it nevertheless.
        "Init": True,
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "LogConfig": {"Type": "none"},
    }
    if settings.oci_runtime is not None:
        host["Runtime"] = settings.oci_runtime
    labels = {
        LABEL: SESSION,
        OWNER: owner,
        _RUNTIME: spec.version.runtime_id,
        _PORT: str(spec.version.port),
    }
    return {
        "Image": image.id,
        "User": user,
        "Hostname": "session",
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "Labels": labels,
        "AttachStdin": False,
        "OpenStdin": False,
        "Tty": False,
        "Healthcheck": {"Test": ["NONE"]},  # the platform asks /ping itself
        "HostConfig": host,
        "NetworkingConfig": {"EndpointsConfig": {NETWORK: {"IPAMConfig": {"IPv4Address": address}}}},
    }


def disk_shares(storage: Sequence[str]) -> dict[str, int]:
    """Place → which part it has of the session's disk: session storage has half, where there is any."""
    if not storage:
        return dict(_WRITABLE)
    return {place: 2 * part for place, part in _WRITABLE.items()} | dict.fromkeys(storage, 2 * len(storage))


def probe(
    program: Sequence[str],
    variables: Mapping[str, str],
    image: Image,
    address: str,
    settings: DockerDriverSettings,
    *,
    init: bool = True,
) -> dict[str, Any]:
    """The body for a container that is a session in all but this: it runs `program`, and is nobody's."""
    spec = EnvironmentSpec(
        version=VersionSpec(PROBE, "1", image=image.id),
        environment=variables,
        endpoint=asyncio.Protocol,
        log=lambda _: None,
        limits=Limits(memory=64 << 20, processes=16, open_files=64, cpus=1, disk=16 << 20),
    )
    body = configuration(spec, image, address, PROBE, settings)
    body["Labels"] = {LABEL: PROBE}
    body["Entrypoint"] = list(program)
    body["Cmd"] = []
    body["HostConfig"]["Init"] = init
    return body


def new_name() -> str:
    return f"agentkeep-{secrets.token_hex(8)}"


def labelled_runtime(labels: dict[str, str]) -> str:
    """Raises KeyError."""
    return labels[_RUNTIME]


def labelled_port(labels: dict[str, str]) -> int:
    """0: none."""
    port = labels.get(_PORT, "")
    return int(port) if port.isdecimal() else 0
