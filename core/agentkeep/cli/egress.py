"""`agentkeep egress`: what operators need of sessions' way out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentkeep.cli.output import AsJson, CommandError, show

__all__ = ["app"]

app = typer.Typer(name="egress", help="Hosts outside that sessions may reach.", no_args_is_help=True)


@app.callback()
def _egress() -> None:
    """Hosts outside that sessions may reach."""


@app.command("check-rules")
def check_rules(
    file: Annotated[Path, typer.Argument(help="The file that AGENTKEEP_RUNTIME_EGRESS_RULES names.")],
    as_json: AsJson = False,
) -> None:
    """Read rules for egress as the platform does when it starts, and say what is wrong with them."""
    from agentkeep.runtime.egress.rules import EgressRules, EgressRulesInvalid

    try:
        rules = EgressRules.load(file)
    except EgressRulesInvalid as error:
        raise CommandError(f"{error}.") from None
    hosts = {rule.name: [str(host) for host in rule.hosts] for rule in rules.rules}
    networks = {rule.name: [str(network) for network in rule.networks] for rule in rules.rules}
    show(
        {
            "rules": [
                {
                    "name": rule.name,
                    "agents": list(rule.agents),
                    "hosts": hosts[rule.name],
                    "networks": networks[rule.name],
                }
                for rule in rules.rules
            ],
            "default": rules.default,
        },
        as_json,
        *(
            f"{rule.name}: {', '.join(rule.agents)} -> {', '.join(hosts[rule.name])}"
            + (f" (also in {', '.join(networks[rule.name])})" if rule.networks else "")
            for rule in rules.rules
        ),
        "what no rule names is refused",
    )
