"""The example's order service, in a process of its own, for users of the development issuer."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tool_stack import ToolStack, tool_stack

from agentkeep.storage.valkey import ValkeyKeyValueStore

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass
class OrderService:
    url: str
    log: Path

    @property
    def calls(self) -> list[dict[str, Any]]:
        """As it logged them itself."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def target(self) -> dict[str, Any]:
        """The model's targetConfiguration."""
        document = json.loads((EXAMPLES / "order_service" / "openapi.json").read_text())
        return {"mcp": {"openApiSchema": {"inlinePayload": json.dumps({**document, "servers": [{"url": self.url}]})}}}


@pytest.fixture
async def stack(store: ValkeyKeyValueStore) -> AsyncIterator[ToolStack]:
    async with tool_stack(store) as stack:
        yield stack


@pytest.fixture
async def order_service(stack: ToolStack, tmp_path: Path) -> AsyncIterator[OrderService]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    service = OrderService(f"http://127.0.0.1:{port}", tmp_path / "orders.log")
    with service.log.open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "main:app", "--port", str(port), "--log-level", "warning"),
            cwd=EXAMPLES / "order_service",
            stdout=log,
            env={
                "PATH": os.environ["PATH"],
                "ORDER_SERVICE_ISSUER": stack.issuer.url,
                "ORDER_SERVICE_JWKS_URL": f"{stack.issuer.url}/jwks.json",
                "ORDER_SERVICE_AUDIENCE": "agentkeep",
            },
        )
    try:
        async with aiohttp.ClientSession() as client, asyncio.timeout(60):
            while True:
                assert process.returncode is None, "the order service ended"
                try:
                    async with client.get(f"{service.url}/openapi.json"):
                        break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.05)
        yield service
    finally:
        process.terminate()
        await process.wait()
