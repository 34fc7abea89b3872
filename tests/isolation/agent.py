"""The agent under attack and attacking: an ordinary AgentCore application, made with the public SDK."""

import ctypes
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import attacks
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()
kept: list[Any] = []


@app.entrypoint
def invoke(payload: dict[str, Any]) -> Any:
    os.environ.update(payload.pop("environment", {}))  # where it is started without
    if payload["do"] == "plant":
        return plant(payload["name"], payload["port"], payload["key"])
    target = attacks.Target(**payload["target"])
    if payload["do"] == "attack":
        only = payload.get("only")
        chosen = {name: function for name, function in attacks.ATTACKS.items() if only in (None, name)}
        return {name: attempt(function, target) for name, function in chosen.items()}
    return {name: function(target) for name, function in attacks.CONTAINED.items()}


def attempt(function: attacks.Attack, target: attacks.Target) -> list[str]:
    try:
        return ["succeeded", repr(function(target))[:300]]
    except (OSError, ValueError, LookupError) as error:
        return ["failed", f"{type(error).__name__}: {error}"]


def plant(name: str, port: int, key: int) -> str:
    """One of everything that could leak, under this session's name."""
    for place in ("/tmp", "/dev/shm", "/var/tmp", "/home/agent"):
        with open(f"{place}/{name}", "w") as file:
            file.write(os.environ["TOKEN"])
    kept.append(name + os.environ["TOKEN"])
    kept.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", name]))
    kept.append(ctypes.CDLL(None).shmget(key, 4096, 0o1666))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(f"\0{name}")
    unix.listen()
    for server in (unix, socket.create_server(("127.0.0.1", port))):
        threading.Thread(target=serve, args=(server, name), daemon=True).start()
    return "planted"


def serve(server: socket.socket, name: str) -> None:
    while True:
        client, _ = server.accept()
        with client:
            client.sendall(name.encode())


app.run()
