"""The official client suites: what is run, what is left out and why.

Everything is run from the source distributions on PyPI as it is. A test left out is named with its reason; a test that
starts to pass, or one that is not listed and skips itself, fails the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

AGENTCORE = "bedrock_agentcore-1.25.0"
LANGGRAPH = "langgraph_checkpoint_aws-1.2.6"

LAMBDA = "wants a Lambda target, which is refused: targets are MCP servers and OpenAPI services"


#: Files of the SDK's integration tests of runtime and memory that are not run, and why.
FILES_LEFT_OUT = {
    "tests_integ/async/test_async_status_example.py": "asks an agent started by hand on port 8080, and no service",
    "tests_integ/runtime/test_middleware_integration.py": "asks the SDK's server in its own process, and no service",
    "tests_integ/runtime/test_simple_agent.py": "asks an agent it starts itself, which needs Strands and Bedrock",
    "tests_integ/runtime/test_websocket_agent.py": "asks an agent it starts itself on port 8081, and no service "
    "(tests/e2e/test_runtime_clients.py opens WebSockets of agents with the SDK's client)",
}


@dataclass(frozen=True)
class Suite:
    """`left_out` maps a test (class::name or name) to the reason it is not run."""

    distribution: str
    path: str
    left_out: dict[str, str] = field(default_factory=dict)


SUITES = (
    Suite(AGENTCORE, "tests_integ/runtime/test_runtime_passthrough.py"),
    Suite(AGENTCORE, "tests_integ/services/test_resource_policy.py"),
    Suite(AGENTCORE, "tests_integ/memory/test_controlplane.py"),
    Suite(AGENTCORE, "tests_integ/memory/test_memory_client.py"),
    Suite(AGENTCORE, "tests_integ/memory/integrations/test_session_manager.py"),
    Suite(AGENTCORE, "tests_integ/memory/integrations/test_memory_store.py"),
    Suite(AGENTCORE, "tests_integ/identity/test_identity_client.py"),
    Suite(AGENTCORE, "tests_integ/policy/test_policy_engine_client.py"),
    Suite(
        AGENTCORE,
        "tests_integ/gateway/test_gateway_client.py",
        left_out=dict.fromkeys(
            (
                "TestGatewayTargetClient::test_create_gateway_target_and_wait",
                "TestGatewayTargetClient::test_get_gateway_target_passthrough",
                "TestGatewayTargetClient::test_get_gateway_target_by_name",
                "TestGatewayTargetClient::test_list_gateway_targets_passthrough",
                "TestGatewayTargetClient::test_update_gateway_target_and_wait",
                "TestGatewayTargetClient::test_get_gateway_target_by_name_not_found",
                "TestGatewayTargetClient::test_delete_gateway_target_and_wait",
            ),
            LAMBDA,
        ),
    ),
    Suite(LANGGRAPH, "tests/integration_tests/agentcore/test_saver.py"),
    Suite(LANGGRAPH, "tests/integration_tests/agentcore/test_snapshot.py"),
    Suite(LANGGRAPH, "tests/integration_tests/agentcore/test_batch_flush.py"),
    Suite(LANGGRAPH, "tests/integration_tests/agentcore/test_store.py"),
    Suite(LANGGRAPH, "tests/integration_tests/agentcore/test_async_store.py"),
)
