"""`agentkeep verify`: shows that a deployment keeps what it promises."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import boto3
import typer
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError
from rich.table import Table
from rich.text import Text
from urllib3.exceptions import HTTPError

from agentkeep.cli.deployment import Deployment, Running
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir
from agentkeep.cli.output import AsJson, CommandError, console, notes, printable, show
from agentkeep.cli.users import ISSUER_PATH, request_token
from agentkeep.verify.bundle import FOLDER
from agentkeep.verify.report import Exit, Report
from agentkeep.verify.sessions import Wire
from agentkeep.verify.stage import Stage
from agentkeep.verify.suite import Suite

logger = logging.getLogger(__name__)

app = typer.Typer(help="Show that a deployment keeps what it promises.", no_args_is_help=True)

MOST_SESSIONS = 100


class AtEndpoint(Deployment):
    """A deployment reached by its URL and the AWS credentials of whoever calls: no data folder is there."""

    def __init__(self, endpoint: str, account: str) -> None:
        session = boto3.Session()
        found = session.get_credentials()
        if found is None:
            raise CommandError(
                "There are no AWS credentials to reach the deployment with.",
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to an operator's key, or AWS_PROFILE.",
            )
        self.data_dir = Path("/nonexistent")
        self.running = Running(endpoint.rstrip("/"), 0, 0.0, session.region_name or "us-east-1", account)
        self._found = found.get_frozen_credentials()

    @cached_property
    def credentials(self) -> Credentials:
        return Credentials(self._found.access_key, self._found.secret_key, self._found.token)


@app.command()
def isolation(
    sessions: Annotated[
        int, typer.Option(min=2, max=MOST_SESSIONS, help="How many sessions, each of another user, at once.")
    ] = 10,
    image: Annotated[
        str | None, typer.Option(help="The probe's image, for deployments that run containers; default: it is code.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="URL of a deployment elsewhere, with the operator's key as AWS_... variables.")
    ] = None,
    account: Annotated[str, typer.Option(help="With --endpoint: the deployment's account.")] = "000000000000",
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was made on the deployment, to look at it.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Deploy an agent that attacks its neighbours and its host, and report what it got.

    Exit status: 0 nothing leaked; 1 something leaked; 3 the suite could not be carried out completely."""
    try:
        deployment = AtEndpoint(endpoint, account) if endpoint else Deployment(data_dir)
        with _terminated_as_interrupted():
            report = _verify(deployment, sessions, image, keep, as_json)
    except Exception as error:  # whatever it is: status 1 says that something leaked, and nothing else does
        if not isinstance(error, (CommandError, BotoCoreError, ClientError, HTTPError)):
            logger.exception("the suite failed")
        shown = error if isinstance(error, CommandError) else CommandError(f"{type(error).__name__}: {error}")
        shown.show(as_json)
        raise typer.Exit(Exit.INCOMPLETE) from None
    show(report.document(), as_json)
    if not as_json:
        _print(report)
    raise typer.Exit(report.exit)


@app.command()
def probe() -> None:
    """Print the folder of the probe's files: `docker build -t agentkeep-probe "$(agentkeep verify probe)"`."""
    print(FOLDER)


def _verify(deployment: Deployment, sessions: int, image: str | None, keep: bool, as_json: bool) -> Report:
    def say(doing: str) -> None:
        if not as_json:
            notes.print(f"{doing} ...", style="dim", highlight=False)

    running = deployment.running
    issuer = _issuer(deployment)
    token = cache(lambda user: str(request_token(deployment, user)["access_token"])) if issuer else None
    wire = Wire(running.endpoint, running.region, deployment.credentials, token)
    stage = Stage(deployment, account=running.account, image=image, discovery_url=issuer, say=say)
    suite = Suite(wire, stage, sessions=sessions, image=image is not None, say=say)
    try:
        return suite.run()
    finally:
        if keep:
            say(f"kept: everything named verify...{stage.id}")
        else:
            say("removing what was made")
            suite.report.left += stage.remove()
            for what in suite.report.left:
                if not as_json:
                    notes.print(f"not removed: {printable(what)}", style="yellow", highlight=False, markup=False)


def _issuer(deployment: Deployment) -> str | None:
    """The discovery URL of the deployment's own issuer, if it has one that this command can ask for tokens."""
    try:
        request_token(deployment, "verify")
    except CommandError:
        return None
    return f"{deployment.running.endpoint}{ISSUER_PATH}/.well-known/openid-configuration"


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """So that what was made is removed as well where a pipeline ends the command."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: Any = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print(report: Report) -> None:
    console.print(
        f"Run {report.run}: {report.sessions} sessions at once, {report.driver}; users: {report.users}.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    phase = ""
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "ATTACK", "TRIED", "REFUSED", "LEAKED", "NOT RUN", "CONTROL"):
        grid.add_column(title, justify="left" if title in ("", "ATTACK", "CONTROL") else "right")
    for row in report.rows.values():
        if row.phase != phase:
            phase = row.phase
            grid.add_row("", Text(phase, style="bold"))
        mark = Text("LEAK", "bold red") if row.leaked else Text("?", "yellow") if row.gaps() else Text("✓", "green")
        counts = (str(number) if number else "-" for number in (row.tried, row.refused, row.leaked, row.not_run))
        grid.add_row(mark, f"  {row.attack}", *counts, Text(row.control, "dim" if row.control == "ok" else "yellow"))
    console.print(grid)
    for row in report.rows.values():
        if row.leaked:
            console.print(Text(f"LEAK: {row.phase}, {row.attack}: {row.tries}", style="bold red"), soft_wrap=True)
            for evidence in row.evidence():
                console.print(Text(f"  {printable(evidence)}"), soft_wrap=True)
    gaps = report.all_gaps()
    for gap in gaps[:50]:
        console.print(Text(f"incomplete: {printable(gap)}", style="yellow"), soft_wrap=True)
    verdicts = {
        Exit.PASSED: f"[bold green]Nothing leaked[/]: {len(report.rows)} attacks, each with its control.",
        Exit.LEAKED: f"[bold red]{report.leaked} leaks.[/]",
        Exit.INCOMPLETE: "[bold yellow]Nothing leaked, but not everything could be tried.[/] That is not a pass.",
    }
    console.print(verdicts[report.exit], highlight=False, soft_wrap=True)
