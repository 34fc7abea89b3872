"""Long conversations of two people, with questions of which it is known which turns answer them.

Made from pools of phrases (`conversations/*.json`, written for this) by a seeded generator, or read from a file: our
own form, which is `as_document`'s, or that of the LoCoMo set (a list of samples with `conversation` and `qa`).

Kinds of question: `detail`, with some of the words that were said; `fact`, by its subject; `paraphrase`, in other
words; `near miss`, where both people, and third persons, said something of the same subject; `preference`; `temporal`;
`multi-hop`, with evidence in several sessions. Answers often lack the question's words, as in real talk: the turn
before has them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

__all__ = ["SETS", "Conversation", "Question", "Turn", "as_document", "facts", "generate", "read"]

POOLS: Final = Path(__file__).parent / "conversations"
#: The sets there are to generate: made of other phrases, in another style. Weights are chosen on the first alone.
SETS: Final = ("friends", "colleagues")

WHEN: Final = ("last Saturday", "two days ago", "yesterday", "last week", "on Sunday", "the day before yesterday")
#: LoCoMo's categories, by its paper's names. The fifth asks for what was never said.
CATEGORIES: Final = {1: "multi-hop", 2: "temporal", 3: "open", 4: "fact", 5: "adversarial"}


@dataclass(frozen=True)
class Turn:
    id: str
    session: int
    at: str
    speaker: str
    text: str


@dataclass(frozen=True)
class Question:
    text: str
    kind: str
    evidence: Sequence[str]


@dataclass(frozen=True)
class Conversation:
    name: str
    turns: Sequence[Turn]
    questions: Sequence[Question]


def as_document(conversation: Conversation) -> dict[str, Any]:
    return asdict(conversation)


def read(path: Path) -> list[Conversation]:
    """Of either form, one or a list. Raises SystemExit, which says what is the matter with the file."""
    try:
        document = json.loads(path.read_text())
        found = document if isinstance(document, list) else [document]
        return [_locomo(one, f"{n}") if "qa" in one else _own(one) for n, one in enumerate(found)]
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise SystemExit(f"{path} is neither in our form (see --write) nor in LoCoMo's: {found}") from None


def _own(one: Mapping[str, Any]) -> Conversation:
    return Conversation(
        one["name"], [Turn(**turn) for turn in one["turns"]], [Question(**question) for question in one["questions"]]
    )


def _locomo(sample: Mapping[str, Any], name: str) -> Conversation:
    talk = sample.get("conversation", sample)
    turns = []
    for number in sorted(int(found[1]) for key in talk if (found := re.fullmatch(r"session_(\d+)", key))):
        begin = _moment(talk.get(f"session_{number}_date_time"), number)
        for index, turn in enumerate(talk[f"session_{number}"]):
            at = (begin + timedelta(seconds=30 * index)).isoformat()
            if text := str(turn.get("text") or ""):  # some only show a picture
                turns.append(Turn(turn["dia_id"], number, at, turn["speaker"], text))
    known = {turn.id for turn in turns}
    questions = []
    for one in sample["qa"]:
        # Some name several turns in one string.
        named = [part for text in one.get("evidence", ()) for part in re.split(r"[;,\s]+", text)]
        if evidence := [id for id in dict.fromkeys(named) if id in known]:
            kind = CATEGORIES.get(one.get("category", 0), f"{one.get('category')}")
            questions.append(Question(one["question"], kind, evidence))
    return Conversation(str(sample.get("sample_id", name)), turns, questions)


def _moment(text: str | None, number: int) -> datetime:
    """As `1:56 pm on 8 May, 2023`; else a day for each session."""
    try:
        return datetime.strptime(text or "", "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
    except ValueError:
        return datetime(2023, 1, 1, 12, tzinfo=UTC) + timedelta(days=7 * number)


def generate(pools: str, seed: int, *, sessions: int = 18, subjects: int | None = None) -> Conversation:
    """The same for the same arguments. `subjects`: how many of the pool's are talked of; None: all."""
    made = _Talk(json.loads((POOLS / f"{pools}.json").read_text()), random.Random(f"{pools} {seed}"), sessions)
    return made.conversation(f"{pools}-{seed}", subjects)


def facts(pools: str, seed: int) -> Conversation:
    """No conversation: what is known of one person, statement by statement in no order, all written at one time."""
    pool, choose = json.loads((POOLS / f"{pools}.json").read_text()), random.Random(f"facts {pools} {seed}")
    drawn = [(topic, value) for topic in pool["topics"] for value in choose.sample(topic["values"], 4)]
    choose.shuffle(drawn)
    turns: list[Turn] = []
    questions: list[Question] = []
    of_topic: dict[str, list[str]] = {}
    for number, (topic, value) in enumerate(drawn):
        text = choose.choice(topic["say"]).format(v=value, when=choose.choice(WHEN))
        turns.append(Turn(f"F{number}", 1, "2025-01-06T09:00:00+00:00", "", text[:1].upper() + text[1:]))
        of_topic.setdefault(topic["id"], []).append(f"F{number}")
        asked = choose.choice(pool["details"]).format(name="the user", w=_telling_of(value))
        questions.append(Question(asked, "detail", [f"F{number}"]))
    for topic in pool["topics"]:
        if topic["kind"] != "event":
            for kind, form in (("fact", "q"), ("paraphrase", "p")):
                asked = choose.choice(topic[form]).format(name="the user")
                questions.append(Question(asked, kind, of_topic[topic["id"]]))
    return Conversation(f"facts-{pools}-{seed}", turns, questions)


def _telling_of(value: str) -> str:
    return " ".join(re.sub(r"\b(my|our|a|an|the|with|of|by|in)\b", "", value).split()[-2:])


class _Talk:
    """`_said`: per session, exchanges of (speaker, text, mark); a mark stands for a turn in `_asked`'s evidence."""

    def __init__(self, pools: Mapping[str, Any], choose: random.Random, sessions: int) -> None:
        self._pools = pools
        self._random = choose
        self._people: list[str] = choose.sample(pools["names"], 2)
        self._said: list[list[list[tuple[str, str, int | None]]]] = [[] for _ in range(sessions)]
        self._asked: list[tuple[str, str, list[int]]] = []
        self._marks = 0

    def conversation(self, name: str, subjects: int | None) -> Conversation:
        topics = self._random.sample(self._pools["topics"], subjects or len(self._pools["topics"]))
        for topic in topics:
            self._subject(topic)
        for hop in self._pools["hops"]:
            self._hop(hop)
        turns: list[Turn] = []
        places: dict[int, str] = {}
        day = datetime(2025, 1, 6, 9, tzinfo=UTC)
        for number, exchanges in enumerate(self._said, 1):
            day += timedelta(days=self._random.randint(2, 20), minutes=self._random.randint(0, 400))
            at = day
            for index, (speaker, text, mark) in enumerate(self._session(exchanges), 1):
                at += timedelta(seconds=self._random.randint(15, 120))
                turn = Turn(f"D{number}:{index}", number, at.isoformat(), speaker, text)
                turns.append(turn)
                if mark is not None:
                    places[mark] = turn.id
        questions = [Question(text, kind, [places[mark] for mark in marks]) for text, kind, marks in self._asked]
        return Conversation(name, turns, questions)

    def _subject(self, topic: Mapping[str, Any]) -> None:
        values = self._random.sample(topic["values"], len(topic["values"]))
        contested = self._random.random() < 0.5
        tellers = self._random.sample(self._people, 2 if contested else 1)
        said: list[str] = []
        for speaker in tellers:
            if topic["kind"] == "many":
                count = self._random.randint(2, 3) if len(values) > 3 else 1
                marks = [self._tell(topic, speaker, values.pop()) for _ in range(count)]
                self._ask(topic, speaker, "", "multi-hop" if count > 1 else "fact", marks)
            else:
                value = values.pop()
                mark = self._tell(topic, speaker, value)
                kind = {"event": "temporal", "preference": "preference"}.get(topic["kind"], "fact")
                self._ask(topic, speaker, value, "near miss" if contested and kind == "fact" else kind, [mark])
                said.append(value)
        for _ in range(self._random.randint(1, 3)):
            value = self._random.choice(said + topic["values"])
            self._add([(self._random.choice(self._people), self._line(topic["miss"], v=value), None)])
        if self._random.random() < 0.6:  # a question that stays without an answer
            asker = self._random.choice(self._people)
            self._add([(asker, self._line(topic["ask"]), None), (self._other(asker), self._filler(asker), None)])

    def _tell(self, topic: Mapping[str, Any], speaker: str, value: str) -> int:
        mark = self._mark()
        other, when = self._other(speaker), self._random.choice(WHEN)
        exchange: list[tuple[str, str, int | None]] = []
        if self._random.random() < self._pools["prompted"]:
            exchange.append((other, self._line(topic["ask"]), None))
            told = self._line(topic["tell"], v=value, when=when)
        else:
            told = self._line(topic["say"], v=value, when=when)
        exchange.append((speaker, self._padded(told, other), mark))
        exchange.append((other, self._line(topic["react"]), None))
        if self._random.random() < 0.5:
            exchange.append((speaker, self._filler(other), None))
        self._add(exchange)
        return mark

    def _hop(self, hop: Mapping[str, Any]) -> None:
        speaker, (name, _) = self._random.choice(self._people), self._random.sample(self._pools["hop_names"], 2)
        marks = [self._mark(), self._mark()]
        places = sorted(self._random.sample(range(len(self._said)), 2))
        for mark, place, lines in zip(marks, places, (hop["first"], hop["second"]), strict=True):
            text = self._line(lines, n=name, v=self._random.choice(hop["values"]))
            other = self._other(speaker)
            exchange: list[tuple[str, str, int | None]] = [(speaker, self._padded(text, other), mark)]
            self._said[place].append([*exchange, (other, self._filler(speaker), None)])
        self._asked.append((self._line(hop["q"], name=speaker), "multi-hop", marks))

    def _ask(self, topic: Mapping[str, Any], speaker: str, value: str, kind: str, marks: list[int]) -> None:
        words = _telling_of(value)
        self._asked.append((self._line(topic["q"], name=speaker, w=words), kind, marks))
        other_words = "paraphrase" if kind in ("fact", "near miss") else kind
        self._asked.append((self._line(topic["p"], name=speaker, w=words), other_words, marks))
        if value and kind != "temporal":
            self._asked.append((self._line(self._pools["details"], name=speaker, w=words), "detail", marks))

    def _session(self, exchanges: list[Any]) -> Iterator[tuple[str, str, int | None]]:
        first = self._random.choice(self._people)
        other = self._other(first)
        self._random.shuffle(exchanges)
        yield first, self._line(self._pools["openers"], other=other), None
        yield other, self._line(self._pools["answers"], other=first), None
        for exchange in exchanges:
            yield from exchange
            last = exchange[-1][0]
            for _ in range(self._random.randint(0, 3)):
                last = self._other(last)
                yield last, self._filler(self._other(last)), None
        yield first, self._line(self._pools["closers"], other=other), None

    def _add(self, exchange: list[tuple[str, str, int | None]]) -> None:
        self._random.choice(self._said).append(exchange)

    def _padded(self, text: str, other: str) -> str:
        """What is told, somewhere among other sentences."""
        sentences = [self._line([one], other=other) for one in self._more()]
        sentences.insert(self._random.randint(0, len(sentences)), text)
        return " ".join(sentences)

    def _filler(self, other: str) -> str:
        lines = self._more() or [self._random.choice(self._pools["fillers"])]
        return " ".join(self._line([one], other=other) for one in lines)

    def _more(self) -> list[str]:
        low, high = self._pools["sentences"]
        return self._random.sample(self._pools["fillers"], self._random.randint(low, high) - 1)

    def _line(self, lines: Sequence[str], **members: str) -> str:
        text = self._random.choice(lines).format(**members)
        return text[:1].upper() + text[1:]

    def _other(self, speaker: str) -> str:
        return self._people[1 - self._people.index(speaker)]

    def _mark(self) -> int:
        self._marks += 1
        return self._marks
