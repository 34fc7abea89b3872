"""Records in the making, whoever finds what is in them: a model or the rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import orjson

from agentkeep.core.call import SessionRef
from agentkeep.memory.extraction.changes import Changes
from agentkeep.memory.extraction.groups import Group
from agentkeep.memory.extraction.material import Message
from agentkeep.memory.long_term.actor_records import ActorRecords
from agentkeep.memory.long_term.categories import limited
from agentkeep.memory.long_term.record import NOWHERE, Record, Source, Turn, new_id
from agentkeep.storage.search import Value

__all__ = ["LONGEST_TEXT", "Extractor", "Found", "Work", "normalised_text", "preference_text", "summary_id"]

#: The service's.
LONGEST_TEXT: Final = 16_000
_DAY_MS: Final = 24 * 3600 * 1000
_MOST_SOURCES: Final = 500


@dataclass(frozen=True, slots=True)
class Work:
    """One extraction of one session's messages. `earlier`: what was said before them. `seed`: the same for the same
    messages; ids are made of it. `session`: whose use of models it is. `tags`: the memory's."""

    records: ActorRecords
    session_id: str
    earlier: Sequence[Message]
    now_ms: int
    seed: str
    session: SessionRef | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def record(
        self,
        group: Group,
        record_id: str,
        text: str,
        messages: Sequence[Message],
        method: str,
        *,
        metadata: Mapping[str, Value] | None = None,
        turn: Turn | None = None,
    ) -> Record:
        return Record(
            record_id,
            text,
            self.records.actor_id,
            group.namespace,
            group.strategy.id,
            max(message.at for message in messages),
            self.now_ms,
            self.expires_ms(group),
            {**(metadata or {}), **group.metadata},
            sources=sources(messages),
            method=method,
            turn=turn,
        )

    def replaced(self, group: Group, known: Record, text: str, made: Record) -> Record:
        """A new version of a record, of which `made` is the reason."""
        return replace(
            known,
            text=text,
            timestamp=max(known.timestamp, made.timestamp),
            expires_ms=self.expires_ms(group),
            metadata={**known.metadata, **made.metadata},
            vector=None,
            sources=tuple(dict.fromkeys((*known.sources, *made.sources)))[-_MOST_SOURCES:],
            method=made.method,
            turn=None,
            around=NOWHERE,
        )

    def expires_ms(self, group: Group) -> int | None:
        days = limited(group.strategy.record_expiry_days, self.tags, group.strategy, group.namespace)
        return None if days is None else self.now_ms + days * _DAY_MS


@dataclass(frozen=True, slots=True)
class Found:
    """Something to remember. `said`: in few words, to be compared with others; `text`: as the record will have it."""

    said: str
    text: str
    messages: Sequence[Message]
    metadata: Mapping[str, Value]
    context: str = ""
    categories: Sequence[str] = ()


class Extractor(Protocol):
    async def changes(self, work: Work, group: Group) -> Changes:
        """What the group's messages change of the actor's records in its namespace. Raises ExtractionFailed."""
        ...


def preference_text(preference: str, context: str, categories: Sequence[str]) -> str:
    """A preference's record is a JSON document with these members, as AgentCore's is."""
    return orjson.dumps({"context": context, "preference": preference, "categories": list(categories)}).decode()


def summary_id(work: Work, group: Group) -> str:
    """One summary for each session, strategy and namespace."""
    parts = (work.records.memory_id, work.records.actor_id, group.strategy.id, group.namespace, work.session_id)
    return new_id("summary " + " ".join(parts))


def normalised_text(text: str) -> str:
    """Equal for texts that differ in case, spacing and punctuation at most."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def sources(messages: Iterable[Message]) -> tuple[Source, ...]:
    return tuple(dict.fromkeys(message.source for message in messages))[-_MOST_SOURCES:]


def windows(messages: Sequence[Message], characters: int) -> Iterator[list[Message]]:
    """The messages in their order, as many together as fit; those that are longer by themselves in pieces."""
    window: list[Message] = []
    size = 0
    for message in messages:
        for start in range(0, len(message.text), characters):
            piece = replace(message, text=message.text[start : start + characters])
            if window and size + len(piece.text) > characters:
                yield window
                window, size = [], 0
            window.append(piece)
            size += len(piece.text)
    if window:
        yield window
