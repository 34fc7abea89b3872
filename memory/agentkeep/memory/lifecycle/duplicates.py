"""Records that say the same in the same words: what can be merged without a model, and without a doubt.

No measure of likeness is used. "Her code is 4711" and "Her code is 4712" are as like as two texts can be.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from agentkeep.memory.long_term.record import Record

__all__ = ["duplicates"]

#: Stripped from the ends of words; within them such signs mean something (3.5, C++, -5).
_PUNCTUATION: Final = ".,;:!?\"'()[]…“”‘’«»"
_ARTICLES: Final = frozenset({"a", "an", "the"})


def duplicates(records: Iterable[Record]) -> list[Sequence[Record]]:
    """Those that say the same, two or more together, the newest first; texts are compared without case, articles,
    white space and the punctuation between words."""
    alike: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if words := _words(record.text):
            alike.setdefault(words, []).append(record)
    return [
        sorted(found, key=lambda record: (record.timestamp, record.created_ms, record.id), reverse=True)
        for found in alike.values()
        if len(found) > 1
    ]


def _words(text: str) -> tuple[str, ...]:
    words = (word.strip(_PUNCTUATION) for word in unicodedata.normalize("NFKC", text).casefold().split())
    return tuple(word for word in words if word and word not in _ARTICLES)
