"""Which operations of the service models are implemented, derived from the planes themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping

from botocore import xform_name

from agentkeep.wire.model import SERVICES, service

__all__ = ["implemented", "method_name", "plane_name"]


def method_name(operation: str) -> str:
    """boto3's name of an operation: `CreateEvent` is `create_event`."""
    name: str = xform_name(operation)
    return name


def plane_name(plane: type) -> str:
    """`agentkeep.memory.operations.MemoryOperations` is `memory`."""
    return plane.__module__.split(".")[1]


def implemented(planes: Iterable[type]) -> Mapping[tuple[str, str], tuple[str, ...]]:
    """(service, operation) to the names of the planes that implement it: those whose class has a public async method
    of boto3's name. Calls on ARNs (tags, resource policies) are implemented by several."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for plane in planes:
        for name in SERVICES:
            for operation in service(name).operation_names:
                if inspect.iscoroutinefunction(getattr(plane, method_name(operation), None)):
                    found[name, operation] = (*found.get((name, operation), ()), plane_name(plane))
    return found
