"""The `self` backend: calls go to the plane that implements the operation.

An operation is a public async method of a plane, named as in boto3 (`create_event`). What is implemented is derived
from the planes, never listed by hand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from botocore import xform_name

from agentkeep.backend.actions import authorized_call
from agentkeep.backend.backend import Document
from agentkeep.backend.tracing import operation_step
from agentkeep.core.alarm import Alarm
from agentkeep.core.call import Call, CallerKind, allowed_callers
from agentkeep.core.errors import (
    AccessDeniedException,
    CrossUserAccess,
    ResourceNotFoundException,
    RoleRefused,
    UnsupportedOperationException,
)
from agentkeep.core.identifiers import Arn
from agentkeep.core.parity import COMPATIBILITY_PAGE

Method = Callable[[Call, Any], Awaitable[Any]]


class Plane(Protocol):
    """`name` is the plane's; `arn_kinds` the resource types it owns (`runtime`, `runtime-endpoint`), by which calls
    on ARNs (tags, resource policies), that several planes implement, are sent to the right one."""

    @property
    def name(self) -> str: ...

    @property
    def arn_kinds(self) -> frozenset[str]: ...


class SelfBackend:
    """`alarm` is told of whoever reached for what is another user's, and of what roles' policies did not allow."""

    def __init__(self, planes: Iterable[Plane], alarm: Alarm | None = None) -> None:
        self._planes = tuple(planes)
        self._alarm = alarm
        self._found: dict[str, tuple[tuple[Plane, Method, frozenset[CallerKind]], ...]] = {}

    async def invoke(self, call: Call, request: Mapping[str, Any]) -> Document:
        plane, method, allowed = self._find(call, request)
        session = call.caller.session
        try:
            if session is None:
                return await _invoke(method, allowed, call, request)
            with operation_step(plane.name, call, session, request):
                return await _invoke(method, allowed, call, request)
        except CrossUserAccess as refused:
            if self._alarm is not None:
                await self._alarm.crossed(call, refused)
            raise
        except RoleRefused as refused:
            if self._alarm is not None:
                self._alarm.denied(call.caller, refused)
            raise

    def _find(self, call: Call, request: Mapping[str, Any]) -> tuple[Plane, Method, frozenset[CallerKind]]:
        found = self._found.get(call.operation)
        if found is None:
            name = xform_name(call.operation)
            found = self._found[call.operation] = tuple(
                (plane, method, allowed_callers(method))
                for plane in self._planes
                if (method := getattr(plane, name, None)) is not None
            )
        if not found:
            raise UnsupportedOperationException(
                f"{call.operation} is not implemented by agentkeep. What is: {COMPATIBILITY_PAGE}"
            )
        if len(found) == 1:
            return found[0]
        arn = Arn.parse(str(request.get("resourceArn", "")))
        for candidate in found:
            if arn is not None and arn.kind in candidate[0].arn_kinds:
                return candidate
        raise ResourceNotFoundException(f"No resource with ARN {request.get('resourceArn')!r}")


async def _invoke(method: Method, allowed: frozenset[CallerKind], call: Call, request: Mapping[str, Any]) -> Document:
    if call.caller.kind is CallerKind.ROLE:
        call = replace(call, caller=authorized_call(call, request))
    if call.caller.kind not in allowed:
        raise AccessDeniedException(
            f"{call.caller.principal} is not authorized to perform {call.operation}: "
            f"it is not open to {call.caller.kind} callers"
        )
    answer: Document = await method(call, request)
    return answer
