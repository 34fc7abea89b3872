"""A search store around another, which has all documents sealed and searches them by what `Blinding` leaves of them.

Scores are what they would be without: as many words, as rare, and the same angles.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final

import numpy as np
import orjson

from agentkeep.core.errors import SealBroken
from agentkeep.core.sealing import SEALED
from agentkeep.storage.file_search import FileSearch
from agentkeep.storage.search import EVERYTHING, Beneath, Document, Hit, Page, SearchStore, Selection, Shortlist, Vector
from agentkeep.storage.search_blinding import Blinding, PartitionKey
from agentkeep.storage.search_values import continuation, typed, untyped
from agentkeep.storage.search_words import Stemmer

__all__ = ["KeyOf", "SealedSearchStore", "sealed_search"]

#: The key of a partition, or of all beneath a name.
KeyOf = Callable[[str], Awaitable[PartitionKey]]

_MARK: Final = bytes([SEALED])
_PLACE: Final = 16
_START: Final = len(_MARK) + _PLACE
#: Keys whose blindings are kept: each has a matrix, of 600 KB at 384 dimensions.
_KEPT: Final = 64


def sealed_search(store: SearchStore, key_of: KeyOf) -> SealedSearchStore:
    return _SealedFileSearch(store, key_of) if isinstance(store, FileSearch) else SealedSearchStore(store, key_of)


class SealedSearchStore:
    """Ids, namespaces, times and the keys of metadata stay as they are; texts, strings in metadata and the body are
    sealed under the partition's key, for their partition and id. Raises SealBroken for what was not sealed there."""

    def __init__(self, store: SearchStore, key_of: KeyOf) -> None:
        self._store = store
        self._key_of = key_of
        self._stems = Stemmer()
        self._blindings: OrderedDict[PartitionKey, Blinding] = OrderedDict()

    async def upsert(self, partition: str, documents: Sequence[Document], *, replacing: Collection[str] = ()) -> None:
        key = await self._key_of(partition)
        blinding = self._blinding(key)
        for one in documents:
            if one.vector is not None:
                await blinding.turn(np.size(one.vector))  # which may take a while, the first time
        sealed = await asyncio.to_thread(_sealed, key, blinding, partition, documents)
        await self._store.upsert(partition, sealed, replacing=replacing)

    async def delete(self, partition: str, ids: Sequence[str]) -> list[str]:
        return await self._store.delete(partition, ids)

    async def delete_partition(self, partition: str | Beneath) -> int:
        return await self._store.delete_partition(partition)

    async def get(self, partition: str | Beneath, ids: Sequence[str]) -> list[Document | None]:
        found = await self._store.get(partition, ids)
        opened = iter(await self._opened(partition, [document for document in found if document is not None]))
        return [None if document is None else next(opened) for document in found]

    async def newest(
        self, partition: str | Beneath, selection: Selection = EVERYTHING, *, limit: int = 100, after: str | None = None
    ) -> Page:
        key = await self._key_of(_name(partition))
        blinded = self._blinding(key).selection(selection)
        page = await self._store.newest(partition, blinded, limit=limit, after=after)
        if key.mixed and blinded is not selection:
            page = _merged(page, await self._store.newest(partition, selection, limit=limit, after=after), limit)
        return Page(await self._opened(partition, page.documents), page.after)

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
        key = await self._key_of(_name(partition))
        blinding = self._blinding(key)
        hits = await self._store.search(
            partition,
            text=blinding.query(self._stems.of_query(text)),
            vector=None if vector is None else blinding.turned(vector, await blinding.turn(np.size(vector))),
            selection=blinding.selection(selection),
            limit=limit,
            shortlist=None if key.mixed else shortlist,
        )
        if key.mixed:
            clear = await self._store.search(partition, text=text, vector=vector, selection=selection, limit=limit)
            hits = _best([*filter(_is_sealed, hits), *(hit for hit in clear if not _is_sealed(hit))], limit)
            hits = hits if shortlist is None else shortlist.best(hits)
        opened = await self._opened(partition, [hit.document for hit in hits])
        return [Hit(document, hit.lexical, hit.similarity) for document, hit in zip(opened, hits, strict=True)]

    async def purge(self) -> int:
        return await self._store.purge()

    async def close(self) -> None:
        await self._store.close()

    def _blinding(self, key: PartitionKey) -> Blinding:
        blinding = self._blindings.get(key)
        if blinding is None:
            blinding = self._blindings[key] = Blinding(key)
            if len(self._blindings) > _KEPT:
                self._blindings.popitem(last=False)
        else:
            self._blindings.move_to_end(key)
        return blinding

    async def _opened(self, partition: str | Beneath, documents: Sequence[Document]) -> list[Document]:
        if not documents:
            return []
        key = await self._key_of(_name(partition))
        blinding = self._blinding(key)
        place = None if isinstance(partition, Beneath) else blinding.place(partition)
        return [_open(key, place, one) for one in documents]


class _SealedFileSearch(SealedSearchStore):
    async def in_files(self, ids: Sequence[str]) -> bool:
        """`FileSearch`."""
        assert isinstance(self._store, FileSearch)
        return await self._store.in_files(ids)


def _sealed(key: PartitionKey, blinding: Blinding, partition: str, documents: Sequence[Document]) -> list[Document]:
    """Blocks."""
    stems, place = Stemmer(), blinding.place(partition)
    return [
        Document(
            one.id,
            blinding.text(stems.of(one.text)),
            one.created_ms,
            blinding.text(stems.of(one.context)),
            None if one.vector is None else blinding.turned(one.vector, blinding.known_turn(np.size(one.vector))),
            one.namespaces,
            blinding.metadata(one.metadata),
            _MARK + place + key.seal(_contents(one), _label(place, one.id)),
            one.expires_ms,
            blinding.text(stems.of(one.farther)),
        )
        for one in documents
    ]


def _contents(document: Document) -> bytes:
    """The vector as well as it was: to turn back those of all hits would take longer than to find them. Raises
    ValueError for metadata that is none."""
    vector = b"" if document.vector is None else np.asarray(document.vector, np.float32).tobytes()
    members = [document.text, document.context, document.farther, typed(document.metadata), len(vector)]
    return orjson.dumps(members) + b"\n" + vector + document.body


def _open(key: PartitionKey, place: bytes | None, document: Document) -> Document:
    """`place` None: wherever beneath the key's name it says that it is."""
    if not _has_mark(document):
        if not key.mixed:
            raise SealBroken("a document is stored in clear where none such is")
        return document
    found = document.body[len(_MARK) : _START]
    if place is not None and found != place:
        raise SealBroken("a document was moved from another partition")
    contents = key.open(document.body[_START:], _label(found, document.id))
    start = contents.index(b"\n") + 1
    text, context, farther, metadata, size = orjson.loads(contents[:start])
    return Document(
        document.id,
        text,
        document.created_ms,
        context,
        np.frombuffer(contents, np.float32, size // 4, start) if size else None,
        document.namespaces,
        untyped(metadata),
        contents[start + size :],
        document.expires_ms,
        farther,
    )


def _label(place: bytes, id: str) -> str:
    return f"document#{place.hex()}#{id}"


def _name(partition: str | Beneath) -> str:
    return partition.name if isinstance(partition, Beneath) else partition


def _has_mark(document: Document) -> bool:
    return document.body[: len(_MARK)] == _MARK


def _is_sealed(hit: Hit) -> bool:
    return _has_mark(hit.document)


def _merged(one: Page, other: Page, limit: int) -> Page:
    """The list's beginning, of what is on either page."""
    found: dict[Any, Document] = {(document.created_ms, document.id): document for document in one.documents}
    found |= {(document.created_ms, document.id): document for document in other.documents}
    documents = [found[place] for place in sorted(found, reverse=True)]
    more = len(documents) > limit or one.after is not None or other.after is not None
    documents = documents[:limit]
    return Page(documents, continuation(documents[-1]) if more and documents else None)


def _best(hits: Sequence[Hit], limit: int) -> list[Hit]:
    """The best by words and the best by vector."""
    by_words = sorted((hit for hit in hits if hit.lexical > 0), key=lambda hit: -hit.lexical)[:limit]
    by_vector = sorted((hit for hit in hits if hit.similarity is not None), key=lambda hit: -(hit.similarity or 0.0))[
        :limit
    ]
    chosen = {id(hit): hit for hit in (*by_words, *by_vector)}
    return sorted(chosen.values(), key=lambda hit: (-hit.lexical, -(hit.similarity or -1.0)))
