"""The data path: InvokeAgentRuntime, in the parser's callbacks, without a task where nothing is waited for."""

from agentkeep.runtime.pump.limits import PumpLimits
from agentkeep.runtime.pump.route import InvocationRoute

__all__ = ["InvocationRoute", "PumpLimits"]
