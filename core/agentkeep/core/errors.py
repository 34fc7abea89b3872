"""Every error the platform raises on purpose, in one tree.

    AgentkeepError
    ├── ServiceError                      what a caller may see; `code` is the service model's name of it
    │   ├── ValidationException           400  the request is wrong; names every field that is
    │   ├── UnauthorizedException         401  no proof of who is calling, or a bad one
    │   ├── AccessDeniedException         403  the caller is known and may not
    │   │   ├── CrossUserAccess           403  the same, and raises an alert
    │   │   │   └── CrossAgentAccess      403  the same of what is other agents'
    │   │   ├── RoleRefused               403  a role's policies do not allow it; goes on record
    │   │   ├── InsufficientScope         403  the same of a user's token, for want of a scope
    │   │   └── KeyRefused                403  a key service does not let the platform use a key
    │   ├── ResourceNotFoundException     404
    │   ├── ConflictException             409  the resource's state forbids it now
    │   ├── RetryableConflictException    409  the same, and clients retry by themselves
    │   ├── ServiceQuotaExceededException 402  a limit of the account or session is reached
    │   ├── RuntimeClientError            424  the agent's own code failed
    │   ├── ThrottlingException           429
    │   ├── InternalServerException       500  a defect or a dependency; details stay in the log
    │   ├── UnsupportedOperationException 501  modelled by AWS, not implemented here
    │   ├── ServiceUnavailableException   503
    │   │   ├── PlaneUnavailable               another service of the platform; a StoreUnavailable as well
    │   │   └── KeyServiceUnavailable          what is sealed cannot be opened or added to for now
    │   ├── ModelErrorException           424  the model provider failed
    │   ├── ModelStreamErrorException     424  the same, while its answer was streaming
    │   ├── ModelTimeoutException         408
    │   └── ModelNotReadyException        429
    └── DependencyError                   what a dependency did to us; never reaches the wire raw
        ├── StoreUnavailable
        ├── ConditionFailed               a conditional write met another value
        ├── SealBroken                    what is stored is not what was sealed there
        ├── DriverError
        │   ├── EnvironmentStartFailed    the agent's environment did not come up
        │   │   └── CapacityReached       nor would any other's: no more fit on this machine
    │   ├── CommandNotStarted         an environment could not run a command: no room in it, no shell
        │   ├── DriverThrottled           its machinery takes no more calls for now; the same call later may do
        │   └── SandboxUnavailable        this machine cannot isolate; says what to install
        └── ProviderError

Source of codes: the botocore service models. The status on the wire is the model's for the operation at hand
(`agentkeep.wire.errors`); the status here is the fallback for operations that do not model the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

__all__ = [
    "AccessDeniedException",
    "AgentkeepError",
    "CapacityReached",
    "CommandNotStarted",
    "ConditionFailed",
    "ConflictException",
    "CrossAgentAccess",
    "CrossUserAccess",
    "DependencyError",
    "DriverError",
    "DriverThrottled",
    "EnvironmentStartFailed",
    "FieldError",
    "InsufficientScope",
    "InternalServerException",
    "KeyRefused",
    "KeyServiceUnavailable",
    "ModelErrorException",
    "ModelNotReadyException",
    "ModelStreamErrorException",
    "ModelTimeoutException",
    "PlaneUnavailable",
    "ProviderError",
    "ResourceNotFoundException",
    "RetryableConflictException",
    "RoleRefused",
    "RuntimeClientError",
    "SandboxUnavailable",
    "SealBroken",
    "ServiceError",
    "ServiceQuotaExceededException",
    "ServiceUnavailableException",
    "StoreUnavailable",
    "ThrottlingException",
    "UnauthorizedException",
    "UnsupportedOperationException",
    "ValidationException",
]


class AgentkeepError(Exception):
    """Root of the tree."""


class ServiceError(AgentkeepError):
    """An answer the caller may see. `message` says what, why, and what to do."""

    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def code(self) -> str:
        return type(self).__name__


class FieldError(NamedTuple):
    """One failing field: `name` is its path in the request (`payload.1.member.text`)."""

    name: str
    message: str


class ValidationException(ServiceError):
    """`reason` is one of the model's: CannotParse, FieldValidationFailed, ResourceConflict, EventInOtherSession,
    IdempotentParameterMismatchException."""

    status = 400

    def __init__(self, message: str, reason: str = "FieldValidationFailed", fields: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.fields = tuple(fields)


class UnauthorizedException(ServiceError):
    """`challenge` becomes the WWW-Authenticate header."""

    status = 401

    def __init__(self, message: str, challenge: str | None = None) -> None:
        super().__init__(message)
        self.challenge = challenge


class AccessDeniedException(ServiceError):
    status = 403


class CrossUserAccess(AccessDeniedException):
    """Somebody named what is another user's. To the caller it is an AccessDeniedException; operators are alerted.
    `resource`: what was to be reached, without anything the request carried."""

    whose: ClassVar[str] = "another user's"

    def __init__(self, message: str, resource: str = "") -> None:
        super().__init__(message)
        self.resource = resource

    @property
    def code(self) -> str:
        return "AccessDeniedException"


class CrossAgentAccess(CrossUserAccess):
    """An agent named what is for other agents."""

    whose = "other agents'"


class RoleRefused(AccessDeniedException):
    """A role's policies do not allow what its keys were used for. To the caller it is an AccessDeniedException; it goes
    on record. `resource`: an ARN, or "*"."""

    def __init__(self, message: str, action: str, resource: str) -> None:
        super().__init__(message)
        self.action = action
        self.resource = resource

    @property
    def code(self) -> str:
        return "AccessDeniedException"


class InsufficientScope(AccessDeniedException):
    """A user's token is good, and has none of the scopes that are needed. `challenge` becomes the WWW-Authenticate
    header (RFC 6750, 3.1), by which clients get a token that has."""

    def __init__(self, message: str, challenge: str | None = None) -> None:
        super().__init__(message)
        self.challenge = challenge

    @property
    def code(self) -> str:
        return AccessDeniedException.__name__


class KeyRefused(AccessDeniedException):
    """A key that data are sealed under cannot be used: it is disabled, gone, or not the platform's to use. `gone`:
    there is no such key, and what was sealed under it never opens again."""

    def __init__(self, message: str, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone

    @property
    def code(self) -> str:
        return AccessDeniedException.__name__


class ResourceNotFoundException(ServiceError):
    status = 404


class ConflictException(ServiceError):
    status = 409


class RetryableConflictException(ServiceError):
    status = 409


class ServiceQuotaExceededException(ServiceError):
    status = 402


class RuntimeClientError(ServiceError):
    status = 424


class ThrottlingException(ServiceError):
    status = 429


class InternalServerException(ServiceError):
    status = 500


class UnsupportedOperationException(ServiceError):
    status = 501


class ServiceUnavailableException(ServiceError):
    status = 503


class ModelErrorException(ServiceError):
    status = 424


class ModelStreamErrorException(ServiceError):
    status = 424


class ModelTimeoutException(ServiceError):
    status = 408


class ModelNotReadyException(ServiceError):
    status = 429


class DependencyError(AgentkeepError):
    """Something we depend on failed. The service chain logs it and answers InternalServerException."""


class StoreUnavailable(DependencyError):
    """The store did not answer; nothing is known of the write's fate unless said."""


class PlaneUnavailable(ServiceUnavailableException, StoreUnavailable):
    """Another service of the platform did not answer a port's call; nothing is known of the call's fate unless said.

    The caller may see it, under its parent's name, and is asked to try again. Whoever can wait for a store can wait for
    this: behind a port that is an object of the same process, it is the store that is away.
    """

    @property
    def code(self) -> str:
        return ServiceUnavailableException.__name__


class KeyServiceUnavailable(ServiceUnavailableException):
    """A key service did not answer. The caller may see it, under its parent's name, and is asked to try again."""

    @property
    def code(self) -> str:
        return ServiceUnavailableException.__name__


class SealBroken(DependencyError):
    """What is stored does not open: damaged, moved from another place, or sealed under another key."""


class ConditionFailed(DependencyError):
    """A conditional write found another value. `index`: which write; `current`: what is there (None: nothing)."""

    def __init__(self, index: int, current: bytes | None) -> None:
        super().__init__(f"write {index} found another value")
        self.index = index
        self.current = current


class DriverError(DependencyError):
    pass


class EnvironmentStartFailed(DriverError):
    """`logs` holds the end of what the agent wrote, for the operator."""

    def __init__(self, message: str, logs: str = "") -> None:
        super().__init__(message)
        self.logs = logs


class CapacityReached(EnvironmentStartFailed):
    pass


class DriverThrottled(DriverError):
    """What a driver stands on (an orchestrator's API) has turned a call away; nothing has come of the call."""


class CommandNotStarted(DriverError):
    """The environment lives, and could not run a command: it has no room for another process, or no shell."""


class SandboxUnavailable(DriverError):
    pass


class ProviderError(DependencyError):
    pass
