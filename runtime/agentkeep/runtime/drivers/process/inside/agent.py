"""Runs the agent's entry point, as `python main.py` would, in the process that was prepared for it."""

from __future__ import annotations

import builtins
import io
import os
import sys
import time
import types
from typing import Any


def run(work: dict[str, Any]) -> None:
    """`work`: `environment`, `folder` (working directory), `path` (entries before the standard library), `script`,
    `command`: where set, it is executed instead, as a fresh interpreter, and `instrument`: whether the agent's
    OpenTelemetry distribution goes first."""
    os.environ.clear()
    os.environ.update(work["environment"])
    time.tzset()
    os.chdir(work["folder"])
    if work["command"]:
        sys.stdout.flush()
        os.execve(work["command"][0], work["command"], dict(os.environ))  # noqa: S606 -- the operator's own command
    sys.path[:] = list(dict.fromkeys([*work["path"], *sys.path]))
    sys.argv = [work["script"]]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    _forget_cached_environment()
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]
    if work["instrument"]:
        _instrument()
    _run_script(work["script"])


def _instrument() -> None:
    """As `opentelemetry-instrument` does before a script; the exporters' threads start here, after the fork."""
    try:
        from opentelemetry.instrumentation.auto_instrumentation import initialize
    except ImportError as error:  # an agent without telemetry is better than none
        sys.stderr.write(f"OpenTelemetry's instrumentation cannot be loaded: {error}\n")
    else:
        initialize()


def _run_script(script: str) -> None:
    """Not runpy: its `__main__` ends with the call, while threads of the agent may still need it."""
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=script, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    try:
        with io.open_code(os.path.abspath(script)) as file:
            code = compile(file.read(), script, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 -- running the agent is what we are for
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__
        sys.excepthook(type(error), error, trace.tb_next if trace else None)  # without our own frame
        raise SystemExit(1) from None  # by way of the normal end: threads joined, exit functions called


def _forget_cached_environment() -> None:
    """Libraries that remembered the fork server's (empty) environment at import."""
    langsmith = sys.modules.get("langsmith.utils")
    clear = getattr(getattr(langsmith, "get_env_var", None), "cache_clear", None)
    if clear is not None:
        clear()
