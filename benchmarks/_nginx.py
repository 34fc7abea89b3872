"""nginx as a plain proxy: what a front costs that looks at nothing. Installed, or unpacked from Debian's package."""

from __future__ import annotations

import fcntl
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

#: Between runs.
CACHE = Path("/var/tmp/agentkeep-tests-nginx")

_CONFIGURATION = """
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
daemon off;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    proxy_request_buffering off;
    proxy_buffering off;
    proxy_http_version 1.1;
    proxy_read_timeout 3600s;
    proxy_connect_timeout 1s;
    # A call may have begun: only its client knows whether to repeat it. Where nobody listens, none has.
    proxy_next_upstream {next};
    large_client_header_buffers 8 32k;
    keepalive_timeout 65s;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    upstream agents {{
        {servers}
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        merge_slashes off;
        location / {{
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_pass http://agents;
        }}
    }}
}}
"""


def _unpacked() -> str:
    """Debian's, in a folder of its own: installed, it would start by itself, on port 80."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        binary = CACHE / "usr" / "sbin" / "nginx"
        if not binary.exists():
            try:
                subprocess.run(["apt-get", "download", "--quiet", "nginx"], cwd=CACHE, check=True, capture_output=True)
                [package] = CACHE.glob("nginx_*.deb")
                subprocess.run(["dpkg-deb", "--extract", package, CACHE], check=True, capture_output=True)
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                raise FileNotFoundError(f"nginx cannot be had ({error}): apt-get install nginx-light") from None
    return str(binary)


class Nginx:
    """In front of `ports`, in turn, on a port of its own; ends with the `with` block. Raises FileNotFoundError where
    nginx cannot be had."""

    def __init__(self, folder: Path, ports: Sequence[int], *, try_next: bool = False) -> None:
        binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or _unpacked()
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        servers = "\n        ".join(f"server 127.0.0.1:{port} max_fails=1 fail_timeout=1s;" for port in ports)
        configuration = folder / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                folder=folder, port=self.port, servers=servers, next="error timeout" if try_next else "off"
            )
        )
        (folder / "error.log").touch()
        self._process = subprocess.Popen([binary, "-p", str(folder), "-c", str(configuration)])
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((folder / "error.log").read_text()[-2000:]) from None
                time.sleep(0.02)
        #: Whose CPU is counted: the one that does the work.
        self.worker = psutil.Process(self._process.pid).children()[0].pid

    def __enter__(self) -> Nginx:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
