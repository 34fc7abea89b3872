"""An ordinary agent that uses AWS and other hosts as its user, by whatever its libraries find in its environment."""

import json
import os
import socket
import ssl
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3

os.environ["AWS_CA_BUNDLE"] = os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("ca.pem"))


class Agent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.say({"status": "Healthy"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            said = getattr(self, asked.pop("do"))(**asked)
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        self.say(said)

    def identity(self, url: str) -> dict[str, Any]:
        """In AWS."""
        return {"arn": boto3.client("sts", endpoint_url=url).get_caller_identity()["Arn"]}

    def fetch(self, url: str) -> dict[str, Any]:
        """By the standard library, which knows of the same proxy."""
        with urllib.request.urlopen(url, timeout=10) as answer:
            return {"body": answer.read().decode()}

    def directly(self, host: str, port: int) -> dict[str, Any]:
        with socket.create_connection((host, port), timeout=5):
            return {"connected": True}

    def stay(self, host: str, port: int) -> dict[str, Any]:
        """Keeps a connection through the proxy, and sends a piece of something now and then."""
        context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        plain = socket.create_connection(("169.254.170.2", 80), timeout=10)
        plain.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        status = plain.recv(1000)
        tls = context.wrap_socket(plain, server_hostname=host)

        def drip() -> None:
            while True:
                tls.sendall(b"x")
                time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        return {"status": status.decode()}

    def proxies(self) -> dict[str, Any]:
        return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}

    def say(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8080), Agent).serve_forever()
