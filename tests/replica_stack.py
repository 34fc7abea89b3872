"""Five services of which the runtime plane has several replicas, behind a front that takes turns: the stack of tests
that kill replicas, freeze them and ask any of them for any session.

The front is a TCP one: each connection goes to the next replica, whole, and on to the one after if that takes none. It
knows nothing of sessions, as the edge of a deployment need not.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import boto3
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from service_processes import ServiceProcess, Services, free_port, running_services

__all__ = ["Front", "ReplicaStack", "deploy", "running_replicas"]


class Front:
    """Round robin over `ports`, in a thread of its own. `url` stays the same, whatever becomes of the replicas."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.port = 0
        self._next = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self._ready = threading.Event()
        self._stopping = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = next(self._next)
        try:
            for turn in range(len(self.ports)):
                port = self.ports[(first + turn) % len(self.ports)]
                try:
                    async with asyncio.timeout(1):
                        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except (OSError, TimeoutError):
                    continue
            else:
                return
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_copy(reader, up_writer))
                    group.create_task(_copy(up_reader, writer))
            finally:
                up_writer.transport.abort()
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


@dataclass
class ReplicaStack:
    services: Services
    replicas: list[ServiceProcess]
    front: Front
    operator: dict[str, str] = field(default_factory=dict)

    def client(self, service: str = "bedrock-agentcore", replica: int | None = None, **options: Any) -> Any:
        """An unmodified client: through the front, or to one replica."""
        options.setdefault("retries", {"total_max_attempts": 1})
        options.setdefault("read_timeout", 60)
        return boto3.client(
            service,
            endpoint_url=self.front.url if replica is None else self.replicas[replica].url,
            region_name="us-east-1",
            aws_access_key_id=self.operator["accessKeyId"],
            aws_secret_access_key=self.operator["secretAccessKey"],
            config=Config(**options),
        )

    def kill(self, replica: int) -> None:
        """SIGKILL."""
        self.replicas[replica].kill()

    def freeze(self, replica: int) -> None:
        self.replicas[replica].signal(signal.SIGSTOP)

    def thaw(self, replica: int) -> None:
        self.replicas[replica].signal(signal.SIGCONT)

    def start(self, replica: int) -> None:
        """Again, after its end."""
        self.replicas[replica].start()
        self.replicas[replica].wait()


@contextmanager
def running_replicas(
    folder: Path, replicas: int = 3, *, shared_volume: bool = True, **settings: str
) -> Iterator[ReplicaStack]:
    """All ready. `shared_volume`: the replicas keep their data in one folder, as those of a compose deployment do."""
    with running_services(folder, **settings) as services:
        first = services["runtime"]
        all_of_them = [first]
        try:
            for number in range(2, replicas + 1):
                data = first.environment["AGENTKEEP_SERVICE_DATA"] + ("" if shared_volume else f"-{number}")
                port, internal = free_port(), free_port()
                own = {
                    "AGENTKEEP_SERVICE_DATA": data,
                    "AGENTKEEP_SERVICE_PORT": str(port),
                    "AGENTKEEP_SERVICE_INTERNAL_PORT": str(internal),
                }
                replica = dataclasses.replace(
                    first,
                    environment={**first.environment, **own},
                    port=port,
                    internal_port=internal,
                    process=None,
                    log_name=f"runtime-{number}",
                )
                services.by_name[f"runtime-{number}"] = replica
                all_of_them.append(replica)
                replica.start()
            for replica in all_of_them:
                replica.wait()
            front = Front([replica.port for replica in all_of_them])
            front.start()
            try:
                yield ReplicaStack(services, all_of_them, front, services.operator())
            finally:
                front.stop()
        finally:
            for replica in all_of_them:
                if replica.process is not None and replica.process.poll() is None:
                    replica.signal(signal.SIGCONT)


def deploy(stack: ReplicaStack, agent: Path, name: str, **settings: Any) -> str:
    """The ARN of a runtime made from the agent's folder, READY. Its code and the order to make it go to whichever
    replica has its turn."""
    archive = io.BytesIO()
    with ZipFile(archive, "w") as bundle:
        for file in sorted(agent.iterdir()):
            if file.is_file():
                bundle.write(file, file.name)
    body = archive.getvalue()
    url = f"{stack.front.url}/artifacts/agentkeep/{name}.zip"
    request = AWSRequest("PUT", url, data=body)
    credentials = Credentials(stack.operator["accessKeyId"], stack.operator["secretAccessKey"])
    SigV4Auth(credentials, "bedrock-agentcore", "us-east-1").add_auth(request)
    with urllib3.PoolManager(retries=False, timeout=30) as http:
        answer = http.request("PUT", url, body=body, headers=dict(request.headers.items()))
    assert answer.status in (200, 201), answer.data
    control = stack.client("bedrock-agentcore-control")
    code = {
        "code": {"s3": {"bucket": "agentkeep", "prefix": f"{name}.zip"}},
        "runtime": "PYTHON_3_11",
        "entryPoint": ["agent.py"],
    }
    made = control.create_agent_runtime(
        agentRuntimeName=name,
        agentRuntimeArtifact={"codeConfiguration": code},
        roleArn="arn:aws:iam::000000000000:role/agentkeep",
        networkConfiguration={"networkMode": "PUBLIC"},
        **{"environmentVariables": {"KEY": "which each replica must be able to open"}, **settings},
    )
    deadline = time.monotonic() + 120
    while (state := control.get_agent_runtime(agentRuntimeId=made["agentRuntimeId"]))["status"] == "CREATING":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert state["status"] == "READY", state
    return str(made["agentRuntimeArn"])
