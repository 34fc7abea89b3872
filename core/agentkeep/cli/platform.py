"""`agentkeep up`, `down`, `env`, `doctor`: the platform itself."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import psutil
import typer
from pydantic import ValidationError

from agentkeep.cli.deployment import Deployment, Running, write_credentials
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir
from agentkeep.cli.output import AsJson, CommandError, console, progress, show
from agentkeep.core.errors import AgentkeepError

START_SECONDS = 60
STOP_SECONDS = 30


def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Loopback port to listen on; 0 picks a free one.")] = 4780,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the platform is ready.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the platform: all planes in one process, listening on loopback."""
    data_dir = data_dir.absolute()
    running = Running.read(data_dir)
    if running and running.alive:
        raise CommandError(
            f"A platform (process {running.pid}) already runs with data folder {data_dir} at {running.endpoint}.",
            "Use it, or stop it first with `agentkeep down`.",
        )
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if detach:
        running = _start_detached(port, data_dir, as_json)
        show({"endpoint": running.endpoint, "pid": running.pid}, as_json, f"agentkeep is ready at {running.endpoint}")
        return
    _serve(port, data_dir, as_json)


def _serve(port: int, data_dir: Path, as_json: bool) -> None:
    # The planes are heavy to import, and the other commands need none of them.
    from agentkeep.embedded.platform import EmbeddedPlatform, run

    def ready(platform: EmbeddedPlatform) -> None:
        write_credentials(data_dir, platform.operator.access_key_id, platform.operator.secret_access_key)
        started = psutil.Process().create_time()
        running = Running(platform.url, os.getpid(), started, platform.deployment.region, platform.deployment.account)
        running.write(data_dir)
        show(
            {"endpoint": running.endpoint, "pid": running.pid},
            as_json,
            f"agentkeep is ready at [bold]{running.endpoint}[/] (Ctrl-C stops it)",
            f'Point boto3 and the SDKs at it:  eval "$({_me()} env --data-dir {shlex.quote(str(data_dir))})"',
        )

    try:
        run(data_dir, port, ready)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise CommandError(f"A setting is wrong: {wrong}.", "docs/settings.md explains every setting.") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise CommandError(f"The platform cannot start: {error}.") from None
        raise CommandError(
            f"Port {port} of this machine's loopback is taken by another program.",
            f"Choose another with --port, or stop that program (`ss -ltnp sport = :{port}` names it).",
        ) from None
    except AgentkeepError as error:
        raise CommandError(f"The platform cannot start: {error}.", "`agentkeep doctor` tries what it needs.") from None
    finally:
        mine = Running.read(data_dir)
        if mine and mine.pid == os.getpid():
            (data_dir / "platform.json").unlink(missing_ok=True)


def _start_detached(port: int, data_dir: Path, as_json: bool) -> Running:
    log_path = data_dir / "platform.log"
    command = [sys.executable, "-m", "agentkeep.cli", "up", "--port", str(port), "--data-dir", str(data_dir)]
    command.append("--json")  # what it says goes into the log, its last line to whoever waits here
    with open(log_path, "ab", opener=_private) as log:
        begins = log.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=data_dir
        )
    with progress("starting agentkeep", as_json):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            running = Running.read(data_dir)
            if running and running.pid == process.pid:
                return running
            if process.poll() is not None:
                break
            time.sleep(0.05)
    said = log_path.read_bytes()[begins:].decode(errors="replace")
    if process.poll() is None:
        process.terminate()
        process.wait(STOP_SECONDS)
        raise CommandError(
            f"The platform was not ready within {START_SECONDS} seconds and was stopped.", f"Its log: {log_path}"
        )
    try:
        # It said why, as any command does with --json.
        refused = json.loads(said.strip().splitlines()[-1])
        raise CommandError(refused["error"], refused["fix"])
    except (ValueError, KeyError, TypeError, IndexError):
        tail = "\n".join(said.splitlines()[-15:])
        raise CommandError(
            f"The platform ended with status {process.returncode} before it was ready. Its last words:\n{tail}",
            f"The whole log: {log_path}",
        ) from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def down(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Stop the platform: sessions end, nothing acknowledged is lost."""
    data_dir = data_dir.absolute()
    running = Running.read(data_dir)
    if running is None or not running.alive:
        (data_dir / "platform.json").unlink(missing_ok=True)
        show({"stopped": False}, as_json, f"No platform is running with data folder {data_dir}.")
        return
    if not running.pid:
        raise CommandError(
            f"The platform at {running.endpoint} was not started by `agentkeep up`.",
            "Stop it as it was started, e.g. with `docker compose down`.",
        )
    os.kill(running.pid, signal.SIGTERM)
    with progress("stopping agentkeep", as_json):
        deadline = time.monotonic() + STOP_SECONDS
        while running.alive and time.monotonic() < deadline:
            time.sleep(0.05)
    if running.alive:
        raise CommandError(
            f"Process {running.pid} has not stopped within {STOP_SECONDS} seconds.",
            f"It may be ending a long answer: wait, or `kill -9 {running.pid}`; its sessions die with it.",
        )
    show({"stopped": True}, as_json, "Stopped.")


def env(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Print what points boto3, the AgentCore SDK and LangGraph here, as shell exports."""
    variables = Deployment(data_dir).environment()
    if as_json:
        show(variables, as_json)
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    print("unset AWS_SESSION_TOKEN AWS_PROFILE AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")


def doctor(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Try what this machine can and cannot do, with the fix for each."""
    from agentkeep.embedded.doctor import examine

    findings = examine(data_dir)
    marks = {"ok": "[green]ok  [/]", "warning": "[yellow]warn[/]", "error": "[red]FAIL[/]"}
    show([asdict(finding) for finding in findings], as_json)
    if not as_json:
        for finding in findings:
            console.print(f"{marks[finding.severity]} {finding.check}: {finding.detail}", highlight=False)
            if finding.fix and finding.severity != "ok":
                console.print(f"     → {finding.fix}", highlight=False)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


def _me() -> str:
    """How this command was called, for lines a person pastes."""
    return shlex.quote(sys.argv[0] if sys.argv[0].endswith("agentkeep") else "agentkeep")
