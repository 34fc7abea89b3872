"""Who says what a record holds, and the names of those who speak, which say nothing of what a question is about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agentkeep.memory.long_term.record import Record

__all__ = ["Speakers", "speaker_of", "spoken"]

#: As transcripts write it: `Ann: ...`, `[8 May] Ann: ...`, `Ann (8 May): ...`, `Ann said, "..."`.
_PREFIX: Final = re.compile(
    r"\s*(?:[\[(][^\])\n]{1,60}[\])]\s*)?"
    r"(?P<name>[^\W\d_][\w.'-]{0,30}(?: [^\W\d_][\w.'-]{0,30}){0,2})"
    r"(?: \([^)\n]{1,60}\))?"
    r"(?:\s*:\s+| said[^:\"\n]{0,60}[:,] ?(?=[\"“]))"
)
#: Metadata that may say who speaks.
_KEYS: Final = ("speaker", "participant", "role")
_ROLES: Final = ("user", "assistant", "human")
_NAME: Final = re.compile(r"[^\W\d_][\w'-]+")
#: In so many of the records, a name says nothing; with fewer records than this, nothing is known.
_SHARE: Final = 0.25
_FEWEST: Final = 8


def spoken(text: str) -> str:
    """What is said, without the name before it."""
    found = _prefix(text)
    return text[found.end() :] if found is not None else text


def speaker_of(record: Record) -> str | None:
    """In lower case."""
    if record.turn is not None and record.turn.speaker:
        return record.turn.speaker.lower()
    for key in _KEYS:
        if isinstance(value := record.metadata.get(key), str) and value:
            return value.lower()
    found = _prefix(record.text)
    return found["name"].lower() if found is not None else None


def _prefix(text: str) -> re.Match[str] | None:
    found = _PREFIX.match(text)
    if found is None or found.end() == len(text):
        return None
    capitals = all(word[0].isupper() for word in found["name"].split())
    return found if capitals or found["name"] in _ROLES else None


@dataclass(frozen=True, slots=True)
class Speakers:
    """Of some records. `names`: in lower case, of those who speak or are named all the time."""

    speakers: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, records: Sequence[Record]) -> Speakers:
        if len(records) < _FEWEST:
            return cls()
        speaking = Counter(speaker for record in records if (speaker := speaker_of(record)) is not None)
        speakers = frozenset(name for name, count in speaking.items() if count > 1)
        named = Counter(word for record in records for word in set(_capitalised(record.text)))
        often = {word.lower() for word, count in named.items() if count >= _SHARE * len(records)}
        return cls(speakers, frozenset(often | {part for name in speakers for part in name.split()}))

    def named_in(self, query: str) -> str | None:
        """The one speaker whose name is in the query; None where it is none, or are several."""
        words = {word.lower().removesuffix("'s") for word in _NAME.findall(query.replace("’", "'"))}
        found = [name for name in self.speakers if words.intersection(name.split())]
        return found[0] if len(found) == 1 else None

    def removed_from(self, query: str) -> str:
        """The query without names; as it is where nothing else is in it."""

        def kept(found: re.Match[str]) -> str:
            word = found[0]
            name = word.lower().removesuffix("'s").removesuffix("’s")
            return "" if name in self.names and word[0].isupper() else word

        rest = re.sub(r"\s+", " ", re.sub(r"[^\W\d_][\w'’-]+", kept, query)).strip()
        return rest if re.search(r"\w", rest) else query


def _capitalised(text: str) -> Iterable[str]:
    return (word.removesuffix("'s") for word in _NAME.findall(text) if word[0].isupper())
