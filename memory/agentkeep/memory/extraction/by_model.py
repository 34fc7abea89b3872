"""Extraction and consolidation by a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from agentkeep.core.ports import Question
from agentkeep.memory.extraction import prompts, schemas
from agentkeep.memory.extraction.asking import Asking, BadAnswer
from agentkeep.memory.extraction.changes import Changes
from agentkeep.memory.extraction.groups import Group
from agentkeep.memory.extraction.kinds import Kind, Step, kind_of, step
from agentkeep.memory.extraction.making import (
    LONGEST_TEXT,
    Found,
    Work,
    normalised_text,
    preference_text,
    summary_id,
    windows,
)
from agentkeep.memory.extraction.material import Message
from agentkeep.memory.long_term.record import Record, new_id
from agentkeep.memory.strategies import Strategy

__all__ = ["ModelExtractor"]

#: Characters of messages in one question: so few that what is found in them fits into an answer.
_WINDOW: Final = 12_000
_EARLIER: Final = 4_000
_ANSWER_TOKENS: Final = 4096
_MOST_FOUND: Final = 200
#: How many found facts are consolidated in one question, and how many known records are shown for each.
_CONSOLIDATED: Final = 20
_SIMILAR: Final = 5


class ModelExtractor:
    """`model_id`: for steps whose strategy names none."""

    def __init__(self, asking: Asking, model_id: str) -> None:
        self._asking = asking
        self._model_id = model_id

    def serves(self, strategy: Strategy) -> bool:
        return bool(self._steps(strategy)[0].model_id)

    async def changes(self, work: Work, group: Group) -> Changes:
        if kind_of(group.strategy) is Kind.SUMMARY:
            return await self._summarised(work, group)
        found = await self._found(work, group)
        changes, used = Changes(), set[str]()
        for start in range(0, len(found), _CONSOLIDATED):
            changes += await self._consolidated(work, group, found[start : start + _CONSOLIDATED], start, used)
        return changes

    async def _found(self, work: Work, group: Group) -> list[Found]:
        strategy, kind = group.strategy, kind_of(group.strategy)
        assert kind is not None
        extraction = self._steps(strategy)[0]
        schema = schemas.facts(strategy) if kind is Kind.FACTS else schemas.preferences(strategy)
        told = prompts.EXTRACTION[kind] + prompts.inferred_metadata(schemas.inferred(strategy))
        system = prompts.with_override(told, extraction.append_to_prompt)
        found: dict[str, Found] = {}
        earlier: Sequence[Message] = work.earlier
        for window in windows(group.messages, _WINDOW):
            shown = prompts.conversation("earlier", _tail(earlier, _EARLIER), numbered=False)
            prompt = f"{shown}\n{prompts.conversation('conversation', window)}"
            question = self._question(work, extraction, "extraction", system, prompt, schema)
            for one in await self._asking.ask(question, lambda answer, window=window: _read(answer, kind, window)):  # type: ignore[misc]
                found.setdefault(normalised_text(one.said), one)
            earlier = window
        return list(found.values())

    async def _consolidated(
        self, work: Work, group: Group, found: Sequence[Found], first: int, used: set[str]
    ) -> Changes:
        """`first`: the place of the first among all that were found; `used`: the records that were replaced before."""
        consolidation = self._steps(group.strategy)[1]
        made = [
            work.record(
                group,
                new_id(f"extracted {work.seed} {group.strategy.id} {group.namespace} {first + place}"),
                one.text,
                one.messages,
                f"model {self._steps(group.strategy)[0].model_id}",
                metadata=one.metadata,
            )
            for place, one in enumerate(found)
        ]
        known = await self._known(work, group, found)
        if not known:
            return Changes(made)
        system = prompts.with_override(prompts.CONSOLIDATION, consolidation.append_to_prompt)
        prompt = prompts.facts([one.said for one in found], known)
        question = self._question(work, consolidation, "consolidation", system, prompt, schemas.CONSOLIDATION)
        operations = await self._asking.ask(question, lambda answer: _operations(answer, len(found), len(known)))
        added: list[Record] = []
        replaced: list[Record] = []
        for place, (one, record) in enumerate(zip(found, made, strict=True)):
            operation = operations[place]
            if operation["operation"] == "SkipMemory":
                continue
            old = known[operation["record"]] if operation["operation"] == "UpdateMemory" else None
            if old is None or old.id in used:
                added.append(record)
                continue
            used.add(old.id)
            text = operation["text"]
            if kind_of(group.strategy) is Kind.PREFERENCES:
                text = preference_text(text, one.context, one.categories)
            replaced.append(work.replaced(group, old, text, record))
        return Changes(added, replaced)

    async def _known(self, work: Work, group: Group, found: Sequence[Found]) -> list[Record]:
        """Those most like what was found; of the same namespace, strategy and unchanging metadata."""
        known: dict[str, Record] = {}
        for one in found:
            similar = await work.records.similar(one.said, group.namespace, _SIMILAR, strategy_id=group.strategy.id)
            for scored in similar:
                if all(scored.record.metadata.get(key) == value for key, value in group.metadata.items()):
                    known.setdefault(scored.record.id, scored.record)
        return list(known.values())

    async def _summarised(self, work: Work, group: Group) -> Changes:
        consolidation = self._steps(group.strategy)[1]
        system = prompts.with_override(prompts.SUMMARY, consolidation.append_to_prompt)
        record_id = summary_id(work, group)
        (known,) = await work.records.get([record_id])
        text = known.text if known is not None else None
        for window in windows(group.messages, _WINDOW):
            prompt = f"{prompts.summary(text)}\n{prompts.conversation('conversation', window)}"
            question = self._question(work, consolidation, "consolidation", system, prompt, schemas.SUMMARY)
            text = await self._asking.ask(question, lambda answer: _text(answer["summary"]))
        if text is None:
            return Changes()
        made = work.record(group, record_id, text, group.messages, f"model {consolidation.model_id}")
        if known is None:
            return Changes([made])
        return Changes(replaced=[work.replaced(group, known, text, made)])

    def _steps(self, strategy: Strategy) -> tuple[Step, Step]:
        """Extraction and consolidation; where only one of them names a model, it does both."""
        extraction, consolidation = step(strategy, "extraction"), step(strategy, "consolidation")
        return (
            Step(extraction.append_to_prompt, extraction.model_id or self._model_id or consolidation.model_id),
            Step(consolidation.append_to_prompt, consolidation.model_id or self._model_id or extraction.model_id),
        )

    def _question(
        self, work: Work, asked: Step, purpose: str, system: str, prompt: str, schema: schemas.Schema
    ) -> Question:
        return Question(
            asked.model_id, system, prompt, purpose, _ANSWER_TOKENS, schema, work.records.actor_id, work.session
        )


def _read(answer: Any, kind: Kind, window: Sequence[Message]) -> list[Found]:
    """Raises BadAnswer."""
    items = answer["facts" if kind is Kind.FACTS else "preferences"]
    if len(items) > _MOST_FOUND:
        raise BadAnswer(f"more than {_MOST_FOUND} at once")
    found: list[Found] = []
    for item in items:
        messages = [window[number] for number in dict.fromkeys(item["messages"]) if 0 <= number < len(window)]
        metadata = {key: value for key, value in item.get("metadata", {}).items() if value is not None}
        if kind is Kind.FACTS:
            said = text = _text(item["fact"])
            context, categories = "", []
        else:
            said, context, categories = _text(item["preference"]), item["context"], item["categories"]
            text = _text(preference_text(said, context, categories))
        found.append(Found(said, text, messages or window, metadata, context, categories))
    return found


def _operations(answer: Any, facts: int, records: int) -> dict[int, Any]:
    """By fact, each exactly once. Raises BadAnswer."""
    operations = {operation["fact"]: operation for operation in answer["operations"]}
    if len(operations) != len(answer["operations"]) or operations.keys() != set(range(facts)):
        raise BadAnswer("it has not one operation for each fact")
    for operation in operations.values():
        if operation["operation"] == "UpdateMemory":
            record = operation["record"]
            if record is None or not 0 <= record < records:
                raise BadAnswer("it updates a record that was not shown")
            _text(operation["text"] or "")
    return operations


def _text(text: str) -> str:
    """Raises BadAnswer."""
    text = text.strip()
    if not 0 < len(text) <= LONGEST_TEXT:
        raise BadAnswer("a text is empty or too long for a record")
    return text


def _tail(messages: Sequence[Message], characters: int) -> Sequence[Message]:
    """The last messages that fit together."""
    kept: list[Message] = []
    for message in reversed(messages):
        characters -= len(message.text)
        if characters < 0:
            break
        kept.append(message)
    return kept[::-1]
