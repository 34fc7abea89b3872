"""The agent that the driver contract runs: standard library only, behaving as `SCENARIO` and its requests say.

A driver's test puts this one file into a bundle or image; `python contract_agent.py` must start it, port 8080.
"""

import ctypes
import http.client
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

SCENARIO = os.environ.get("SCENARIO", "")


class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"status": "Healthy"})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.answer(getattr(self, f"do_{request.pop('do')}")(**request))

    def answer(self, reply: object) -> None:
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def do_environment(self) -> dict[str, str]:
        return dict(os.environ)

    def do_place(self) -> dict[str, object]:
        return {"name": __name__, "argv": sys.argv, "cwd": os.getcwd(), "path": sys.path, "pid": os.getpid()}

    def do_write(self, text: str, error: bool = False) -> None:
        stream = sys.stderr if error else sys.stdout
        stream.write(text)

    def do_endpoint(self, path: str) -> str:
        with urllib.request.urlopen(f"http://169.254.170.2{path}", timeout=10) as reply:
            return str(reply.read().decode())

    def do_try_endpoint(self, path: str) -> str | None:
        """None if it answers nobody."""
        try:
            return self.do_endpoint(path)
        except (OSError, http.client.HTTPException):
            return None

    def do_exit(self, code: int) -> None:
        os._exit(code)

    def do_segfault(self) -> None:
        ctypes.string_at(0)

    def do_daemon(self, name: str) -> None:
        leave_a_daemon(name)

    def do_sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def leave_a_daemon(name: str) -> None:
    """A process that leaves its parent, its group and its session, and ignores what can be ignored."""
    ignore = "; ".join(f"signal.signal({number}, signal.SIG_IGN)" for number in (1, 2, 3, 15))
    code = f"import signal, time; {ignore}; time.sleep(600)  # {name}"
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", outer], check=True)


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say_goodbye(*_: object) -> None:
    say("goodbye")
    os._exit(0)


def main() -> None:
    say("hello")
    if SCENARIO == "import error":
        import agentkeep_no_such_module  # type: ignore[import-not-found]  # noqa: F401
    if SCENARIO == "exit":
        sys.stdout.write("leaving\nwithout a last newline")
        raise SystemExit(3)
    if SCENARIO == "slow":
        time.sleep(float(os.environ.get("SLOW_SECONDS", "0.7")))
    if SCENARIO == "daemon":
        leave_a_daemon(os.environ["NAME"])
    if SCENARIO == "silent":
        signal.pause()
    if SCENARIO == "deaf":
        signal.signal(signal.SIGTERM, lambda *_: say("no"))
    if SCENARIO == "polite":
        signal.signal(signal.SIGTERM, say_goodbye)
    # As the public SDK does: a container is reached from outside.
    everywhere = SCENARIO == "everywhere" or "DOCKER_CONTAINER" in os.environ
    host = "0.0.0.0" if everywhere else "127.0.0.1"  # noqa: S104
    server = Server((host, int(os.environ.get("AGENT_PORT", "8080"))), Agent)
    if SCENARIO == "two ports":
        threading.Thread(target=Server((host, 9191), Agent).serve_forever, daemon=True).start()
    if SCENARIO == "thread":
        threading.Thread(target=server.serve_forever).start()  # keeps the process alive when the main script has ended
        return
    server.serve_forever()


if __name__ == "__main__":
    main()
