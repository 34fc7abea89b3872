"""A stack with real keys in a real store, and what must hold after every test."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from botocore.credentials import Credentials
from loopback_agent import LoopbackSessions, ScriptedAgent
from service_stack import DEPLOYMENT, Stack, Subject, echo

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.clock import SystemClock
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.runtime.pump import InvocationRoute, PumpLimits
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.limits import FrontLimits
from agentkeep.service.mounts import Access, Mount
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router


@pytest.fixture(scope="session")
def router() -> Router:
    return Router()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """As in production."""
    return "asyncio", {"use_uvloop": True}


MakeStack = Callable[..., Any]


@pytest.fixture
async def make_stack(store: ValkeyKeyValueStore, router: Router) -> AsyncIterator[MakeStack]:
    made: list[Stack] = []

    async def make(**limits: Any) -> Stack:
        """`limits`: of FrontLimits or PumpLimits, by name."""
        front_names = set(FrontLimits.__slots__)
        front_limits = replace(FrontLimits(), **{k: v for k, v in limits.items() if k in front_names})
        pump_limits = replace(PumpLimits(), **{k: v for k, v in limits.items() if k not in front_names})
        master_key = FileMasterKey(secrets.token_bytes(32))
        keys = AccessKeys(store, master_key, DEPLOYMENT, SystemClock(), IdentitySettings())
        issued = await keys.issue_operator_key("admin", acts_for_users=True)
        agent = ScriptedAgent()
        await agent.start()
        sessions = LoopbackSessions(agent.port)
        authenticator = Authenticator(keys)
        route = InvocationRoute(sessions, authenticator, pump_limits)
        plane = Subject()
        mounts = [
            Mount("/open", echo, Access.PUBLIC, max_body=1000),
            Mount("/artifacts", echo, Access.OPERATOR, max_body=5_000_000),
            Mount("/v2/credentials", echo, Access.SESSION),
        ]
        application = Application(router, Switch(SelfBackend([plane])), authenticator, mounts)
        server = Server(Front(application, [route], front_limits))
        await server.start()
        stack = Stack(server, agent, sessions, route, keys, plane, Credentials(issued.id, issued.secret))
        made.append(stack)
        return stack

    yield make
    for stack in made:
        for listener in stack.session_listeners:
            listener.close()
        await stack.server.stop(drain=0)
        await stack.server.front.close()
        stack.route.close()
        await stack.agent.stop()
        assert not stack.route.pump.runs, "an invocation is left"
        assert all(turn.ended == 1 for turn in stack.sessions.turns), "every turn ends exactly once"
        assert all(connection.released == 1 for connection in stack.sessions.connections)


@pytest.fixture
async def stack(make_stack: MakeStack) -> Stack:
    made: Stack = await make_stack()
    return made
