"""LangGraph's conformance suite of checkpointers, run on AgentCoreMemorySaver."""

from __future__ import annotations

import json
import warnings
from collections.abc import AsyncIterator
from typing import Any

with warnings.catch_warnings():  # the clients' own use of what their libraries deprecate is not ours to mend
    warnings.simplefilter("ignore")
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.conformance import checkpointer_test, validate
    from langgraph_checkpoint_aws import AgentCoreMemorySaver

FORMATS = ("legacy", "snapshot")

#: What fails in the saver itself, before any server: writes of a task put again are stored twice, and deleting a
#: thread deletes its root namespace only.
CLIENTS_OWN_FAILURES = {"put_writes_idempotent", "delete_thread_removes_all_namespaces"}


class SaverOfOneActor(AgentCoreMemorySaver):
    """The suite's configurations name no actor; the saver demands one."""

    @staticmethod
    def _of(config: RunnableConfig | None) -> Any:
        if config is None:
            return None
        return {**config, "configurable": {"actor_id": "conformance", **config.get("configurable", {})}}

    async def aput(self, config: Any, *rest: Any) -> Any:
        return await super().aput(self._of(config), *rest)

    async def aput_writes(self, config: Any, *rest: Any, **more: Any) -> None:
        await super().aput_writes(self._of(config), *rest, **more)

    async def aget_tuple(self, config: Any) -> Any:
        return await super().aget_tuple(self._of(config))

    async def alist(self, config: Any, **rest: Any) -> AsyncIterator[Any]:
        if rest.get("before") is not None:
            rest["before"] = self._of(rest["before"])
        async for item in super().alist(self._of(config), **rest):
            yield item

    async def adelete_thread(self, thread_id: str, actor_id: str = "conformance") -> None:
        await super().adelete_thread(thread_id, actor_id)


async def conforms(memory: str, checkpoint_format: Any, **client: Any) -> None:
    """All that the saver itself can reach: 56 of the 58 base checks, and exactly the two failures it has anywhere.
    `client`: arguments of boto3's clients."""

    async def make() -> AsyncIterator[AgentCoreMemorySaver]:
        yield SaverOfOneActor(memory, checkpoint_format=checkpoint_format, **client)

    report = await validate(checkpointer_test(name=f"memory-{checkpoint_format}")(make))
    results = report.to_dict()["results"]
    base = {name: results[name] for name in ("put", "put_writes", "get_tuple", "list", "delete_thread")}
    failures = [failure for result in base.values() for failure in result.get("failures", [])]
    print(json.dumps(base, indent=1))
    passed = sum(result["tests_passed"] for result in base.values())
    failed = {name for name in CLIENTS_OWN_FAILURES if any(name in str(failure) for failure in failures)}
    assert (passed, len(failures)) == (56, 2), failures
    assert failed == CLIENTS_OWN_FAILURES, failures
