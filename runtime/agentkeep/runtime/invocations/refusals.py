"""Errors of the runtime's protocols that no operation models."""

from __future__ import annotations

from agentkeep.core.errors import ResourceNotFoundException, ServiceError

__all__ = ["McpSessionNotFound", "MethodNotAllowedException", "NotAcceptableException"]


class MethodNotAllowedException(ServiceError):
    """GET and DELETE are for MCP runtimes only."""

    status = 405


class NotAcceptableException(ServiceError):
    """An MCP client must take both kinds of answers (streamable HTTP, "Sending Messages to the Server")."""

    status = 406


class McpSessionNotFound(ResourceNotFoundException):
    """404, by which MCP clients know that they must initialize again (streamable HTTP, "Session Management")."""

    @property
    def code(self) -> str:
        return ResourceNotFoundException.__name__
