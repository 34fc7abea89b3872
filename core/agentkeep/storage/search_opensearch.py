"""Search store on OpenSearch, for deployments of several services.

A partition's documents are on one shard, found by filters that every query has (`Place`). Vectors are found by Lucene's
k-NN, whose filter is the partition's too; words by BM25 counted in the partition (search_opensearch_scores).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from agentkeep.core.clock import Clock, SystemClock, epoch_ms
from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage.opensearch import OpenSearchClient, OpenSearchRefusal
from agentkeep.storage.opensearch_index import WINDOW, Found, OpenSearchIndex
from agentkeep.storage.search import EVERYTHING, Beneath, Document, Hit, Page, Selection, Shortlist, Vector
from agentkeep.storage.search_opensearch_rows import INDEX, Place, document_id, encode, read_document, vector_field
from agentkeep.storage.search_opensearch_scores import (
    Statistics,
    matching,
    partitions,
    read_statistics,
    scored,
    statistics,
)
from agentkeep.storage.search_values import continuation, cursor, unit
from agentkeep.storage.search_words import Stemmer

__all__ = ["OpenSearchSearchStore"]

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

#: How often a batch is written anew before it is taken back; seconds before the second time.
ATTEMPTS, FIRST_PAUSE = 3, 0.2
_CONFLICT: Final = 409  # others wrote at the same moment
#: At least so many neighbours are looked for in the graph of vectors: with fewer, near ones are missed.
NEIGHBOURS: Final = 100

_SORT: Final = [{"created_ms": "desc"}, {"id": "desc"}]
#: Names only. Otherwise a source is given whole: to choose of it, OpenSearch would have to take it apart.
_NAMES: Final = {"_source": False}


class OpenSearchSearchStore:
    """`model` and `dimensions` of its vectors are recorded in the index with the first; as in the SQLite store, vectors
    of another are refused (StoreUnavailable, says what to do), and with `dimensions` None it neither takes nor compares
    any. The client is closed with the store. `patience`: seconds that a search takes at the most, and in
    which a write is tried again.

    A batch is one request to one shard. It is tried again where OpenSearch takes only a part; where that does not help,
    the part is taken back, and what it replaced is restored. Two limits, as OpenSearch has no transactions: a reader
    may see a part of a batch during the write, and a part may stay where OpenSearch is away for all of this.
    """

    def __init__(
        self,
        client: OpenSearchClient,
        *,
        dimensions: int | None,
        model: str = "",
        name: str = "agentkeep-records",
        shards: int = 1,
        clock: Clock | None = None,
        patience: float = 20.0,
    ) -> None:
        self._dimensions = dimensions
        self._model = model
        self._index = OpenSearchIndex(client, name, INDEX, shards=shards, check=self._check)
        self._clock = clock or SystemClock()
        self._patience = patience
        self._stems = Stemmer()

    async def upsert(self, partition: str, documents: Sequence[Document], *, replacing: Collection[str] = ()) -> None:
        units = [None if document.vector is None else unit(document.vector, self._dimensions) for document in documents]
        batch = secrets.token_hex(8)

        def rows() -> dict[str, dict[str, Any]]:
            stems = Stemmer()
            return {
                document_id(partition, document.id): encode(partition, document, unit, stems, batch)
                for document, unit in zip(documents, units, strict=True)
            }

        encoded = await asyncio.to_thread(rows)
        if not encoded:
            return
        routing = Place(partition).routing
        only = {document_id(partition, id) for id in replacing}
        former = await self._index.read(list(encoded), routing) if len(encoded) > 1 or only else {}
        try:
            await self._write_all(routing, encoded, only & encoded.keys(), former)
        except StoreUnavailable as error:
            if len(encoded) > 1:
                await self._take_back(partition, list(encoded), former, batch)
            raise StoreUnavailable(f"documents were not stored: {error}") from error

    async def delete(self, partition: str, ids: Sequence[str]) -> list[str]:
        place, now = Place(partition), self._now()
        names = {document_id(partition, id): id for id in ids}
        found = await self._index.read(list(names), place.routing)
        if found:
            await self._index.bulk([{"delete": {"_id": name}} for name in found], place.routing)
        return [names[name] for name, row in found.items() if row["_source"]["expires_ms"] > now]

    async def delete_partition(self, partition: str | Beneath) -> int:
        place = Place(partition)
        return await self._index.delete(place.everything(), place.routing)

    async def get(self, partition: str | Beneath, ids: Sequence[str]) -> list[Document | None]:
        place, now = Place(partition), self._now()
        if isinstance(partition, Beneath):
            wanted = {"terms": {"id": list(dict.fromkeys(ids))}}
            hits = await self._index.hits({"query": place.query(now, EVERYTHING, wanted), "size": WINDOW})
            found = {document.id: document for document in map(_document, hits)}
            return [found.get(id) for id in ids]
        rows = await self._index.read([document_id(partition, id) for id in dict.fromkeys(ids)], place.routing)
        live = {name: _document(row) for name, row in rows.items() if row["_source"]["expires_ms"] > now}
        return [live.get(document_id(partition, id)) for id in ids]

    async def newest(
        self, partition: str | Beneath, selection: Selection = EVERYTHING, *, limit: int = 100, after: str | None = None
    ) -> Page:
        limit = min(limit, WINDOW - 1)
        place = Place(partition)
        behind = {} if after is None else {"search_after": list(cursor(after))}
        query = place.query(self._now(), selection)
        hits = await self._index.hits({"query": query, "sort": _SORT, "size": limit + 1, **behind}, place.routing)
        documents = [_document(hit) for hit in hits[:limit]]
        return Page(documents, continuation(documents[-1]) if len(hits) > limit and documents else None)

    async def search(
        self,
        partition: str | Beneath,
        *,
        text: str = "",
        vector: Vector | None = None,
        selection: Selection = EVERYTHING,
        limit: int = 100,
        shortlist: Shortlist | None = None,
    ) -> list[Hit]:
        query = None if vector is None else unit(vector, self._dimensions)
        limit = min(limit, WINDOW)
        place, now = Place(partition), self._now()
        place.query(now, selection)  # raises for conditions that are none, in any case
        if limit <= 0:
            return []
        words = self._stems.of_query(text)
        hits = await self._in_time(self._search(place, (now, selection, words), query, limit))
        if shortlist is not None:
            hits = shortlist.best(hits)
        return sorted(hits, key=lambda hit: (-hit.lexical, -(hit.similarity or -1.0)))

    async def _search(
        self, place: Place, wanted: tuple[int, Selection, Sequence[str]], query: Vector | None, limit: int
    ) -> list[Hit]:
        now, selection, words = wanted
        within = place.query(now, selection)
        near, pages = await asyncio.gather(
            self._nearest(place, within, query, limit), self._statistics(place, within, words, now)
        )
        found = await self._lexical(place, wanted, pages, near, limit)
        return [
            Hit(
                document := _document(hit),
                hit["_score"],
                None if query is None or document.vector is None else float(document.vector @ query),
            )
            for hit in found
        ]

    async def purge(self) -> int:
        return await self._index.delete({"range": {"expires_ms": {"lte": self._now()}}})

    async def close(self) -> None:
        await self._index.close()

    async def _in_time(self, work: Coroutine[Any, Any, Result]) -> Result:
        try:
            async with asyncio.timeout(self._patience):
                return await work
        except TimeoutError:
            raise StoreUnavailable(f"OpenSearch was not done within {self._patience:g} s: try again") from None

    def _now(self) -> int:
        return epoch_ms(self._clock.now())

    # Searching.

    async def _nearest(
        self, place: Place, within: Mapping[str, Any], query: Vector | None, limit: int
    ) -> Sequence[str]:
        """Their names in the index."""
        if query is None:
            return []
        neighbours = {"vector": query, "k": min(max(limit, NEIGHBOURS), WINDOW), "filter": within}
        asked = {**_NAMES, "query": {"knn": {"embedding": neighbours}}, "size": limit}
        return [hit["_id"] for hit in await self._index.hits(asked, place.routing)]

    async def _statistics(
        self, place: Place, within: Mapping[str, Any], words: Sequence[str], now: int
    ) -> list[dict[str, Statistics]]:
        """Of all partitions in which there is something to score, in portions."""
        if not words:
            return []
        if place.routing is not None:
            answer = await self._index.search(statistics(place.query(now), words), place.routing)
            found = read_statistics(answer)
            return [found] if found else []
        pages = []
        async for names in self._partitions({"bool": {"filter": [within, matching(words)]}}):
            inside = place.query(now, EVERYTHING, {"terms": {"partition": names}})
            pages.append(read_statistics(await self._index.search(statistics(inside, words))))
        return pages

    async def _partitions(self, query: Mapping[str, Any]) -> AsyncIterator[list[str]]:
        after = None
        while True:
            found = (await self._index.search(partitions(query, after)))["aggregations"]["partitions"]
            if not found["buckets"]:
                return
            yield [bucket["key"]["partition"] for bucket in found["buckets"]]
            after = found.get("after_key")

    async def _lexical(
        self,
        place: Place,
        wanted: tuple[int, Selection, Sequence[str]],
        pages: Iterable[Mapping[str, Statistics]],
        also: Sequence[str],
        limit: int,
    ) -> Sequence[Found]:
        """The best by words, and those of `also`, which may have none of them: each once, with its score."""
        now, selection, words = wanted
        best: list[Found] = []
        others: list[Found] = []
        for page in pages:
            inside = {"terms": {"partition": list(page)}}
            having = place.query(now, selection, inside, matching(words))
            searches = [{"query": scored(having, words, page), "size": limit}]
            if also:
                these = place.query(now, selection, inside, _named(also))
                searches.append({"query": scored(these, words, page), "size": len(also)})
            answers = await self._index.several_hits(searches, place.routing)
            best = sorted([*best, *answers[0]], key=lambda hit: (-hit["_score"], hit["_id"]))[:limit]
            others += [hit for answer in answers[1:] for hit in answer]
        found = {hit["_id"]: hit for hit in (*others, *best)}
        if rest := [name for name in also if name not in found]:  # in partitions that have none of the words
            unscored = {"constant_score": {"filter": place.query(now, selection, _named(rest)), "boost": 0}}
            hits = await self._index.hits({"query": unscored, "size": len(rest)}, place.routing)
            found |= {hit["_id"]: hit for hit in hits}
        return list(found.values())

    # Writing.

    async def _write_all(
        self,
        routing: str | None,
        rows: Mapping[str, Mapping[str, Any]],
        replacing: Collection[str],
        former: Mapping[str, Found],
    ) -> None:
        """Of `replacing` those alone that are there, as they were `former`ly; where others write as well, as they are
        then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
                if replacing:
                    former = await self._index.read(list(replacing), routing)
            lines: list[Mapping[str, Any]] = []
            for name, row in rows.items():
                if name not in replacing:
                    lines += [{"index": {"_id": name}}, row]
                elif name in former:
                    lines += [{"index": _unchanged(name, former[name])}, row]
            try:
                if lines:
                    await self._index.bulk(lines, routing)
                return
            except StoreUnavailable as error:
                passes = not isinstance(error, OpenSearchRefusal) or error.passes or error.status == _CONFLICT
                if attempt == ATTEMPTS - 1 or not passes or loop.time() > deadline:
                    raise
                logger.warning("a write is tried again: %s", error)

    async def _take_back(
        self, partition: str, names: Sequence[str], former: Mapping[str, Mapping[str, Any]], batch: str
    ) -> None:
        """Whatever of a batch was written, and by nobody else since."""
        routing = Place(partition).routing
        try:
            lines: list[Mapping[str, Any]] = []
            for name, row in (await self._index.read(names, routing)).items():
                if row["_source"]["batch"] != batch:
                    continue
                where = _unchanged(name, row)
                if name in former:
                    document = _document(former[name])
                    earlier = encode(
                        partition, document, document.vector, self._stems, former[name]["_source"]["batch"]
                    )
                    lines += [{"index": where}, earlier]
                else:
                    lines.append({"delete": where})
            if lines:
                await self._index.bulk(lines, routing)
        except StoreUnavailable as error:
            logger.error("a part of a batch that was refused may have been stored: %s", error)

    async def _check(self) -> None:
        """Records whose vectors these are, unless others are there. Looks again after writing: another process may
        have been first."""
        if self._dimensions is None:
            return
        wanted = {"model": self._model, "dimensions": self._dimensions}
        recorded = await self._recorded()
        if not recorded:
            change = {"_meta": {"vectors": wanted}, "properties": vector_field(self._dimensions)}
            try:
                await self._index.extend(change)
            except OpenSearchRefusal as error:
                if error.status != 400:
                    raise
            recorded = await self._recorded()
        if recorded != wanted:
            raise StoreUnavailable(
                f"the index {self._index.name} holds vectors of the model {recorded.get('model')!r} "
                f"({recorded.get('dimensions')} dimensions), which cannot be compared with those of {self._model!r} "
                f"({self._dimensions}): configure the former model again, or none (AGENTKEEP_MEMORY_EMBEDDING=none), "
                "to search by words alone"
            )

    async def _recorded(self) -> Mapping[str, Any]:
        recorded: Mapping[str, Any] = (await self._index.mapping()).get("_meta", {}).get("vectors", {})
        return recorded


def _unchanged(name: str, row: Found) -> Mapping[str, Any]:
    """The document under this name, as long as nobody has written it since."""
    return {"_id": name, "if_seq_no": row["_seq_no"], "if_primary_term": row["_primary_term"]}


def _named(names: Sequence[str]) -> Mapping[str, Any]:
    return {"ids": {"values": names}}


def _document(found: Mapping[str, Any]) -> Document:
    return read_document(found["_source"])
