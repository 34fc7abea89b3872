"""Clients of others, unmodified: LangChain's MCP adapters, and the MCP Inspector's command line."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from platform_process import clean_environment
from tool_stack import ToolStack, tool_stack
from tool_stand_ins import OrdersService, openapi, orders_service
from uv import find_uv_bin

from agentkeep.storage.valkey import ValkeyKeyValueStore

#: What is no package of this project's environment is installed once for a machine, not for each run.
INSPECTOR = "@modelcontextprotocol/inspector@2.12.0"
INSPECTOR_FOLDER = Path("/var/tmp/agentkeep-tests-npm")
#: LangChain's adapters are written for the generation before (0.3.1 cannot be imported beside mcp 2); most clients are.
MCP_1 = "mcp==1.30.0"
MCP_1_FOLDER = Path("/var/tmp/agentkeep-tests-mcp1")

LANGCHAIN = """
import asyncio, json, sys
from importlib.metadata import version
from langchain_mcp_adapters.client import MultiServerMCPClient

async def main(url, token):
    headers = {"Authorization": f"Bearer {token}"}
    client = MultiServerMCPClient({"gateway": {"transport": "streamable_http", "url": url, "headers": headers}})
    tools = {tool.name: tool for tool in await client.get_tools()}
    order = await tools["Orders___get_order"].ainvoke({"order_id": "A-1"})
    arguments = {"order_id": "A-1", "amount": 1}
    refund = {"name": "Orders___request_refund", "args": arguments, "id": "1", "type": "tool_call"}
    refused = await tools["Orders___request_refund"].ainvoke(refund)
    print(json.dumps({"mcp": version("mcp"), "tools": list(tools), "order": str(order), "refused": str(refused)}))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def stack(store: ValkeyKeyValueStore) -> AsyncIterator[ToolStack]:
    async with tool_stack(store) as stack:
        yield stack


@pytest.fixture
async def orders() -> AsyncIterator[OrdersService]:
    async with orders_service() as service:
        yield service


def mcp_1() -> None:
    if not (MCP_1_FOLDER / "mcp").exists():
        command = ["uv", "pip", "install", "-q", "--python", sys.executable, "--target", str(MCP_1_FOLDER), MCP_1]
        subprocess.run([find_uv_bin(), *command[1:]], check=True, capture_output=True, timeout=280)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_langchain_finds_tools_calls_them_and_reads_a_refusal(stack: ToolStack, orders: OrdersService) -> None:
    """GOV-1, GOV-3: LangChain's adapters on the first generation of the official package."""
    await asyncio.to_thread(mcp_1)
    gateway = await stack.gateway({"Orders": openapi(orders)})
    await stack.operate("PUT", f"/catalogue/{gateway.id}/Orders___request_refund", {"callsPerMinute": 0})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LANGCHAIN, stack.mcp_url(gateway), await stack.token("alice"),
        env=clean_environment() | {"PYTHONPATH": str(MCP_1_FOLDER)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    said = json.loads(out)
    assert said["mcp"].startswith("1.") and "Orders___get_order" in said["tools"]
    assert "shipped" in said["order"]
    assert "ThrottlingException - Orders___request_refund was not called" in said["refused"]
    assert len(orders.asked) == 1


def inspector() -> list[str]:
    """The Inspector's command, installed where it is not yet."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("NOT SHOWN: the MCP Inspector needs node and npm, and this machine has none")
    script = INSPECTOR_FOLDER / "node_modules/.bin/mcp-inspector"
    if not script.exists():
        command = ["npm", "install", "--prefix", str(INSPECTOR_FOLDER), "--no-audit", "--no-fund", INSPECTOR]
        subprocess.run(command, check=True, capture_output=True, timeout=280)
    return [str(script), "--cli"]


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_the_inspector_lists_and_calls_tools(stack: ToolStack, orders: OrdersService, tmp_path: Path) -> None:
    """GOV-1"""
    command = await asyncio.to_thread(inspector)
    gateway = await stack.gateway({"Orders": openapi(orders)})
    token = await stack.token("alice")

    environment = clean_environment() | {"MCP_CATALOG_PATH": str(tmp_path / "catalogue.json")}

    async def inspect(*arguments: str) -> Any:
        where = [stack.mcp_url(gateway), "--transport", "http", "--header", f"Authorization: Bearer {token}"]
        process = await asyncio.create_subprocess_exec(
            *command, *where, *arguments, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return json.loads(out)

    listed = await inspect("--method", "tools/list")
    assert "Orders___get_order" in {tool["name"] for tool in listed["tools"]}
    called = await inspect(
        "--method", "tools/call", "--tool-name", "Orders___get_order", "--tool-arg", "order_id=A-1"
    )  # fmt: skip
    assert called["structuredContent"]["status"] == "shipped"
