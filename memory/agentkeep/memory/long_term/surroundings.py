"""Which records stand around which, as turns of a conversation do, and what of that helps to find them.

An answer often lacks the question's words: the turn before it has them. So a record is also found, with less weight, by
the words of the two turns before it and the two after, and its vector is averaged with theirs. Turns of one session
follow one another by their place in it; other records by their time, as long as no more than `GAP` lies between two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

import numpy as np

from agentkeep.memory.long_term.record import Record, Surroundings
from agentkeep.memory.long_term.speech import spoken
from agentkeep.storage.search import Vector

__all__ = ["EACH_WAY", "joined", "linked", "linked_ids", "positioned", "without"]

#: How many stand around a record on each side.
EACH_WAY: Final = 2
#: What a neighbour's vector counts beside the record's own, by distance.
WEIGHTS: Final = (0.5, 0.25)
#: Between records of one conversation, if nothing says of which session they are; seconds.
GAP: Final = timedelta(hours=1).total_seconds()
#: A record that outlives another by more than this keeps nothing of it; milliseconds.
_OUTLIVES_MS: Final = 24 * 3600 * 1000

_NEVER: Final = 2**62


def positioned(record: Record, index: int) -> Record:
    """`index`: in its batch. A record in no namespace stands nowhere."""
    if record.namespace is None:
        return record
    if record.turn is not None:
        position = (0.0, record.turn.place)
    else:
        position = (record.timestamp.timestamp(), f"{record.created_ms:015d} {index:04d}")
    return replace(record, around=Surroundings(position))


def linked(records: Iterable[Record]) -> dict[str, Record]:
    """Each with the ids of those around it. A record at either end keeps what it was linked to beyond."""
    threads: dict[object, list[Record]] = defaultdict(list)
    found: dict[str, Record] = {}
    for record in records:
        if record.around.position is None:
            found[record.id] = record
        else:
            session = record.turn.session_id if record.turn is not None else None
            threads[record.namespace, record.strategy_id, session].append(record)
    for thread in threads.values():
        thread.sort(key=lambda record: (record.around.position, record.id))
        for index, record in enumerate(thread):
            before = _near(record, reversed(thread[max(index - EACH_WAY, 0) : index]), record.around.before)
            after = _near(record, thread[index + 1 : index + 1 + EACH_WAY], record.around.after)
            found[record.id] = replace(record, around=replace(record.around, before=before, after=after))
    return found


def without(record: Record, gone: Iterable[str]) -> Record:
    around = record.around
    left = set(gone)
    return replace(
        record,
        around=replace(
            around,
            before=tuple(id for id in around.before if id not in left),
            after=tuple(id for id in around.after if id not in left),
        ),
    )


def linked_ids(record: Record) -> tuple[str, ...]:
    return record.around.before + record.around.after


def joined(record: Record, known: Mapping[str, Record]) -> Record:
    """With the words and vectors of those around it, so far as these are known."""
    sides = (record.around.before, record.around.after)
    rings: list[list[Record]] = [
        [known[side[distance]] for side in sides if len(side) > distance and side[distance] in known]
        for distance in range(EACH_WAY)
    ]
    near, farther = ("\n".join(spoken(one.text) for one in ring) for ring in rings)
    return replace(record, around=replace(record.around, near=near, farther=farther, vector=_averaged(record, rings)))


def _averaged(record: Record, rings: Sequence[Sequence[Record]]) -> Vector | None:
    around = [
        weight * one.vector
        for weight, ring in zip(WEIGHTS, rings, strict=True)
        for one in ring
        if one.vector is not None
    ]
    if record.vector is None or not around:
        return None
    total = record.vector + np.sum(around, axis=0)
    length = float(np.linalg.norm(total))
    # Opposite vectors may cancel out: then the record's own must do.
    return np.asarray(total / length, np.float32) if length > 0.01 else None


def _near(record: Record, neighbours: Iterable[Record], former: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    last = record
    for one in neighbours:
        if not _together(last, one):
            return tuple(found)
        if _lives_on(one) >= _lives_on(record) - _OUTLIVES_MS:
            found.append(one.id)
        last = one
    beyond = [id for id in former if id not in found]
    return tuple([*found, *beyond][:EACH_WAY])


def _together(one: Record, other: Record) -> bool:
    if one.turn is not None:
        return True
    here, there = one.around.position, other.around.position
    return here is not None and there is not None and abs(here[0] - there[0]) <= GAP


def _lives_on(record: Record) -> int:
    return _NEVER if record.expires_ms is None else record.expires_ms
