"""The example's order service over its wire: who may see what."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
from tool_stack import ToolStack

ORDER_SERVICE = Path(__file__).parents[2] / "examples" / "order_service"


async def test_its_openapi_document_is_the_services(order_service: Any) -> None:
    async with aiohttp.ClientSession() as client, client.get(f"{order_service.url}/openapi.json") as response:
        assert await response.json() == json.loads((ORDER_SERVICE / "openapi.json").read_text())


async def test_a_customer_sees_his_own_orders_only(order_service: Any, stack: ToolStack) -> None:
    """GOV-4: by the user's own token."""
    alice, forged = await stack.token("alice"), (await stack.token("bob"))[:-8] + "AAAAAAAA"
    async with aiohttp.ClientSession(order_service.url) as client:

        async def status(order: str, token: str | None) -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with client.get(f"/orders/{order}", headers=headers) as response:
                return response.status

        assert await status("A-1001", alice) == 200
        assert await status("B-2002", alice) == 404
        assert await status("Z-9999", alice) == 404
        assert await status("nonsense", alice) == 422
        for token in (None, "nonsense", forged):
            assert await status("A-1001", token) == 401
    assert [(call["customer"], call["order_id"], call["known"]) for call in order_service.calls] == [
        ("alice", "A-1001", True),
        ("alice", "B-2002", False),
        ("alice", "Z-9999", False),
    ]


async def test_refunds_are_of_delivered_orders_once(order_service: Any, stack: ToolStack) -> None:
    headers = {"Authorization": f"Bearer {await stack.token('alice')}"}
    async with aiohttp.ClientSession(order_service.url, headers=headers) as client:

        async def refund(order: str, amount: int) -> tuple[int, Any]:
            asked = {"amount": amount, "reason": "it arrived broken"}
            async with client.post(f"/orders/{order}/refunds", json=asked) as response:
                return response.status, await response.json()

        assert (await refund("A-1001", 10))[0] == 409  # on its way still
        assert (await refund("A-1002", 1000))[0] == 409  # more than it cost
        assert (await refund("A-1002", 0))[0] == 422
        assert (await refund("B-2002", 10))[0] == 404
        made = {"refund_id": "R-A-1002", "order_id": "A-1002", "amount": 89, "status": "requested"}
        assert await refund("A-1002", 89) == (201, made)
        assert await refund("A-1002", 5) == (201, made)


async def test_its_document_is_written_anew_by_its_own_script(tmp_path: Path) -> None:
    for name in ("main.py", "orders.json", "openapi.py"):
        (tmp_path / name).write_text((ORDER_SERVICE / name).read_text())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "openapi.py", cwd=tmp_path, env={"PATH": os.environ["PATH"]}
    )
    assert await process.wait() == 0
    assert (tmp_path / "openapi.json").read_text() == (ORDER_SERVICE / "openapi.json").read_text()
