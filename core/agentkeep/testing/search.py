"""The contract of a search store. Every implementation runs it: subclass, and give it a `search_store` fixture.

The stores under test take vectors of four dimensions.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage.search import Beneath, Condition, Document, Operator, SearchStore, Selection, Shortlist

__all__ = ["DIMENSIONS", "SearchStoreContract", "SharedSearchStoreContract"]

DIMENSIONS = 4
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ALICE, BOB = "memory-1/alice", "memory-1/bob"


def vector(*numbers: float) -> Any:
    return np.array(numbers, np.float32)


def document(id: str, text: str = "", **members: Any) -> Document:
    return Document(id, text, members.pop("created_ms", 1000), **members)


def in_future(seconds: float) -> int:
    return int((datetime.now(UTC) + timedelta(seconds=seconds)).timestamp() * 1000)


class SearchStoreContract:
    async def test_gives_back_what_was_put(self, search_store: SearchStore) -> None:
        put = Document(
            "mem-1",
            "Alice likes tea.",
            created_ms=1234,
            context="What do you drink?",
            vector=vector(0, 3, 0, 4),
            namespaces=["/facts/alice/"],
            metadata={"topic": "drinks", "weight": 2.5, "seen": NOON, "tags": ["hot", "leaf"]},
            body=b"\x00\xff",
            expires_ms=in_future(3600),
        )
        await search_store.upsert(ALICE, [put])
        [got] = await search_store.get(ALICE, ["mem-1"])
        assert got is not None
        assert (got.id, got.text, got.created_ms, got.context) == (put.id, put.text, put.created_ms, put.context)
        assert (list(got.namespaces), got.body, got.expires_ms) == (put.namespaces, put.body, put.expires_ms)
        assert dict(got.metadata) == put.metadata
        assert got.vector is not None
        np.testing.assert_allclose(got.vector / np.linalg.norm(got.vector), [0, 0.6, 0, 0.8], atol=1e-6)

    async def test_get_keeps_the_order_asked_for(self, search_store: SearchStore) -> None:
        await search_store.upsert(ALICE, [document("a"), document("b")])
        assert [found and found.id for found in await search_store.get(ALICE, ["b", "x", "a"])] == ["b", None, "a"]

    async def test_a_new_version_of_what_is_gone_does_not_bring_it_back(self, search_store: SearchStore) -> None:
        await search_store.upsert(ALICE, [document("a", "tea"), document("b", "tea")])
        await search_store.delete(ALICE, ["a"])
        new = [document("a", "coffee"), document("b", "coffee"), document("c", "coffee")]
        await search_store.upsert(ALICE, new, replacing=["a", "b", "elsewhere"])
        assert {hit.document.id for hit in await search_store.search(ALICE, text="coffee tea")} == {"b", "c"}
        await search_store.upsert(ALICE, [document("a", "coffee")], replacing=["a"])
        assert await search_store.get(ALICE, ["a"]) == [None]

    async def test_neither_does_one_that_is_written_as_it_goes(self, search_store: SearchStore) -> None:
        for number in range(5):
            id = f"a{number}"
            await search_store.upsert(ALICE, [document(id, "tea")])
            rewriting = [search_store.upsert(ALICE, [document(id, "coffee")], replacing=[id]) for _ in range(3)]
            done = await asyncio.gather(*rewriting, search_store.delete(ALICE, [id]), return_exceptions=True)
            assert all(one is None or isinstance(one, StoreUnavailable) for one in done[:-1])
            assert await search_store.get(ALICE, [id]) == [None]

    async def test_a_shortlist_is_the_best_of_what_is_found(self, search_store: SearchStore) -> None:
        near, far = vector(1, 0, 0, 0), vector(1, 5, 0, 0)
        await search_store.upsert(
            ALICE,
            [
                document("both", "green tea", vector=near),
                document("words", "green tea", vector=far),
                document("meaning", "coffee", vector=near),
                document("neither", "coffee", vector=far),
            ],
        )

        async def found(words: float, meaning: float) -> list[str]:
            shortlist = Shortlist(2, words, meaning)
            hits = await search_store.search(ALICE, text="green tea", vector=near, shortlist=shortlist)
            assert all(hit.similarity is not None for hit in hits)
            return sorted(hit.document.id for hit in hits)

        assert await found(1.0, 0.01) == ["both", "words"]
        assert await found(0.01, 1.0) == ["both", "meaning"]

    async def test_upsert_replaces(self, search_store: SearchStore) -> None:
        await search_store.upsert(ALICE, [document("a", "tea", vector=vector(1, 0, 0, 0), metadata={"k": "old"})])
        await search_store.upsert(ALICE, [document("a", "coffee", vector=vector(0, 1, 0, 0))])
        [hit] = await search_store.search(ALICE, text="coffee tea", vector=vector(0, 1, 0, 0))
        assert hit.document.text == "coffee"
        assert hit.document.metadata == {}
        assert hit.similarity == pytest.approx(1, abs=1e-5)
        assert await search_store.search(ALICE, text="tea") == []

    async def test_upsert_is_all_or_nothing(self, search_store: SearchStore) -> None:
        with pytest.raises(ValueError):
            await search_store.upsert(ALICE, [document("good"), document("bad", vector=vector(1, 2))])
        assert await search_store.get(ALICE, ["good"]) == [None]

    @pytest.mark.parametrize("bad", [(0, 0, 0, 0), (1, 2, 3, float("nan")), (1, 2, 3)])
    async def test_refuses_vectors_that_are_none(self, search_store: SearchStore, bad: tuple[float, ...]) -> None:
        with pytest.raises(ValueError):
            await search_store.upsert(ALICE, [document("a", vector=vector(*bad))])
        with pytest.raises(ValueError):
            await search_store.search(ALICE, vector=vector(*bad))

    async def test_delete_says_what_was_there(self, search_store: SearchStore) -> None:
        await search_store.upsert(ALICE, [document("a", "tea"), document("b", "tea")])
        assert await search_store.delete(ALICE, ["a", "x"]) == ["a"]
        assert await search_store.get(ALICE, ["a", "b"]) != [None, None]
        assert [hit.document.id for hit in await search_store.search(ALICE, text="tea")] == ["b"]
        assert await search_store.delete(ALICE, ["a"]) == []

    async def test_a_partition_sees_nothing_of_another(self, search_store: SearchStore) -> None:
        """MEM-2: no call, whatever it asks for, reaches from one user's documents into another's."""
        secret = document("s", "secret tea", vector=vector(1, 0, 0, 0), namespaces=["/n/"], metadata={"k": "v"})
        await search_store.upsert(ALICE, [secret])
        for other in (BOB, "memory-1", "memory-1/alice/", "memory-1/ALICE", "memory-1/%", "memory-1/*", ""):
            assert await search_store.get(other, ["s"]) == [None]
            assert (await search_store.newest(other)).documents == []
            assert await search_store.search(other, text="secret tea", vector=vector(1, 0, 0, 0)) == []
            assert await search_store.delete(other, ["s"]) == []
            assert await search_store.delete_partition(other) == 0
        await search_store.upsert(BOB, [document("s", "coffee")])
        [mine] = await search_store.get(ALICE, ["s"])
        assert mine is not None
        assert mine.text == "secret tea"

    async def test_several_partitions_at_once(self, search_store: SearchStore) -> None:
        """For operators: by the name they share, up to a slash and not up to a letter."""
        await search_store.upsert(ALICE, [document("a", "tea", created_ms=1, namespaces=["/n/alice/"])])
        await search_store.upsert(BOB, [document("b", "tea tea", created_ms=2, namespaces=["/n/bob/", "/m/"])])
        await search_store.upsert("memory-10/bob", [document("c", "tea", namespaces=["/n/"])])
        await search_store.upsert("memory-1", [document("d", "tea", namespaces=["/n/"])])
        everywhere = Beneath("memory-1")
        assert [found and found.id for found in await search_store.get(everywhere, ["b", "c", "d", "a"])] == [
            *("b", None, None, "a")
        ]
        first = await search_store.newest(everywhere, limit=1)
        second = await search_store.newest(everywhere, limit=1, after=first.after)
        assert [found.id for page in (first, second) for found in page.documents] == ["b", "a"]
        assert second.after is None
        assert {hit.document.id for hit in await search_store.search(everywhere, text="tea")} == {"a", "b"}
        for selection, expected in (
            (Selection(namespace="/n/bob/"), {"b"}),
            (Selection(namespace_path="/n/"), {"a", "b"}),
            (Selection(namespace_path="/m/"), {"b"}),
            (Selection(namespace="/n/"), set()),
        ):
            page = await search_store.newest(everywhere, selection)
            assert {found.id for found in page.documents} == expected
            hits = await search_store.search(everywhere, text="tea", selection=selection)
            assert {hit.document.id for hit in hits} == expected
        assert await search_store.delete_partition(everywhere) == 2
        assert (await search_store.newest(everywhere)).documents == []
        assert (await search_store.newest("memory-10/bob")).documents != []

    async def test_words_are_scored_as_shares(self, search_store: SearchStore) -> None:
        """The same in every partition, so that scores compare."""
        await search_store.upsert(ALICE, [document("all", "green tea"), document("half", "black tea")])
        scores = {hit.document.id: hit.lexical for hit in await search_store.search(ALICE, text="green tea")}
        assert scores["all"] == pytest.approx(1, abs=0.01)
        assert 0 < scores["half"] < 0.5
        await search_store.upsert(BOB, [document(f"d{number}", f"number {number}") for number in range(50)])
        [hit] = await search_store.search(BOB, text="number 7 nowhere", limit=1)
        assert 0 < hit.lexical < 0.6

    async def test_erases_a_partition(self, search_store: SearchStore) -> None:
        await search_store.upsert(ALICE, [document("a", "tea", vector=vector(1, 0, 0, 0)), document("b")])
        await search_store.upsert(BOB, [document("a", "tea")])
        assert await search_store.delete_partition(ALICE) == 2
        assert (await search_store.newest(ALICE)).documents == []
        assert await search_store.search(ALICE, text="tea", vector=vector(1, 0, 0, 0)) == []
        assert len((await search_store.newest(BOB)).documents) == 1

    async def test_words_find_their_other_forms(self, search_store: SearchStore) -> None:
        await search_store.upsert(ALICE, [document("a", "Crème brûlée, twice"), document("b", "she was running")])
        assert [hit.document.id for hit in await search_store.search(ALICE, text="creme")] == ["a"]
        assert [hit.document.id for hit in await search_store.search(ALICE, text="RUNS")] == ["b"]

    async def test_rarer_words_count_for_more(self, search_store: SearchStore) -> None:
        await search_store.upsert(ALICE, [document(f"x{number}", "order of tea") for number in range(5)])
        await search_store.upsert(ALICE, [document("rare", "order of A-1001")])
        hits = await search_store.search(ALICE, text="order A-1001")
        assert hits[0].document.id == "rare"
        assert all(hits[0].lexical > hit.lexical > 0 for hit in hits[1:])

    async def test_context_counts_for_less_than_text(self, search_store: SearchStore) -> None:
        await search_store.upsert(
            ALICE,
            [document("near", "yes", context="do you want tea"), document("in", "I want tea"), document("no", "x")],
        )
        assert [hit.document.id for hit in await search_store.search(ALICE, text="tea")] == ["in", "near"]

    async def test_what_is_farther_counts_for_less_still(self, search_store: SearchStore) -> None:
        texts = [document("far", "yes", farther="tea please"), document("near", "yes", context="tea please")]
        await search_store.upsert(ALICE, [*texts, document("in", "tea please"), document("no", "no")])
        hits = await search_store.search(ALICE, text="tea")
        assert [hit.document.id for hit in hits] == ["in", "near", "far"]
        [far] = await search_store.get(ALICE, ["far"])
        assert far is not None
        assert far.farther == "tea please"

    async def test_long_numbers_are_words(self, search_store: SearchStore) -> None:
        """So that words may be replaced by what stands for them, in digits alone."""
        words = [f"{number:020d}" for number in (1, 10, 12, 10**19, 7)]
        await search_store.upsert(ALICE, [document(word, f"{word} {words[-1]}") for word in words[:-1]])
        for word in words[:-1]:
            hits = await search_store.search(ALICE, text=word)
            assert [hit.document.id for hit in hits] == [word]
        assert await search_store.search(ALICE, text=words[0][:-1]) == []

    async def test_vectors_by_angle(self, search_store: SearchStore) -> None:
        await search_store.upsert(
            ALICE,
            [
                document("same", vector=vector(5, 0, 0, 0)),
                document("half", vector=vector(1, 1, 0, 0)),
                document("against", vector=vector(-1, 0, 0, 0)),
                document("none", "no vector"),
            ],
        )
        hits = await search_store.search(ALICE, vector=vector(2, 0, 0, 0))
        found = {hit.document.id: hit.similarity for hit in hits}
        assert found == {"same": pytest.approx(1), "half": pytest.approx(0.5**0.5), "against": pytest.approx(-1)}
        assert all(hit.lexical == 0 for hit in hits)

    async def test_both_halves_bring_their_best_with_both_scores(self, search_store: SearchStore) -> None:
        await search_store.upsert(
            ALICE,
            [
                document("word", "tea", vector=vector(0, 1, 0, 0)),
                document("meaning", "a hot drink", vector=vector(1, 0, 0, 0)),
                document("neither", "a car", vector=vector(0, 0, 1, 0)),
            ],
        )
        hits = await search_store.search(ALICE, text="tea", vector=vector(1, 0, 0, 0), limit=1)
        assert [hit.document.id for hit in hits] == ["word", "meaning"]
        assert hits[0].similarity == pytest.approx(0, abs=1e-6)
        assert hits[1].lexical == 0

    async def test_selection_narrows_both_halves(self, search_store: SearchStore) -> None:
        await search_store.upsert(
            ALICE,
            [
                document("a", "tea", vector=vector(1, 0, 0, 0), namespaces=["/facts/a/"]),
                document("b", "tea", vector=vector(1, 0, 0, 0), namespaces=["/facts/b/"]),
            ],
        )
        selection = Selection(namespace="/facts/b/")
        for search in ({"text": "tea"}, {"vector": vector(1, 0, 0, 0)}):
            hits = await search_store.search(ALICE, selection=selection, limit=1, **search)
            assert [hit.document.id for hit in hits] == ["b"]

    @pytest.mark.parametrize(
        ("selection", "expected"),
        [
            (Selection(namespace="/a/b/"), {"ab"}),
            (Selection(namespace="/a/"), set()),
            (Selection(namespace_path="/a/"), {"ab", "abc"}),
            (Selection(namespace_path="/a/b/"), {"ab", "abc"}),
            (Selection(namespace_path="/"), {"ab", "abc", "bcd"}),
            (Selection(namespace_path="/%/"), set()),
        ],
    )
    async def test_namespaces(self, search_store: SearchStore, selection: Selection, expected: set[str]) -> None:
        await search_store.upsert(
            ALICE,
            [
                document("ab", namespaces=["/a/b/"]),
                document("abc", namespaces=["/a/b/c/"]),
                document("bcd", namespaces=["/bcd/"]),
                document("none"),
            ],
        )
        page = await search_store.newest(ALICE, selection)
        assert {found.id for found in page.documents} == expected

    @pytest.mark.parametrize(
        ("condition", "expected"),
        [
            (Condition("topic", Operator.EQUALS_TO, "tea"), {"a"}),
            (Condition("topic", Operator.EQUALS_TO, "Tea"), set()),
            (Condition("weight", Operator.EQUALS_TO, 2.0), {"a"}),
            (Condition("topic", Operator.EXISTS), {"a", "b"}),
            (Condition("weight", Operator.NOT_EXISTS), {"b", "c"}),
            (Condition("seen", Operator.BEFORE, NOON + timedelta(seconds=1)), {"a"}),
            (Condition("seen", Operator.AFTER, NOON), {"b"}),
            (Condition("tags", Operator.CONTAINS, ["hot"]), {"a", "b"}),
            (Condition("tags", Operator.CONTAINS, ["hot", "leaf"]), {"a"}),
            (Condition("weight", Operator.GREATER_THAN, 2), set()),
            (Condition("weight", Operator.GREATER_THAN_OR_EQUALS, 2), {"a"}),
            (Condition("weight", Operator.LESS_THAN, 2.5), {"a"}),
            (Condition("weight", Operator.LESS_THAN_OR_EQUALS, 1), set()),
            (Condition("topic", Operator.GREATER_THAN, 0), set()),  # another type never matches
            (Condition("a.b", Operator.EQUALS_TO, "dotted"), {"c"}),
            (Condition("a", Operator.EXISTS), set()),
        ],
    )
    async def test_conditions(self, search_store: SearchStore, condition: Condition, expected: set[str]) -> None:
        await search_store.upsert(
            ALICE,
            [
                document(id, vector=vector(1, 0, 0, 0), metadata=metadata)
                for id, metadata in {
                    "a": {"topic": "tea", "weight": 2, "seen": NOON, "tags": ["hot", "leaf"]},
                    "b": {"topic": "milk", "seen": NOON + timedelta(hours=1), "tags": ["hot"]},
                    "c": {"a.b": "dotted"},
                }.items()
            ],
        )
        page = await search_store.newest(ALICE, Selection(conditions=[condition]))
        assert {found.id for found in page.documents} == expected
        hits = await search_store.search(ALICE, vector=vector(1, 0, 0, 0), selection=Selection(conditions=[condition]))
        assert {hit.document.id for hit in hits} == expected

    async def test_conditions_are_all_wanted(self, search_store: SearchStore) -> None:
        await search_store.upsert(
            ALICE, [document("a", metadata={"k": "v", "n": 1}), document("b", metadata={"k": "v", "n": 2})]
        )
        both = [Condition("k", Operator.EQUALS_TO, "v"), Condition("n", Operator.GREATER_THAN, 1)]
        page = await search_store.newest(ALICE, Selection(conditions=both))
        assert [found.id for found in page.documents] == ["b"]

    @pytest.mark.parametrize(
        "condition",
        [
            Condition("k", Operator.EXISTS, "x"),
            Condition("k", Operator.BEFORE, "yesterday"),
            Condition("k", Operator.CONTAINS, []),
            Condition("k", Operator.GREATER_THAN, "1"),
            Condition('k" ', Operator.EXISTS),
        ],
    )
    async def test_refuses_conditions_that_are_none(self, search_store: SearchStore, condition: Condition) -> None:
        with pytest.raises(ValueError):
            await search_store.newest(ALICE, Selection(conditions=[condition]))

    async def test_lists_newest_first_in_pages(self, search_store: SearchStore) -> None:
        await search_store.upsert(ALICE, [document(f"d{number}", created_ms=number // 2) for number in range(7)])
        seen: list[str] = []
        after = None
        while True:
            page = await search_store.newest(ALICE, limit=3, after=after)
            seen += [found.id for found in page.documents]
            if (after := page.after) is None:
                break
            await search_store.upsert(ALICE, [document(f"late{len(seen)}", created_ms=9999)])
            await search_store.delete(ALICE, [seen[-1]])
        assert seen == ["d6", "d5", "d4", "d3", "d2", "d1", "d0"]

    async def test_refuses_a_page_it_never_gave(self, search_store: SearchStore) -> None:
        with pytest.raises(ValueError):
            await search_store.newest(ALICE, after="'; DROP TABLE documents")

    @pytest.mark.parametrize(
        "text", ['"', "tea AND", "NOT tea OR", "text:tea*", "(tea", "tea^2", "NEAR(a b)", "\x00tea", "_ _", "é😀", " "]
    )
    async def test_text_has_no_syntax(self, search_store: SearchStore, text: str) -> None:
        await search_store.upsert(ALICE, [document("a", "tea time"), document("b", "p1 p2 partition")])
        hits = await search_store.search(ALICE, text=text)
        assert {hit.document.id for hit in hits} <= {"a"}

    async def test_expired_documents_are_gone_for_every_reader(self, search_store: SearchStore) -> None:
        """MEM-4: a document's time is over whether or not anything has tidied up."""
        gone = document("gone", "tea", vector=vector(1, 0, 0, 0), expires_ms=in_future(-1))
        await search_store.upsert(ALICE, [gone, document("there", "tea", expires_ms=in_future(3600))])
        assert (await search_store.get(ALICE, ["gone"])) == [None]
        assert [found.id for found in (await search_store.newest(ALICE)).documents] == ["there"]
        hits = await search_store.search(ALICE, text="tea", vector=vector(1, 0, 0, 0))
        assert [hit.document.id for hit in hits] == ["there"]
        assert await search_store.delete(ALICE, ["gone"]) == []
        await search_store.upsert(ALICE, [gone])
        assert await search_store.purge() == 1
        assert await search_store.purge() == 0

    async def test_writers_do_not_lose_one_anothers_documents(self, search_store: SearchStore) -> None:
        await asyncio.gather(
            *(
                search_store.upsert(ALICE, [document(f"d{number}", vector=vector(1, number, 0, 0))])
                for number in range(20)
            )
        )
        assert len((await search_store.newest(ALICE)).documents) == 20
        assert len(await search_store.search(ALICE, vector=vector(1, 1, 0, 0))) == 20


class SharedSearchStoreContract:
    """For stores whose data several processes share: `other_store` is a second one on the data of `search_store`. What
    either remembers never shows in what it serves."""

    async def test_a_change_is_seen_elsewhere(self, search_store: SearchStore, other_store: SearchStore) -> None:
        for number in range(5):
            await search_store.upsert(ALICE, [document("a", f"tea word{number}", vector=vector(1, number, 0, 0))])
            [hit] = await other_store.search(ALICE, text="tea", vector=vector(1, 0, 0, 0))
            assert hit.document.text == f"tea word{number}"
            assert hit.similarity == pytest.approx(1 / (1 + number**2) ** 0.5, abs=1e-5)
            await other_store.upsert(ALICE, [document(f"b{number}", "milk")])
            assert len(await search_store.search(ALICE, text="milk")) == number + 1
        await search_store.delete(ALICE, ["a", "b0"])
        assert await other_store.search(ALICE, text="tea") == []
        assert len(await other_store.search(ALICE, text="milk")) == 4

    async def test_what_was_erased_is_found_nowhere(self, search_store: SearchStore, other_store: SearchStore) -> None:
        """MEM-4, right to erasure: not in what another process remembers, nor when the partition begins anew."""
        secret = document("s", "secret tea", vector=vector(1, 0, 0, 0), namespaces=["/n/"])
        for store in (search_store, other_store):
            await store.upsert(ALICE, [secret])
            await store.upsert(BOB, [secret])
            for reader in (search_store, other_store):
                assert len(await reader.search(ALICE, text="secret", vector=vector(1, 0, 0, 0))) == 1
            assert await store.delete_partition(ALICE) == 1
            for reader in (search_store, other_store):
                assert await reader.search(ALICE, text="secret", vector=vector(1, 0, 0, 0)) == []
                assert await reader.get(ALICE, ["s"]) == [None]
                assert (await reader.newest(Beneath("memory-1"))).documents[0].id == "s"
                assert len(await reader.search(Beneath("memory-1"), text="secret")) == 1
            await store.upsert(ALICE, [document("new", "tea", vector=vector(0, 1, 0, 0))])
            for reader in (search_store, other_store):
                hits = await reader.search(ALICE, text="secret tea", vector=vector(1, 0, 0, 0))
                assert [hit.document.id for hit in hits] == ["new"]
            await store.delete_partition(Beneath("memory-1"))
