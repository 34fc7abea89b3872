"""An agent that writes a memory event in each call, acknowledged before it answers; and says who it is and when.

Payload {"memory": id, "actor": user, "pause": s}; answer {"instance", "count", "born", "began", "ended" (nanoseconds of
the machine's monotonic clock), "event"}.
"""

import json
import os
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3

INSTANCE = os.urandom(8).hex()
BORN = time.monotonic_ns()
count = 0
counting = threading.Lock()
local = threading.local()


def memory():
    if not hasattr(local, "client"):
        local.client = boto3.session.Session().client("bedrock-agentcore")
    return local.client


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, {"status": "Healthy"})

    def do_POST(self) -> None:
        global count
        began = time.monotonic_ns()
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        session = self.headers["x-amzn-bedrock-agentcore-runtime-session-id"]
        with counting:
            count += 1
            number = count
        try:
            event = memory().create_event(
                memoryId=asked["memory"],
                actorId=asked["actor"],
                sessionId=session,
                eventTimestamp=datetime.now(UTC),
                payload=[{"blob": f"{INSTANCE} {number}"}],
            )["event"]["eventId"]
        except Exception as error:
            self.answer(500, {"error": repr(error)})
            return
        time.sleep(asked.get("pause", 0))
        said = {"instance": INSTANCE, "count": number, "born": BORN, "began": began, "event": event}
        self.answer(200, said | {"ended": time.monotonic_ns()})

    def answer(self, status, document) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


Server(("0.0.0.0", 8080), Handler).serve_forever()
