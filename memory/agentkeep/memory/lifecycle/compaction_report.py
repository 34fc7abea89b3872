"""What a compaction was asked for, how far it has come, and what it did: durable, without anything users said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

__all__ = ["CompactionReport", "Failed", "Merge", "Wanted"]

#: How many merges and failures are listed; all are counted.
_LISTED = 200


@dataclass(frozen=True, slots=True)
class Wanted:
    """`older_than_days`: of what age records are old. `namespace`: that, and all beneath; `strategy_id`, `actor_id`:
    of that category, that actor; None: of all. `model_id` None: duplicates alone are merged. `dry_run`: nothing is
    changed, and no model asked. `since_ms`: a model is not asked about records of which none was made since. At most
    `most_merges` records are written, and `most_questions` asked."""

    memory_id: str
    older_than_days: int
    namespace: str | None = None
    strategy_id: str | None = None
    actor_id: str | None = None
    model_id: str | None = None
    dry_run: bool = False
    since_ms: int | None = None
    most_merges: int = 1000
    most_questions: int = 200


@dataclass(frozen=True, slots=True)
class Merge:
    """`record_id`: of the record that stands for the `records` now; None in a dry run. `how`: `duplicates`, or `model`;
    in a dry run a model would be shown the records and merge some of them, or none."""

    actor_id: str
    namespace: str | None
    how: str
    record_id: str | None
    records: Sequence[str]


@dataclass(frozen=True, slots=True)
class Failed:
    """Records that stay as they are, for the model's answer was of no use, or there was none."""

    actor_id: str
    namespace: str | None
    records: int
    reason: str


@dataclass(frozen=True, slots=True)
class CompactionReport:
    """`seen`: old records looked at. `merged`: records that are gone, for others stand for them now (in a dry run: the
    duplicates that would be); `written`: those others. `changed`: merges given up, for their records changed meanwhile.
    `input_tokens`, `output_tokens`: about how many, from the texts' lengths; exact counts are with usage. `complete`:
    it came to the end before one of its limits. `after`: how far the memory is gone through."""

    id: str
    wanted: Wanted
    requested_by: str
    requested_ms: int
    attempts: int = 0
    actors: int = 0
    seen: int = 0
    merged: int = 0
    written: int = 0
    changed: int = 0
    failures: int = 0
    questions: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    merges: Sequence[Merge] = field(default=())
    failed: Sequence[Failed] = field(default=())
    after: str | None = None
    complete: bool | None = None
    finished_ms: int | None = None

    @property
    def is_full(self) -> bool:
        return self.written >= self.wanted.most_merges or self.questions >= self.wanted.most_questions

    def with_merge(self, merge: Merge, removed: int, written: int) -> CompactionReport:
        return replace(
            self,
            merged=self.merged + removed,
            written=self.written + written,
            merges=[*self.merges, merge][:_LISTED],
        )

    def with_failure(self, failed: Failed) -> CompactionReport:
        return replace(self, failures=self.failures + 1, failed=[*self.failed, failed][:_LISTED])
