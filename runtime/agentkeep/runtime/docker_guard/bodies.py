"""What the engine may be told to make: exactly what `drivers/docker/container.py` makes of a session, or of a probe.

A list of what is forbidden would be as long as the engine's next release. So the few things that differ from session
to session are read from the body, the body is made again from them by the driver's own code, and the two must be the
same. It is the second that goes to the engine: how the engine would read the first does not matter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from agentkeep.runtime.docker_guard.refusal import Refused
from agentkeep.runtime.drivers.docker import container
from agentkeep.runtime.drivers.docker.images import Image
from agentkeep.runtime.drivers.docker.network import LABEL, NETWORK, PROBES, session_addresses
from agentkeep.runtime.drivers.docker.probe import NO_PROGRAM
from agentkeep.runtime.drivers.docker.reach import PROGRAM
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import EnvironmentSpec, Limits, VersionSpec

__all__ = ["checked", "image_named"]

_IMAGE: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SIZE: Final = re.compile(r".*,size=([0-9]{1,15})")
_OWNER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_NAME: Final = re.compile(r"[\x20-\x7e]{1,300}")
_STORAGE: Final = re.compile(r"/mnt/(?!\.{1,2}$)[a-zA-Z0-9._-]{1,195}")
_MOST_STORAGE: Final = 5
_SHOWN: Final = 120


def image_named(body: Any) -> str:
    image = _at(body, "Image")
    if not isinstance(image, str) or not _IMAGE.fullmatch(image):
        raise Refused("Image must be an image's id, sha256 and 64 digits: names may change what they mean")
    return image


def checked(body: Any, image: Image, most: Limits, settings: DockerDriverSettings) -> dict[str, Any]:
    """The body to send. `most`: what one session may have. Raises Refused."""
    try:
        made = (
            _probe(body, image, settings) if _kind(body) == container.PROBE else _session(body, image, most, settings)
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Refused(f"the body is not that of a session's container ({type(error).__name__}: {error})") from None
    for difference in _differences(body, made, ""):
        raise Refused(difference)
    return made


def _kind(body: Any) -> Any:
    return _at(body, "Labels", LABEL)


def _session(body: Any, image: Image, most: Limits, settings: DockerDriverSettings) -> dict[str, Any]:
    labels, host = _at(body, "Labels"), _at(body, "HostConfig")
    owner, runtime, port = labels[container.OWNER], container.labelled_runtime(labels), container.labelled_port(labels)
    if not _OWNER.fullmatch(owner) or not _NAME.fullmatch(runtime):
        raise Refused("Labels name no session of a platform")
    if not 0 < port < 1 << 16:
        raise Refused("Labels name no port")
    address = _address(body)
    if address not in session_addresses():
        raise Refused(f"{address} is no session's address")
    made = container.configuration(
        EnvironmentSpec(
            version=VersionSpec(runtime, "1", image=image.id, port=port, storage=_storage(host)),
            environment=_variables(body),
            endpoint=_no_endpoint,
            log=_no_endpoint,
            limits=_limits(host, most),
        ),
        image,
        address,
        owner,
        settings,
    )
    made["HostConfig"]["NanoCpus"] = host["NanoCpus"]  # a whole number, which times 1e-9 and back may not be the same
    return made


def _probe(body: Any, image: Image, settings: DockerDriverSettings) -> dict[str, Any]:
    program = tuple(_at(body, "Entrypoint"))
    if program not in (PROGRAM, NO_PROGRAM):
        raise Refused("Entrypoint is not a probe's")
    address = _address(body)
    if address not in PROBES:
        raise Refused(f"{address} is no probe's address")
    return container.probe(program, _variables(body), image, address, settings, init=program == PROGRAM)


def _address(body: Any) -> str:
    address: str = _at(body, "NetworkingConfig", "EndpointsConfig", NETWORK, "IPAMConfig", "IPv4Address")
    return address


def _variables(body: Any) -> dict[str, str]:
    variables = {}
    for each in _at(body, "Env"):
        name, equals, value = each.partition("=")
        if not name or not equals or name in variables or "\0" in each:
            raise Refused("Env must be a list of different NAME=value")
        each.encode()  # raises ValueError where it is no text
        variables[name] = value
    return variables


def _limits(host: Any, most: Limits) -> Limits:
    place = "/tmp"  # noqa: S108 -- inside the container
    size = _SIZE.fullmatch(host["Tmpfs"][place])
    if size is None:
        raise Refused("HostConfig.Tmpfs sets no size of /tmp")
    share = container.disk_shares(_storage(host))[place]
    (files,) = (one["Soft"] for one in host["Ulimits"] if one["Name"] == "nofile")
    wanted = {
        "Memory": (host["Memory"], most.memory, "MEMORY"),
        "PidsLimit": (host["PidsLimit"], most.processes, "PROCESSES"),
        "NanoCpus": (host["NanoCpus"], int(most.cpus * 1e9), "CPUS"),
        "Ulimits nofile": (files, most.open_files, "OPEN_FILES"),
        f"Tmpfs size of /tmp, {share} times,": (share * int(size[1]), max(most.disk, container.LEAST_DISK), "DISK"),
    }
    for name, (value, limit, setting) in wanted.items():
        if type(value) is not int or not 0 < value <= limit:
            raise Refused(
                f"HostConfig: {name} must be a number from 1 to {limit}; that is the proxy's "
                f"AGENTKEEP_RUNTIME_SESSION_{setting}"
            )
    return Limits(
        memory=host["Memory"],
        processes=host["PidsLimit"],
        open_files=files,
        cpus=host["NanoCpus"] / 1e9,
        disk=share * int(size[1]),
    )


def _storage(host: Any) -> tuple[str, ...]:
    usual = container.disk_shares(())
    storage = tuple(place for place in host["Tmpfs"] if place not in usual)
    if len(storage) > _MOST_STORAGE or not all(map(_STORAGE.fullmatch, storage)):
        raise Refused("HostConfig.Tmpfs has places that are no session storage")
    return storage


def _differences(given: Any, made: Any, path: str) -> Iterator[str]:
    """In words; the first is enough."""
    if isinstance(given, dict) and isinstance(made, dict):
        for name in sorted(given.keys() | made.keys()):
            place = f"{path}.{name}" if path else name
            if name not in made:
                yield f"{place[:_SHOWN]} is not allowed"
            elif name not in given:
                yield f"{place} is missing"
            else:
                yield from _differences(given[name], made[name], place)
    elif type(given) is not type(made) or given != made:
        expected = json.dumps(made)
        yield f"{path} must be {expected if len(expected) < _SHOWN else 'as the driver makes it'}"


def _at(body: Any, *path: str) -> Any:
    found = body
    for name in path:
        if not isinstance(found, dict) or name not in found:
            raise Refused(f"{'.'.join(path)} is missing")
        found = found[name]
    return found


def _no_endpoint(*_: object) -> Any:
    raise AssertionError("nothing is started from this specification")
