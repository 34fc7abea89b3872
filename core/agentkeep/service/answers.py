"""Errors as HTTP answers, for exchanges that frame their own."""

from __future__ import annotations

from agentkeep.core.errors import ServiceError
from agentkeep.wire.errors import error_response
from agentkeep.wire.model import OperationModel

__all__ = ["error_answer"]


def error_answer(error: ServiceError, operation: OperationModel | None) -> tuple[int, list[bytes], bytes]:
    """Status, header lines (CRLF included, without framing) and body. An error without a code has no error type:
    clients name it by its status."""
    response = error_response(error, operation)
    assert isinstance(response.body, bytes)
    lines = [b"%b: %b\r\n" % (name, value) for name, value in response.headers if value or name != b"x-amzn-errortype"]
    return response.status, lines, response.body
