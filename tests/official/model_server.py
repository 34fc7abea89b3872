"""A stand-in for Amazon Bedrock with Bedrock's wire: InvokeModel in the Anthropic messages format.

The suites ask a model to calculate and to look up the weather; this one does it by rule. Everything between the client
and this server is real.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One assistant message: a tool call while a rule asks for one that has no result yet, else text."""
    messages = request["messages"]
    asked = [_text(message) for message in messages if message["role"] == "user" and _text(message)]
    done = {block["name"] for message in messages for block in _blocks(message) if block["type"] == "tool_use"}
    offered = {tool["name"] for tool in request.get("tools", ())}
    calls: list[dict[str, Any]] = []
    if (found := re.search(r"(\d+) (?:times|\*) (\d+)", asked[-1])) and "multiply" in offered - done:
        calls = [{"name": "multiply", "input": {"a": int(found[1]), "b": int(found[2])}}]
    elif "weather" in asked[-1] and "get_weather" in offered - done:
        calls = [{"name": "get_weather", "input": {"city": city}} for city in ("sf", "nyc") if city in asked[-1]]
    content: list[dict[str, Any]] = [
        {"type": "tool_use", "id": f"toolu_{len(messages)}_{index}", **call} for index, call in enumerate(calls)
    ] or [{"type": "text", "text": f"You said {len(asked)} things, the last was: {asked[-1]}"}]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "stand-in",
        "content": content,
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": len(json.dumps(messages)) // 4, "output_tokens": 20},
    }


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _text(message: dict[str, Any]) -> str:
    return " ".join(block["text"] for block in _blocks(message) if block["type"] == "text")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.dumps(answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class ModelServer:
    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"

    @property
    def platform_settings(self) -> dict[str, str]:
        """Makes a platform send every model call here."""
        return {
            "AGENTKEEP_GATEWAY_ROUTES": "*=bedrock",
            "AGENTKEEP_GATEWAY_BEDROCK_ENDPOINT_URL": self.endpoint,
            "AGENTKEEP_GATEWAY_BEDROCK_REGION": "us-west-2",
            "AWS_ACCESS_KEY_ID": "stand-in",
            "AWS_SECRET_ACCESS_KEY": "stand-in",
        }


@contextmanager
def model_server() -> Iterator[ModelServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield ModelServer(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
