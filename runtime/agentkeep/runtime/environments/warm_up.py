"""The warm-up hook: a POST to an agent that has started, so that it loads what its sessions need (models, libraries,
caches) before any of them comes.

AgentCore runs it when a runtime is created or updated. Here each session's environment is started afresh, so nothing
that was loaded then would be left: it is run then, to find out whether it works, and in every environment before its
first turn (in a warm pool: ahead).
Source: `HttpPostLifecycleHookAction`, `BuildLifecycleHooks` of the service model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httptools

from agentkeep.core.errors import EnvironmentStartFailed
from agentkeep.runtime.drivers.driver import Environment
from agentkeep.runtime.environments.exchange import AgentProtocolError, request

__all__ = ["WARM_UP_SECONDS", "WarmUp"]

WARM_UP_SECONDS: Final = 120.0
_BODY_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class WarmUp:
    path: str
    port: int

    @classmethod
    def of(cls, hooks: Mapping[str, Any], port: int) -> WarmUp | None:
        """`hooks`: a `RuntimeHooksConfiguration`; `port`: the agent's own."""
        post = hooks.get("build", {}).get("warmup", {}).get("action", {}).get("httpPost")
        return None if post is None else cls(post["path"], post.get("port", port))

    async def run(self, environment: Environment, timeout: float = WARM_UP_SECONDS) -> None:
        """Returns when the hook has answered 2xx. It carries no session, no user and no credentials: there are none.

        Raises EnvironmentStartFailed.
        """
        name = f"the warm-up hook (POST {self.path}, port {self.port})"
        try:
            async with asyncio.timeout(timeout):
                connection = await environment.connect(timeout, self.port)
                async with request(connection, "POST", self.path) as answer:
                    await answer.read(_BODY_LIMIT)
        except TimeoutError:
            raise EnvironmentStartFailed(f"{name} did not answer within {timeout:g} seconds") from None
        except (AgentProtocolError, httptools.HttpParserError, OSError) as error:
            raise EnvironmentStartFailed(f"{name} failed: {error}") from None
        if not 200 <= answer.status < 300:
            raise EnvironmentStartFailed(f"{name} answered {answer.status}")
