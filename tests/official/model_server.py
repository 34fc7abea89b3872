"""A stand-in for Amazon Bedrock with Bedrock's wire: InvokeModel in the Anthropic messages format, Converse, and
ConverseStream.

The suites ask a model to calculate, to look up the weather, and what they said before; this one does it by rule.
Everything between the client and this server is real.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from model_stand_ins import event


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
    ] or [{"type": "text", "text": _reply(asked)}]
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


def converse(request: dict[str, Any]) -> dict[str, Any]:
    """Converse's response: what was said to it, said back; or what memory asks of it, as a document."""
    asked = [_said(message) for message in request["messages"] if message["role"] == "user"]
    wanted = request.get("outputConfig", {}).get("textFormat", {}).get("structure", {}).get("jsonSchema")
    text = _reply(asked) if wanted is None else json.dumps(_remembered(wanted, asked[-1]))
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": text}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": len(json.dumps(request["messages"])) // 4, "outputTokens": 20, "totalTokens": 20},
        "metrics": {"latencyMs": 1},
    }


def converse_stream(request: dict[str, Any]) -> bytes:
    whole = converse(request)
    block = whole["output"]["message"]["content"][0]
    events = {
        "messageStart": {"role": "assistant"},
        "contentBlockDelta": {"delta": block, "contentBlockIndex": 0},
        "contentBlockStop": {"contentBlockIndex": 0},
        "messageStop": {"stopReason": whole["stopReason"]},
        "metadata": {"usage": whole["usage"], "metrics": whole["metrics"]},
    }
    return b"".join(event(name, json.dumps(document).encode()) for name, document in events.items())


def _remembered(wanted: dict[str, Any], prompt: str) -> dict[str, Any]:
    """What there is to remember: each thing the user says of himself is a fact, and a preference where he likes it."""
    found = re.findall(r"<(\w+)>\n(.*?)\n?</\1>", prompt, re.DOTALL)
    data = {mark: [json.loads(line) for line in lines.splitlines()] for mark, lines in found}
    members = json.loads(wanted["schema"])["properties"]
    if "summary" in members:
        before = [one["text"] for one in data["summary"]]
        return {"summary": "\n".join([*before, *_about(data["conversation"]).values()])}
    if "operations" in members:
        known = {one["text"] for one in data["known"]}
        return {
            "operations": [
                {
                    "fact": one["number"],
                    "operation": "SkipMemory" if one["text"] in known else "AddMemory",
                    "record": None,
                    "text": None,
                }
                for one in data["facts"]
            ]
        }
    users = [one for one in data["conversation"] if one["speaker"] == "USER"]
    if "facts" in members:
        return {"facts": [{"fact": text, "messages": [number]} for number, text in _about(users).items()]}
    liked = {number: text for number, text in _about(users).items() if re.search("like|love|enjoy", text)}
    return {
        "preferences": [
            {"preference": text, "context": text, "categories": ["taste"], "messages": [number]}
            for number, text in liked.items()
        ]
    }


def _about(messages: list[dict[str, Any]]) -> dict[int, str]:
    """What the messages say, in the third person, by their numbers."""
    liking = re.compile(r"\bI (?:really |also )?(like|love|enjoy)\b")
    said = {one["number"]: liking.sub(r"The user \1s to eat or do", one["text"]) for one in messages}
    return {number: re.sub(r"\bI\b", "The user", text) for number, text in said.items()}


def _reply(asked: list[str]) -> str:
    return f"You said {len(asked)} things: {' / '.join(asked)}"


def _said(message: dict[str, Any]) -> str:
    return " ".join(block["text"] for block in message["content"] if "text" in block)


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _text(message: dict[str, Any]) -> str:
    return " ".join(block["text"] for block in _blocks(message) if block["type"] == "text")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        kind = "application/json"
        match self.path.rpartition("/")[2]:
            case "converse":
                body = json.dumps(converse(request)).encode()
            case "converse-stream":
                body, kind = converse_stream(request), "application/vnd.amazon.eventstream"
            case _:
                body = json.dumps(answer(request)).encode()
        self.send_response(200)
        self.send_header("content-type", kind)
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
        """Makes a platform send every model call here, memory's own too."""
        return {
            "AGENTKEEP_GATEWAY_ROUTES": "*=bedrock",
            "AGENTKEEP_MEMORY_EXTRACTION_MODEL": "stand-in",
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
