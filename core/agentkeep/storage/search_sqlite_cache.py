"""What the SQLite search store keeps of partitions in memory: bounded, and never anything that the file has no more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import apsw
import numpy as np

from agentkeep.storage.search_sqlite_blocks import BLOCK, NEVER, Block
from agentkeep.storage.sqlite import DamagedFile

__all__ = ["PartitionCache"]

_READ: Final = """
SELECT records.number, expires_ms, namespaces, metadata, words, {vector}, change
FROM records LEFT JOIN features ON features.number = records.number
WHERE partition = ? AND (change, records.number) > (?, ?) ORDER BY change, records.number LIMIT ?
"""
#: A block is joined to the one before it unless that is so many times as large.
_MUCH_LARGER: Final = 8


@dataclass(slots=True)
class _Partition:
    """As it was at these `changes` and `removals`."""

    changes: int
    removals: int
    blocks: list[Block]

    @property
    def size(self) -> int:
        return sum(block.size for block in self.blocks)


class PartitionCache:
    """Each use compares with the file what is remembered, and reads what has changed since: another process may have
    changed it. For one thread. `limit`: bytes; partitions that were not used for longest go."""

    def __init__(self, dimensions: int | None, limit: int) -> None:
        self._dimensions = dimensions
        self._limit = limit
        self._read = _READ.format(vector="NULL" if dimensions is None else "vector")
        self._known: OrderedDict[int, _Partition] = OrderedDict()
        self._connection: apsw.Connection | None = None
        self._erasures = 0
        self.size = 0

    def blocks(self, connection: apsw.Connection, number: int) -> Iterator[Block]:
        """All of a partition's documents. One that is too large to be kept is read anew, a block at a time."""
        state: Any = connection.execute("SELECT changes, removals FROM partitions WHERE number = ?", (number,)).get
        changes, removals = state
        known = self._known.pop(number, None)
        if known is None:
            yield from self._load(connection, number, changes, removals)
            return
        self.size -= known.size
        self._update(connection, number, known, changes, removals)
        self._keep(number, known)
        yield from known.blocks

    def forget_erased(self, connection: apsw.Connection) -> None:
        """Whatever the file has no more, and all where it may be another file. To be called before each use."""
        if connection is not self._connection:
            self._connection = connection
            self._known.clear()
            self.size = 0
        erasures = connection.execute("SELECT count FROM erasures").get
        if erasures != self._erasures:
            self._erasures = erasures
            left = {row[0] for row in connection.execute("SELECT number FROM partitions")} if self._known else set()
            for number in [number for number in self._known if number not in left]:
                self.size -= self._known.pop(number).size

    def _load(self, connection: apsw.Connection, number: int, changes: int, removals: int) -> Iterator[Block]:
        read = _Partition(changes, removals, [])
        size = 0
        for block in self._blocks(connection, number, -1):
            size += block.size
            if size <= self._limit:
                read.blocks.append(block)
            else:
                read.blocks.clear()
            yield block
        if size <= self._limit:
            self._keep(number, read)

    def _update(self, connection: apsw.Connection, number: int, known: _Partition, changes: int, removals: int) -> None:
        if changes != known.changes:
            for block in self._blocks(connection, number, known.changes):
                for earlier in known.blocks:
                    earlier.without(block.numbers)
                known.blocks.append(block)
        if removals != known.removals:
            rows: Any = connection.execute("SELECT number FROM records WHERE partition = ?", (number,))
            left = np.fromiter((row[0] for row in rows), np.int64)
            for block in known.blocks:
                block.only(left)
        if (changes, removals) != (known.changes, known.removals):
            known.changes, known.removals = changes, removals
            known.blocks = _tidied(known.blocks)

    def _keep(self, number: int, partition: _Partition) -> None:
        self._known[number] = partition
        self.size += partition.size
        while self.size > self._limit:
            _, oldest = self._known.popitem(last=False)
            self.size -= oldest.size

    def _blocks(self, connection: apsw.Connection, number: int, change: int) -> Iterator[Block]:
        """Of what was written after this change."""
        after: tuple[Any, Any] = (change, NEVER)
        while rows := connection.execute(self._read, (number, *after, BLOCK)).fetchall():
            if any(row[4] is None for row in rows):
                raise DamagedFile("a record has lost its words")
            yield Block.of(rows, self._dimensions)
            after = (rows[-1][6], rows[-1][0])


def _tidied(blocks: list[Block]) -> list[Block]:
    """Without those mostly dead, and without many small ones."""
    tidy: list[Block] = []
    for each in blocks:
        alive = int(np.count_nonzero(each.alive))
        if not alive:
            continue
        block = each if 2 * alive > len(each.alive) else Block.joined([each])
        while tidy and len(tidy[-1].numbers) < _MUCH_LARGER * len(block.numbers):
            if len(tidy[-1].numbers) + len(block.numbers) > BLOCK:
                break
            block = Block.joined([tidy.pop(), block])
        tidy.append(block)
    return tidy
