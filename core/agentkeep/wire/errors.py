"""From a ServiceError to an answer, in the operation's own terms.

The class is named by the header `x-amzn-ErrorType`; the status is the model's for the operation. Services name the same
thing differently (memory: ThrottledException, ServiceException), and not every operation models every error; the
platform's code raises one name for each and need not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from agentkeep.core.errors import InsufficientScope, ServiceError, UnauthorizedException, ValidationException
from agentkeep.wire.model import ErrorModel, OperationModel
from agentkeep.wire.response import Response, header_value

__all__ = ["error_document", "error_model", "error_response"]

_ANY_MEMBERS: Final = frozenset({"message", "reason", "fieldList"})

#: What an operation may call an error it does not model by the platform's name; the first it models is taken.
_OTHER_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "ThrottlingException": ("ThrottledException",),
    "InternalServerException": ("ServiceException",),
    # SigV4 failures are 403 in AWS too; 401 belongs to bearer tokens, and then carries a challenge.
    "UnauthorizedException": ("AccessDeniedException",),
    "RetryableConflictException": ("ConflictException",),
    "ModelErrorException": ("ModelStreamErrorException", "InternalServerException"),
    "ModelStreamErrorException": ("ModelErrorException", "InternalServerException"),
    "ModelTimeoutException": ("InternalServerException",),
    "ModelNotReadyException": ("ThrottlingException",),
}


def error_model(error: ServiceError, operation: OperationModel | None) -> ErrorModel:
    """How `error` is called and numbered for this operation: as it models it, else as its service does, else as the
    platform does."""
    if operation is not None and not (isinstance(error, UnauthorizedException) and error.challenge is not None):
        for name in (error.code, *_OTHER_NAMES.get(error.code, ())):
            if (model := operation.errors.get(name)) is not None:
                return model
        if (model := operation.service.error(error.code)) is not None:
            return model
    return ErrorModel(error.code, error.status, _ANY_MEMBERS)


def error_document(error: ServiceError, model: ErrorModel) -> dict[str, Any]:
    """The error's JSON, with the members the model gives it."""
    document: dict[str, Any] = {"message": error.message}
    if isinstance(error, ValidationException):
        if "reason" in model.members:
            document["reason"] = error.reason
        if error.fields and "fieldList" in model.members:
            document["fieldList"] = [{"name": name, "message": message} for name, message in error.fields]
    return document


def error_response(error: ServiceError, operation: OperationModel | None = None) -> Response:
    """`operation` is None where the request reached none (unknown path, bad signature)."""
    model = error_model(error, operation)
    headers = [(b"content-type", b"application/json"), (b"x-amzn-errortype", model.code.encode())]
    if isinstance(error, UnauthorizedException | InsufficientScope) and error.challenge is not None:
        headers.append((b"www-authenticate", header_value(error.challenge)))
    return Response(model.status, headers, orjson.dumps(error_document(error, model)))
