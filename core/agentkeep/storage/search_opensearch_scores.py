"""How words are weighed on OpenSearch: as on SQLite, by BM25 whose statistics are those of each partition alone.

OpenSearch's own BM25 counts a word over the whole shard, so that other users' documents would show in one user's
scores, and rounds lengths. So what a score is made of is asked for first, and the score is computed by a script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentkeep.storage.search_opensearch_rows import term
from agentkeep.storage.search_words import K1, UNITS, B

__all__ = ["PARTITIONS_AT_ONCE", "Statistics", "matching", "partitions", "read_statistics", "scored", "statistics"]

#: Times a query's words, these are fewer buckets than an answer may have.
PARTITIONS_AT_ONCE: Final = 500

# A word is in the index as often as it has parts of what one in the text counts for: hence the weight.
_SCRIPT: Final = """
def statistics = params.statistics.get(doc['partition'].value);
double length = params.k1 * (1 - params.b + params.b * doc['length'].value / statistics.average);
double score = 0;
for (int i = 0; i < params.words.length; i++) {
    double count = termFreq('words', params.words[i]) * params.weight;
    if (count > 0) score += statistics.rarity[i] * count * (params.k1 + 1) / (count + length);
}
return score / statistics.best;
"""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one partition. `rarity`: of each of the query's words; `best`: their sum, the score of a document of average
    length with each word once."""

    average: float
    rarity: Sequence[float]

    def parameters(self) -> dict[str, Any]:
        return {"average": self.average, "rarity": list(self.rarity), "best": sum(self.rarity)}


def matching(words: Sequence[str]) -> dict[str, Any]:
    """The clause that at least one of the words is in a document."""
    return {"terms": {"words": sorted(set(map(term, words)))}}


def partitions(query: Mapping[str, Any], after: Mapping[str, Any] | None) -> dict[str, Any]:
    """The search for partitions with documents that meet `query`, so many at once."""
    sources = [{"partition": {"terms": {"field": "partition"}}}]
    composite = {"size": PARTITIONS_AT_ONCE, "sources": sources, **({"after": after} if after else {})}
    return {"size": 0, "track_total_hits": False, "query": query, "aggs": {"partitions": {"composite": composite}}}


def statistics(query: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The search for the statistics of the partitions in which `query` is met by all documents."""
    measures = {
        "length": {"sum": {"field": "length"}},
        "words": {"filters": {"filters": [{"term": {"words": term(word)}} for word in words]}},
    }
    terms = {"field": "partition", "size": PARTITIONS_AT_ONCE}
    by_partition = {"partitions": {"terms": terms, "aggs": measures}}
    return {"size": 0, "track_total_hits": False, "query": query, "aggs": by_partition}


def read_statistics(answer: Mapping[str, Any]) -> dict[str, Statistics]:
    return {bucket["key"]: _statistics(bucket) for bucket in answer["aggregations"]["partitions"]["buckets"]}


def _statistics(bucket: Mapping[str, Any]) -> Statistics:
    documents = bucket["doc_count"]
    counts = [word["doc_count"] for word in bucket["words"]["buckets"]]
    return Statistics(
        average=bucket["length"]["value"] / documents or 1.0,
        rarity=[math.log1p((documents - count + 0.5) / (count + 0.5)) for count in counts],
    )


def scored(query: Mapping[str, Any], words: Sequence[str], found: Mapping[str, Statistics]) -> dict[str, Any]:
    """The query whose documents have as their scores the shares that `Hit.lexical` means. `query` selects only within
    the partitions of which statistics were found."""
    parameters = {
        "statistics": {partition: each.parameters() for partition, each in found.items()},
        "words": [term(word) for word in words],
        "weight": 1 / UNITS,
        "k1": K1,
        "b": B,
    }
    return {"script_score": {"query": query, "script": {"source": _SCRIPT, "params": parameters}}}
