"""A whole embedded platform in a process of its own, that can be asked what it holds; and signed invocations for it.

Run as a program this is that process: it starts the platform on a folder, prints where it serves, and answers each line
of its standard input with a document of figures. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import subprocess
import sys
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import psutil
import urllib3
import uvloop
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from agentkeep.embedded.platform import EmbeddedPlatform
from agentkeep.embedded.settings import EmbeddedSettings

REGION = "us-east-1"
SERVICE = "bedrock-agentcore"
SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
LIGHT_AGENT = Path(__file__).with_name("_light_agent.py")
_ENDING = 30.0

# The process.

#: Items of the store by family: a partition's first two names.
_ITEMS = """
local found, cursor = {}, '0'
repeat
  local page = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    local kind = redis.call('TYPE', key).ok
    local size = kind == 'hash' and redis.call('HLEN', key) or kind == 'zset' and redis.call('ZCARD', key) or 1
    local family = string.match(key, '^[^/]*/?[^/]*')
    found[family] = (found[family] or 0) + size
  end
until cursor == '0'
return cjson.encode(found)
"""


async def _items(folder: Path) -> dict[str, int]:
    near, far = folder / "valkey" / "valkey.sock", folder / "valkey" / "runtime" / "valkey.sock"
    reader, writer = await asyncio.open_unix_connection(str(near if near.exists() else far), limit=1 << 24)
    writer.write(b"*3\r\n$4\r\nEVAL\r\n$%d\r\n%b\r\n$1\r\n0\r\n" % (len(_ITEMS), _ITEMS.encode()))
    length = int((await reader.readline())[1:])
    found: dict[str, int] = json.loads((await reader.readexactly(length + 2))[:-2])
    writer.close()
    return found


def _descriptors() -> Counter[str]:
    kinds: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            kinds[os.readlink(f"/proc/self/fd/{number}").partition(":")[0]] += 1
        except OSError:
            pass  # the one that lists them
    return kinds


async def _counted(folder: Path) -> dict[str, Any]:
    """What the platform holds. What begins with an underscore tells where a growth comes from."""
    gc.collect()
    me = psutil.Process()
    valkey = next(child for child in me.children() if "valkey" in child.name())
    family = Counter(child.name() for child in me.children(recursive=True))
    objects = Counter(type(one).__name__ for one in gc.get_objects())
    tasks = Counter(task.get_name().partition("-")[0] for task in asyncio.all_tasks())
    items = await _items(folder)
    return {
        "memory_mb": round(me.memory_info().rss / 1e6, 1),
        "valkey_mb": round(valkey.memory_info().rss / 1e6, 1),
        "objects": sum(objects.values()),
        "tasks": sum(tasks.values()),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": sum(_descriptors().values()),
        "processes": sum(family.values()),
        "control_groups": len({one.name for one in Path("/sys/fs/cgroup").glob(f"**/agentkeep/{os.getpid()}-*")}),
        "mounts": sum(str(folder) in line for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "driver_files": sum(len(files) for _, _, files in os.walk(folder / "driver")),
        "items": sum(items.values()),
        "cpu_s": round(sum(me.cpu_times()[:2]), 2),
        "_objects": dict(objects),
        "_tasks": dict(tasks),
        "_descriptors": dict(_descriptors()),
        "_processes": dict(family),
        "_items": items,
    }


async def _serve(folder: Path) -> None:
    logging.basicConfig(level="ERROR")
    platform = EmbeddedPlatform(folder, 0, EmbeddedSettings())
    await platform.start()
    gc.collect()
    gc.freeze()  # as `agentkeep up` does
    key = platform.operator
    served = {"url": platform.url, "key": key.access_key_id, "secret": key.secret_access_key, "pid": os.getpid()}
    print(json.dumps(served), flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(json.dumps(await _counted(folder)), flush=True)
    await platform.stop()


# Whoever started it.


class Operator:
    """An operator of the platform at `url`."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        self.url = url
        self.credentials = credentials

    def client(self, service: str, **config: Any) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.credentials.access_key,
            aws_secret_access_key=self.credentials.secret_key,
            config=Config(**({"retries": {"total_max_attempts": 1}, "read_timeout": 120} | config)),
        )

    def deploy(self, main: Path = LIGHT_AGENT, name: str = "load", requirements: str = "", **definition: Any) -> str:
        """An agent of one file; its ARN, once it is READY."""
        bundle = io.BytesIO()
        with zipfile.ZipFile(bundle, "w") as archive:
            archive.writestr("agent.py", main.read_text())
            archive.writestr("requirements.txt", requirements)
        key = f"{name}-{uuid.uuid4().hex}.zip"
        self.request("PUT", f"/artifacts/agents/{key}", bundle.getvalue())
        control = self.client("bedrock-agentcore-control")
        code = {"code": {"s3": {"bucket": "agents", "prefix": key}}, "runtime": "PYTHON_3_11"}
        artifact = {"codeConfiguration": {**code, "entryPoint": ["agent.py"]}}
        made = control.create_agent_runtime(
            **{
                "agentRuntimeName": name,
                "agentRuntimeArtifact": artifact,
                "roleArn": "arn:aws:iam::000000000000:role/agents",
                "networkConfiguration": {"networkMode": "PUBLIC"},
                **definition,
            }
        )
        while True:
            found = control.get_agent_runtime(agentRuntimeId=made["agentRuntimeId"])
            if found["status"] == "READY":
                return str(found["agentRuntimeArn"])
            if found["status"] != "CREATING":
                raise RuntimeError(found.get("failureReason", found["status"]))
            time.sleep(0.05)

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Of the platform's own routes."""
        request = AWSRequest(method, self.url + path, data=body)
        SigV4Auth(self.credentials, SERVICE, REGION).add_auth(request)
        with urllib3.PoolManager(retries=False, timeout=60) as http:
            answer = http.request(method, request.url, body=body, headers=dict(request.headers.items()))
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.data[:300]!r}")
        return answer.data


class Platform(Operator):
    """Started with `settings` (AGENTKEEP_... variables) on `folder`; ends with the `with` block."""

    def __init__(self, folder: Path, **settings: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "AGENTKEEP_"))}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean | settings,
        )
        served = self._line()
        super().__init__(served["url"], Credentials(served["key"], served["secret"]))
        self.pid: int = served["pid"]
        self.port = int(self.url.rsplit(":", 1)[1])

    def __enter__(self) -> Platform:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the platform ended")
        document: dict[str, Any] = json.loads(line)
        return document

    def count(self) -> dict[str, Any]:
        """What it holds now; see `_counted`."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._line()

    def invocation(self, arn: str, session: str, body: bytes, user: str | None = None) -> Signed:
        return invocation(self.credentials, self.url, arn, session, body, user)


class Signed:
    """A request's bytes, as boto3 sends them; signed once, for as many calls as are wanted within five minutes."""

    def __init__(
        self, credentials: Credentials, url: str, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> None:
        host = url.partition("//")[2]
        request = AWSRequest(method, f"http://{host}{path}", data=body, headers=dict(headers))
        SigV4Auth(credentials, SERVICE, REGION).add_auth(request)
        fields: Mapping[str, str] = dict(request.headers.items()) | {
            "Host": host,
            "User-Agent": "Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1 os/linux#6.1 md/arch#x86_64 lang/python#3.11.7 "
            "md/pyimpl#CPython m/Z,b cfg/retry-mode#standard Botocore/1.44.5",
            "amz-sdk-request": "attempt=1; max=3",
            "Content-Length": str(len(body)),
        }
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self._head = "\r\n".join(lines).encode() + b"\r\namz-sdk-invocation-id: "
        self._body = body

    def next(self) -> bytes:
        """One call, another than those before: its invocation id is new."""
        return b"%b%b\r\n\r\n%b" % (self._head, str(uuid.uuid4()).encode(), self._body)


def invocation(
    credentials: Credentials, url: str, arn: str, session: str, body: bytes, user: str | None = None
) -> Signed:
    headers = {SESSION: session, "Content-Type": "application/json", "Accept": "application/json"}
    if user is not None:
        headers["X-Amzn-Bedrock-AgentCore-Runtime-User-Id"] = user
    path = f"/runtimes/{quote(arn, safe='')}/invocations?qualifier=DEFAULT"
    return Signed(credentials, url, "POST", path, body, headers)


def stop(credentials: Credentials, url: str, arn: str, session: str) -> Signed:
    """StopRuntimeSession."""
    path = f"/runtimes/{quote(arn, safe='')}/stopruntimesession?qualifier=DEFAULT"
    body = b'{"clientToken":"%b"}' % str(uuid.uuid4()).encode()
    return Signed(credentials, url, "POST", path, body, {SESSION: session, "Content-Type": "application/json"})


async def exchange(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """An answer: status, headers (lower-case) and body. Raises asyncio.IncompleteReadError where it is cut."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
    if "chunked" not in headers.get("transfer-encoding", ""):
        return int(lines[0][9:12]), headers, await reader.readexactly(int(headers["content-length"]))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return int(lines[0][9:12]), headers, body


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1])))
