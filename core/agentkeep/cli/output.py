"""How commands speak: people get a few readable lines, `--json` one JSON document, errors what, why, and what to do."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["AsJson", "CommandError", "console", "printable", "progress", "show", "table"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: What a command is asked for goes to standard output, all else (progress, errors) to standard error.
console = Console()
if not console.is_terminal:
    console.width = 1 << 14  # columns: a program that reads a table wants one line a row
notes = Console(stderr=True)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text that agents or users wrote, for a terminal: what would steer it (escape sequences, carriage returns, changes
    of direction) is shown instead."""
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text.replace("\r\n", "\n"))


class CommandError(Exception):
    """A command cannot do what it was asked. `fix` says what to do."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def show(self, as_json: bool = False) -> None:
        if as_json:
            print(json.dumps({"error": self.what, "fix": self.fix}), file=sys.stderr)
            return
        notes.print("error:", style="bold red", end=" ")
        notes.print(printable(self.what), markup=False, highlight=False)
        if self.fix:
            notes.print(printable(self.fix), markup=False, highlight=False)


def show(document: Any, as_json: bool, *lines: str) -> None:
    """The answer: `document` as JSON, or `lines` for people."""
    if as_json:
        print(json.dumps(document, default=_plain))
        return
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def table(
    document: Any, as_json: bool, columns: Mapping[str, str], rows: Sequence[Mapping[str, object]], empty: str
) -> None:
    """The answer: `document` as JSON, or a table for people. `columns`: members of a row and their titles; `empty`:
    what is said where there are no rows."""
    if as_json:
        show(document, True)
        return
    if not rows:
        console.print(empty, style="dim")
        return
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for title in columns.values():
        # The first names the row, and is there to be copied.
        grid.add_column(title, overflow="fold", no_wrap=not grid.columns)
    for row in rows:
        cells = ("-" if (cell := row.get(member)) is None else str(cell) for member in columns)
        grid.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(grid)


@contextmanager
def progress(doing: str, as_json: bool = False) -> Iterator[None]:
    """Says that something long is under way, where a person watches."""
    if as_json or not notes.is_terminal:
        if not as_json:
            notes.print(f"{doing} ...", style="dim", highlight=False)
        yield
        return
    with notes.status(doing):
        yield


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
