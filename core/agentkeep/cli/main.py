"""The `agentkeep` command."""

from __future__ import annotations

import sys

import typer
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from agentkeep.cli import (
    agents,
    audit,
    catalogue,
    commands,
    egress,
    keys,
    memory,
    platform,
    roles,
    sts,
    trace,
    users,
    verify,
)
from agentkeep.cli.output import CommandError

app = typer.Typer(
    name="agentkeep",
    help="The AgentCore you keep yourself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    platform.up,
    platform.down,
    platform.env,
    platform.doctor,
    agents.deploy,
    agents.invoke,
    agents.sessions,
    agents.usage,
    agents.stop,
    agents.logs,
    trace.trace,
    trace.alerts,
    audit.audit,
    users.login,
):
    app.command()(command)
app.command("exec")(commands.execute)
app.add_typer(catalogue.app, name="catalogue")
app.add_typer(keys.app, name="keys")
app.add_typer(memory.app, name="memory")
app.add_typer(verify.app, name="verify")
app.add_typer(sts.app, name="sts")
app.add_typer(egress.app, name="egress")
app.add_typer(roles.app, name="roles")


def main() -> None:
    as_json = "--json" in sys.argv
    try:
        app()
    except CommandError as error:
        error.show(as_json)
        sys.exit(1)
    except EndpointConnectionError as error:
        CommandError(str(error), "Is the platform running? `agentkeep up` starts it.").show(as_json)
        sys.exit(1)
    except ClientError as error:
        detail = error.response.get("Error", {})
        CommandError(f"{detail.get('Code')}: {detail.get('Message')}").show(as_json)
        sys.exit(1)
    except BotoCoreError as error:
        CommandError(str(error)).show(as_json)
        sys.exit(1)


if __name__ == "__main__":
    main()
