"""What may be run in a session's container: the driver's commands, made again from what differs.

Whose container it is the guard finds out by its label, also when a command is started or asked for: its id alone says
nothing.
"""

from __future__ import annotations

import re
from typing import Any, Final

from agentkeep.runtime.docker_guard.refusal import Refused
from agentkeep.runtime.drivers.docker import commands

__all__ = ["STARTED", "checked_command", "container_of", "told_of"]

_PID: Final = re.compile(r"[1-9][0-9]{0,9}")
#: How one is started.
STARTED: Final = {"Detach": False, "Tty": False}


def checked_command(body: Any) -> dict[str, Any]:
    """The body to send. Raises Refused."""
    try:
        argument = body["Cmd"][-1]
        if not isinstance(argument, str) or "\0" in argument or len(argument.encode()) > commands.LINE_LIMIT:
            raise Refused("Cmd ends in no line")
    except (KeyError, IndexError, TypeError, ValueError):
        raise Refused("the body is not that of a session's command") from None
    made = commands.running(argument)
    if _same(body, made):
        return made
    made = commands.ending(argument)
    if _same(body, made) and _PID.fullmatch(argument):
        return made
    raise Refused("the body is not that of a session's command")


def container_of(found: Any) -> str:
    """Of a command as the engine tells it. Raises Refused where the driver would not have made it."""
    process = found["ProcessConfig"]
    if process["privileged"] or process["tty"]:
        raise Refused("it is not a session's command")
    checked_command(commands.running("") | {"Cmd": [process["entrypoint"], *process["arguments"]]})
    return str(found["ContainerID"])


def told_of(found: Any) -> dict[str, Any]:
    return {name: found[name] for name in ("Running", "ExitCode")}


def _same(given: Any, made: Any) -> bool:
    """1 is not True, whatever Python says."""
    if type(given) is not type(made):
        return False
    if isinstance(made, dict):
        return given.keys() == made.keys() and all(_same(given[name], made[name]) for name in made)
    if isinstance(made, list):
        return len(given) == len(made) and all(map(_same, given, made))
    return bool(given == made)
