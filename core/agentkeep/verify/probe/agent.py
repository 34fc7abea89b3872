# ruff: noqa: S104 -- places that every session has are what this is about.
"""The agent: the container contract by the standard library, and what is asked of it.

POST /invocations, a JSON object with `do`:
    plant    name, secret (masked), port, key      one of everything
    attack   target, where, only                   each attack on the list, and its control
    use up                                         what must meet a limit
    keys                                           the session's own keys and workload token, masked
    end      status                                this process, as an agent that crashes

The agent answers other requests while one is under way.
"""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
import time
from typing import Any

from . import containers, endpoint, exhaustion, files, network, plants, power, processes
from .attack import ATTACKS, CONTAINED, ENDPOINT, Attack, NoControl, Target, unmasked

__all__ = ["main"]

PORT = 8080
LONGEST = 400  # characters of evidence
#: Attacks change limits, children and descriptors of this process: one at a time.
_one_at_a_time = threading.Lock()
#: Where the attacks are: importing them puts them on the list.
LISTS = (files, processes, network, power, containers, endpoint, exhaustion)


def attempt(attack: Attack, target: Target) -> list[str]:
    """Outcome and detail. Outcomes: `succeeded`, `failed`, `not run` (with what was raised), `no control`."""
    try:
        found = repr(attack.function(target))
        return ["succeeded", found[:LONGEST]]
    except NoControl as reason:
        return ["no control", str(reason)]
    except (OSError, ValueError, LookupError) as error:
        return ["failed", f"{type(error).__name__}: {error}"[:LONGEST]]
    except Exception as error:
        return ["not run", f"{type(error).__name__}: {error}"[:LONGEST]]


def run(target: Target, where: list[str], only: list[str] | None = None) -> dict[str, Any]:
    """Of each attack the outcome, its control's, and seconds."""
    results = {}
    # Those at the endpoint last: what they are given by mistake is then in this process's memory.
    for attack in sorted(ATTACKS.values(), key=lambda one: ENDPOINT in one.where):
        if not attack.where.intersection(where) or (only is not None and attack.name not in only):
            continue
        began = time.monotonic()
        control = attempt(attack, target.at_oneself()) if target.own.name else ["no control", "nothing is planted here"]
        outcome = attempt(attack, target)
        results[attack.name] = {"outcome": outcome, "control": control, "seconds": round(time.monotonic() - began, 3)}
    return results


class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, {"status": "Healthy"})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        endpoint.workload_token = self.headers.get("WorkloadAccessToken") or endpoint.workload_token
        try:
            self.answer(200, self.asked(request.pop("do"), request))
        except Exception as error:
            self.answer(500, {"error": f"{type(error).__name__}: {error}"})

    def asked(self, what: str, request: dict[str, Any]) -> Any:
        if what == "who":
            return {"session": self.headers.get("X-Amzn-Bedrock-AgentCore-Runtime-Session-Id")}
        with _one_at_a_time:
            match what:
                case "plant":
                    return plants.plant(**{**request, "secret": unmasked(request["secret"])})
                case "attack":
                    return run(Target.of(request["target"]), request["where"], request.get("only"))
                case "use up":
                    return {name: function(Target()) for name, function in CONTAINED.items()}
                case "keys":
                    return endpoint.own_keys_masked()
                case "end":
                    os._exit(int(request["status"]))
        raise ValueError(f"{what!r} is nothing this agent does")

    def answer(self, status: int, reply: object) -> None:
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def main() -> None:
    sys.stdout.write(f"listening on {PORT}, Python {sys.version.split()[0]}\n")
    sys.stdout.flush()
    Server(("0.0.0.0", PORT), Agent).serve_forever()
