"""An ordinary agent that says what its unmodified boto3 signs with, and uses it on its user's memory; or, if asked,
tries a role by the platform's STS, or hosts outside."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError


class Agent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.say({"status": "Healthy"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "assume" in asked:
            return self.say(assumed(asked["assume"]))
        if "reach" in asked:
            return self.say({url: why_not_reached(url) for url in asked["reach"]})
        keys = boto3.Session().get_credentials().get_frozen_credentials()
        client = boto3.client("bedrock-agentcore")
        place = {"memoryId": asked["memory"], "sessionId": asked["session"]}

        def events(actor: str) -> Any:
            try:
                return len(client.list_events(actorId=actor, **place)["events"])
            except ClientError as error:
                return error.response["Error"]["Code"]

        said = {"conversational": {"content": {"text": "hello"}, "role": "USER"}}
        client.create_event(actorId=asked["user"], eventTimestamp=int(time.time()), payload=[said], **place)
        return self.say(
            {
                "keys": [keys.access_key, keys.secret_key, keys.token],
                "own": events(asked["user"]),
                "others": events("bob" if asked["user"] == "alice" else "alice"),
            }
        )

    def say(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def assumed(role: dict[str, str]) -> dict[str, Any]:
    """Who the agent is to the platform, and how it is refused another role there."""
    sts = boto3.client("sts", endpoint_url="http://169.254.170.2/sts")
    found = {"arn": sts.get_caller_identity()["Arn"]}
    try:
        sts.assume_role_with_web_identity(**role)
    except ClientError as refused:
        found["refused"] = refused.response["Error"]["Code"]
    return found


def why_not_reached(url: str) -> str:
    once = Config(retries={"total_max_attempts": 1})
    try:
        return str(boto3.client("sts", endpoint_url=url, config=once).get_caller_identity()["Arn"])
    except BotoCoreError as error:
        return str(error.kwargs.get("error", error))  # botocore keeps the proxy's answer to itself


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8080), Agent).serve_forever()
