"""The wire: AgentCore's protocol, driven by AWS's service models.

    router = Router()
    match = router.find(method, raw_path)                                    # None: no such operation
    request = match.operation.parse(match.labels, query, headers, body)      # or ValidationException
    response = match.operation.serialize(output)                             # or .serialize_error(error)

Signatures: `agentkeep.wire.signature`. Types of requests and responses: `agentkeep.wire.types`.
"""

from agentkeep.wire.errors import error_response
from agentkeep.wire.operation import Operation
from agentkeep.wire.response import Headers, Response
from agentkeep.wire.router import Match, Router

__all__ = ["Headers", "Match", "Operation", "Response", "Router", "error_response"]
