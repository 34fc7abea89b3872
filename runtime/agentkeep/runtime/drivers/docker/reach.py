"""What a container on the network of sessions reaches: a program for two of them, which needs python3 and no more.

Each listens, says so, and tries. A refused connection is as bad as an open one: something answered.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CLOSED", "LISTENING", "OPEN", "PORT", "PROGRAM"]

LISTENING: Final = "listening"
OPEN: Final = "reached"
CLOSED: Final = "reached nothing else"
PORT: Final = 8080
_SECONDS: Final = 1.0  # for an answer, on one machine

_TEXT: Final = f"""
import errno, os, select, socket, threading, time
server = socket.create_server(("0.0.0.0", {PORT}))
def serve():
    while True:
        server.accept()[0].close()
threading.Thread(target=serve, daemon=True).start()
print("{LISTENING}", flush=True)
platform = os.environ["PLATFORM"]
places = [(host, port) for host in os.environ["CLOSED"].split(",") for port in (22, 53, 80, 443, 2375, {PORT})]
places += [(platform, port) for port in (80, 22, 443, {PORT}, 8081)]
answered = (0, errno.ECONNREFUSED, errno.ECONNRESET)
attempts, reached = {{}}, []
poll = select.poll()
for place in places:
    client = socket.socket()
    client.setblocking(False)
    result = client.connect_ex(place)
    if result == errno.EINPROGRESS:
        attempts[client.fileno()] = client, place
        poll.register(client, select.POLLOUT)
    elif result in answered:
        reached.append(place)
deadline = time.monotonic() + {_SECONDS}
while attempts and (left := deadline - time.monotonic()) > 0:
    for number, _ in poll.poll(left * 1000):
        client, place = attempts.pop(number)
        poll.unregister(number)
        if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in answered:
            reached.append(place)
for host, port in reached:
    print(f"{OPEN} {{host}}:{{port}}")
print("{CLOSED}", flush=True)
time.sleep(float(os.environ["STAY"]))
"""
PROGRAM: Final = ("python3", "-c", _TEXT)
