"""MEM-1: who says what a record holds, and names that say nothing of what a question is about."""

from datetime import UTC, datetime
from typing import Any

import pytest

from agentkeep.memory.long_term.record import Record, Turn
from agentkeep.memory.long_term.speech import Speakers, speaker_of, spoken


def record(text: str, **members: Any) -> Record:
    return Record("mem-1", text, "a", "/n/", None, datetime.now(UTC), 0, None, members.pop("metadata", {}), **members)


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("Caroline: Hey Mel!", "caroline", "Hey Mel!"),
        ("[1:56 pm on 8 May, 2023] Caroline: Hey", "caroline", "Hey"),
        ("(8 May) Jean-Luc O'Neil: Hey", "jean-luc o'neil", "Hey"),
        ("Mel (8 May): Hey", "mel", "Hey"),
        ('Caroline said, "Hey Mel!"', "caroline", '"Hey Mel!"'),
        ("Zoë: salut", "zoë", "salut"),
        ("user: Hey", "user", "Hey"),
        ("I told him: never again.", None, "I told him: never again."),
        ("The user likes tea, coffee and cake: all of it.", None, "The user likes tea, coffee and cake: all of it."),
        ("It is 12:30.", None, "It is 12:30."),
        ("https://example.com", None, "https://example.com"),
        ("Ann:", None, "Ann:"),
        ("", None, ""),
    ],
)
def test_speaker_before_the_text(text: str, name: str | None, said: str) -> None:
    assert speaker_of(record(text)) == name
    assert spoken(text) == said


def test_speaker_by_other_signs() -> None:
    assert speaker_of(record("Hey", turn=Turn("s", "1", "USER"))) == "user"
    assert speaker_of(record("Hey", metadata={"speaker": "Mel"})) == "mel"
    assert speaker_of(record("Hey", metadata={"speaker": 3.0, "role": "assistant"})) == "assistant"


TALK = [record(f"{name}: {text}") for name in ("Caroline", "Mel") for text in ("a b", "c d", "e", "Paris f", "g")]


@pytest.mark.parametrize(
    ("query", "rest", "named"),
    [
        ("When did Caroline go to Paris?", "When did go to Paris?", "caroline"),
        ("What is Mel's dog called?", "What is dog called?", "mel"),
        ("What is Mel’s dog called?", "What is dog called?", "mel"),
        ("What do Caroline and Mel like?", "What do and like?", None),
        ("Caroline", "Caroline", "caroline"),
        ("What does Bob like?", "What does Bob like?", None),
        ("", "", None),
    ],
)
def test_names_in_queries(query: str, rest: str, named: str | None) -> None:
    speakers = Speakers.of(TALK)
    assert speakers.removed_from(query) == rest
    assert speakers.named_in(query) == named


def test_a_name_in_every_fact_says_nothing() -> None:
    facts = [record(f"Caroline likes {thing} a lot.") for thing in "abcdefgh"] + [record("Rome is far.")]
    speakers = Speakers.of(facts)
    assert speakers.removed_from("What does Caroline like in Rome?") == "What does like in Rome?"
    assert speakers.named_in("What does Caroline like?") is None


def test_of_few_records_nothing_is_known() -> None:
    assert Speakers.of(TALK[:5]) == Speakers()
