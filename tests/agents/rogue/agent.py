"""An agent that is no web application: it sends whatever bytes its payload says, to clients and to the platform.

{"once": hex, "again": hex, "count": n}: `once`, then `again` so many times; {"ping": ...} the same for /ping.
"""

import json
import socket
import threading
from typing import Any

HEALTHY = b'{"status":"Healthy"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 20\r\n\r\n" + HEALTHY
ping: dict[str, Any] = {"once": OK.hex()}


def receive(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0]) if lengths else 0
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def play(connection: socket.socket, script: dict[str, Any]) -> None:
    connection.sendall(bytes.fromhex(script.get("once", "")))
    block = bytes.fromhex(script.get("again", "")) * 1000
    for _ in range(script.get("count", 0) // 1000):
        connection.sendall(block)


def serve(connection: socket.socket) -> None:
    global ping
    with connection:
        try:
            head, body = receive(connection)
            if head.startswith(b"GET /ping"):
                play(connection, ping)
                return
            script = json.loads(body or b"{}")
            ping = script.get("ping", ping)
            play(connection, script if "once" in script else {"once": OK.hex()})
        except OSError:
            pass


listener = socket.create_server(("0.0.0.0", 8080), backlog=100)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=serve, args=(accepted,), daemon=True).start()
