"""Which partitions of the file a call is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import apsw

from agentkeep.storage.search import EVERYTHING, Beneath, Selection

__all__ = ["Partitions", "changed"]


@dataclass(frozen=True, slots=True)
class Partitions:
    place: str | Beneath

    @property
    def clause(self) -> tuple[str, tuple[str, ...]]:
        """The condition on `partitions`, and its bindings."""
        if isinstance(self.place, Beneath):
            return "name >= ? AND name < ?", (f"{self.place.name}/", f"{self.place.name}0")  # 0 follows the slash
        return "name = ?", (self.place,)

    def numbers(self, connection: apsw.Connection, selection: Selection = EVERYTHING) -> Sequence[int]:
        """Of those that may hold what is selected."""
        among, bindings = self.clause
        clauses = [among]
        if isinstance(self.place, Beneath):
            inside = "number IN (SELECT partition FROM places WHERE {})"
            if selection.namespace is not None:
                clauses.append(inside.format("namespace = ?"))
                bindings += (selection.namespace,)
            if (path := selection.namespace_path) is not None:
                clauses.append(inside.format("namespace >= ? AND namespace < ?"))
                bindings += (path, path + "\U0010ffff")
        rows = connection.execute(f"SELECT number FROM partitions WHERE {' AND '.join(clauses)}", bindings)  # noqa: S608
        return [row[0] for row in rows]


def changed(connection: apsw.Connection, name: str) -> tuple[int, int]:
    """The number of a partition that is written to, made if it is new, and which of its changes this is."""
    found: tuple[int, int] = connection.execute(
        "INSERT INTO partitions (name, changes) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET changes = changes + 1"
        " RETURNING number, changes",
        (name,),
    ).get
    return found
