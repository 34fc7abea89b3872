"""An agent that does what agents should not. Payload {"do": ...}; every answer says which instance it is."""

import errno
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

INSTANCE = os.urandom(6).hex()


def fork_without_end(**_):
    made = 0
    try:
        while True:
            if os.fork() == 0:
                time.sleep(600)
                os._exit(0)
            made += 1
    except OSError as error:
        return {"made": made, "error": error.errno}


def daemon(**_):
    """A grandchild of its own session, that outlives its parents."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        os._exit(0)
    return {}


def fill_disk(**_):
    """With one file after the other, since one file has a limit of its own."""
    for number in range(1000):
        try:
            with open(f"/tmp/full-{number}", "wb", buffering=0) as file:
                while True:
                    file.write(b"x" * (1 << 20))
        except OSError as error:
            if error.errno != errno.EFBIG:
                return {"error": error.errno}
    return {}


def fill_memory(**_):
    held = []
    while True:
        held.append(b"x" * (8 << 20))


def write(**_):
    with open("/tmp/mine", "wb") as file:
        file.write(b"x" * 1000)
    return {}


def deaf(**_):
    """To SIGTERM, from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    return {}


def burn(seconds, **_):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return {}


def print_without_end(seconds, **_):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sys.stdout.write("noise " * 2000 + "\n")
    return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"status": "Healthy"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        do = asked.get("do")
        if do == "crash in the answer":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.wfile.flush()
            os._exit(3)
        self.answer({"instance": INSTANCE, **(globals()[do](**asked) if do else {})})

    def answer(self, document):
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def ignore(*_):
    pass


signal.signal(signal.SIGTERM, ignore)
ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
