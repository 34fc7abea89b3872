"""Records without a model: what was said, kept word for word, and no more. Each says so (`Record.method`).

- facts: every turn of the conversation but tools' results, as it was said (`verbatim`), in pieces where it is long.
  With its speaker and its place in the session, so that retrieval can read it beside its neighbours. What the
  namespace has already is skipped.
- preferences: the user's sentences in which a pattern sees one (`pattern`); the turn is its context.
- summaries: the session's sentences that say most of what it is about, in their order (`extract`); after H. P. Luhn,
  "The Automatic Creation of Literature Abstracts" (1958).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from agentkeep.memory.extraction.changes import Changes
from agentkeep.memory.extraction.groups import Group
from agentkeep.memory.extraction.kinds import Kind, kind_of
from agentkeep.memory.extraction.making import Work, normalised_text, preference_text, summary_id
from agentkeep.memory.extraction.material import JSON
from agentkeep.memory.long_term.record import Record, Turn, new_id

__all__ = ["RuleExtractor"]

#: Characters of one record; a longer turn is several.
_PIECE: Final = 4000
#: Characters of a preference, and of the turn that is shown with it.
_LONGEST_PREFERENCE: Final = 1000
_CONTEXT: Final = 1000
_TOOL: Final = "TOOL"
_USER: Final = "USER"
#: Sentences of a summary, and characters of one of them.
_SENTENCES: Final = 12
_LONGEST_SENTENCE: Final = 400

_SENTENCE: Final = re.compile(r"[^.!?\n]+(?:[.!?]+(?=\s|$)|[.!?]+|$)")
_PREFERENCE: Final = re.compile(
    r"\b(?:i|we)(?:'d| would| really| do| also| much| just| absolutely)* (?:prefer|like|love|enjoy|adore|favou?r|hate|"
    r"dislike|detest|can't stand|cannot stand|can't eat|avoid|rather)\b"
    r"|\b(?:i|we) (?:do not|don't|never|always|usually) \w+"
    r"|\bmy (?:favou?rite|preferred|preference)\b"
    r"|\bplease (?:always|never|do not|don't|keep|use|call)\b"
    r"|\b(?:call|address) me\b"
    r"|\bi(?:'m| am) (?:allergic|vegetarian|vegan|into|a (?:big )?fan)\b",
    re.IGNORECASE,
)


class RuleExtractor:
    async def changes(self, work: Work, group: Group) -> Changes:
        match kind_of(group.strategy):
            case Kind.FACTS:
                return await _new(work, group, _turns(work, group))
            case Kind.PREFERENCES:
                return await _new(work, group, _preferences(work, group))
            case _:
                return await _summary(work, group)


async def _new(work: Work, group: Group, records: Iterable[Record]) -> Changes:
    """Those that the namespace has not, each once: their ids are made of what they say, whatever case and spacing."""
    made = {record.id: record for record in reversed(list(records))}
    ids = list(reversed(made))
    known = await work.records.get(ids)
    return Changes([made[record_id] for record_id, there in zip(ids, known, strict=True) if there is None])


def _turns(work: Work, group: Group) -> Iterator[Record]:
    for message in group.messages:
        if message.speaker == _TOOL:
            continue
        for number, text in enumerate(_pieces(message.text)):
            turn = Turn(message.session_id, f"{message.place} {number:03}", message.speaker)
            yield work.record(group, _id(work, group, text), text, [message], "verbatim", turn=turn)


def _preferences(work: Work, group: Group) -> Iterator[Record]:
    for message in group.messages:
        if message.speaker != _USER:
            continue
        for sentence in _sentences(message.text):
            if len(sentence) <= _LONGEST_PREFERENCE and _PREFERENCE.search(sentence) and not sentence.endswith("?"):
                text = preference_text(sentence, message.text[:_CONTEXT], [])
                yield work.record(group, _id(work, group, sentence), text, [message], "pattern")


async def _summary(work: Work, group: Group) -> Changes:
    record_id = summary_id(work, group)
    (known,) = await work.records.get([record_id])
    before = known.text.splitlines() if known is not None else []
    said = [
        f"{message.speaker}: {sentence[:_LONGEST_SENTENCE]}"
        for message in group.messages
        if message.speaker not in (_TOOL, JSON)
        for sentence in _sentences(message.text)
    ]
    text = "\n".join(_most_telling([*before, *said]))
    if not text or (known is not None and text == known.text):
        return Changes()
    made = work.record(group, record_id, text, group.messages, "extract")
    if known is None:
        return Changes([made])
    return Changes(replaced=[work.replaced(group, known, text, made)])


def _most_telling(lines: Sequence[str]) -> list[str]:
    """At most so many, in their order, each once: those whose words are frequent in all of them."""
    lines = list({normalised_text(line): line for line in lines}.values())
    words = [[word for word in re.findall(r"\w+", line.casefold()) if len(word) > 3] for line in lines]
    frequency = Counter(word for of_line in words for word in set(of_line))

    def telling(place: int) -> float:
        own = set(words[place])
        return sum(frequency[word] for word in own) / math.sqrt(len(own)) if own else 0.0

    best = sorted(range(len(lines)), key=lambda place: (-telling(place), place))[:_SENTENCES]
    return [lines[place] for place in sorted(best)]


def _id(work: Work, group: Group, text: str) -> str:
    parts = (work.records.memory_id, work.records.actor_id, group.strategy.id, group.namespace)
    return new_id(f"said {' '.join(parts)} {sorted(group.metadata.items())} {' '.join(text.casefold().split())}")


def _sentences(text: str) -> list[str]:
    return [sentence for found in _SENTENCE.findall(text) if (sentence := found.strip())]


def _pieces(text: str) -> Iterator[str]:
    """The text, in pieces that end at a blank where there is one. Nothing of it is changed or left out, but blanks at
    the ends."""
    while len(text) > _PIECE:
        end = max(text.rfind(" ", _PIECE // 2, _PIECE), text.rfind("\n", _PIECE // 2, _PIECE))
        end = end if end > 0 else _PIECE
        yield text[:end].strip()
        text = text[end:]
    if text.strip():
        yield text.strip()
