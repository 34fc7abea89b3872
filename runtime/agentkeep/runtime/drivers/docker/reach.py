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
import errno, os, socket, threading, time
server = socket.create_server(("0.0.0.0", {PORT}))
def serve():
    while True:
        server.accept()[0].close()
threading.Thread(target=serve, daemon=True).start()
print("{LISTENING}", flush=True)
closed = [(host, port) for host in os.environ["CLOSED"].split(",") for port in (22, 53, 80, 443, 2375, {PORT})]
closed += [(os.environ["PLATFORM"], port) for port in (22, 443, {PORT}, 8081)]
silence = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EAGAIN)
reached = []
def attempt(host, port):
    with socket.socket() as client:
        client.settimeout({_SECONDS})
        try:
            client.connect((host, port))
        except TimeoutError:
            return
        except OSError as error:
            if error.errno in silence:
                return
        reached.append("{OPEN} %s:%d" % (host, port))
attempts = [threading.Thread(target=attempt, args=each) for each in [(os.environ["PLATFORM"], 80), *closed]]
for each in attempts:
    each.start()
for each in attempts:
    each.join()
print("\\n".join([*reached, "{CLOSED}"]), flush=True)
time.sleep(float(os.environ["STAY"]))
"""
PROGRAM: Final = ("python3", "-c", _TEXT)
