"""An A2A agent: says again what it is told, word by word, and on whose behalf."""

from a2a.helpers import new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.tasks import TaskUpdater
from bedrock_agentcore import BedrockAgentCoreContext
from bedrock_agentcore.runtime import serve_a2a


class Echo(AgentExecutor):
    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        task = context.current_task or new_task_from_user_message(context.message)
        if not context.current_task:
            await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        said = context.get_user_input()
        if said == "fail":
            raise RuntimeError("as asked")
        for word in said.split():
            await updater.add_artifact([new_text_part(word)])
        known = "token" if BedrockAgentCoreContext.get_workload_access_token() else "no token"
        await updater.add_artifact([new_text_part(f"{BedrockAgentCoreContext.get_session_id()} {known}")])
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError


serve_a2a(Echo())
