"""An index of OpenSearch, made when it is first used, and what the stores ask of one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage.opensearch import OpenSearchClient, OpenSearchRefusal

__all__ = ["WINDOW", "OpenSearchIndex"]

#: The most documents that one answer holds, by OpenSearch's default.
WINDOW: Final = 10_000
#: Documents that one request deletes at the most, so that each is soon done.
PORTION: Final = 5000
#: How often a deletion is done again where others write meanwhile; seconds that one request of it may take.
_ATTEMPTS: Final = 3
_LONG: Final = 300
_SETTINGS: Final[Mapping[str, Any]] = {
    "index.auto_expand_replicas": "0-1",
}

logger = logging.getLogger(__name__)

Found = Mapping[str, Any]


class OpenSearchIndex:
    """`name` is an alias, of the index `NAME-1` unless an operator moved it: so a missing index is never made up by
    a write. `definition`: its settings and mappings. `check` runs before the first use; what it raises, that use does.

    Answers that are not whole raise StoreUnavailable, as all failures do.
    """

    def __init__(
        self,
        client: OpenSearchClient,
        name: str,
        definition: Mapping[str, Any],
        *,
        shards: int = 1,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self._client = client
        self._definition = definition
        self._shards = shards
        self._check = check
        self._prepared = False
        self._preparing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def search(self, body: Mapping[str, Any], routing: str | None = None) -> Found:
        await self._prepare()
        return _whole(await self._request("POST", f"/{self.name}/_search", body, routing=routing))

    async def hits(self, body: Mapping[str, Any], routing: str | None = None) -> list[Found]:
        answer = await self.search({"track_total_hits": False, **body}, routing)
        hits: list[Found] = answer["hits"]["hits"]
        return hits

    async def count(self, query: Mapping[str, Any], routing: str | None = None) -> int:
        answer = await self.search({"query": query, "size": 0, "track_total_hits": True}, routing)
        total: int = answer["hits"]["total"]["value"]
        return total

    async def several_hits(self, bodies: Iterable[Mapping[str, Any]], routing: str | None = None) -> list[list[Found]]:
        """Of several searches in one request."""
        await self._prepare()
        header = {"index": self.name} if routing is None else {"index": self.name, "routing": routing}
        lines = [line for body in bodies for line in (header, {"track_total_hits": False, **body})]
        answers = (await self._client.lines("/_msearch", lines))["responses"]
        return [_whole(answer)["hits"]["hits"] for answer in answers]

    async def read(self, names: Sequence[str], routing: str | None = None) -> dict[str, Found]:
        """Those that are there, as they are now, searchable yet or not."""
        if not names:
            return {}
        await self._prepare()
        place = {} if routing is None else {"routing": routing}
        wanted = {"docs": [{"_id": name, **place} for name in names]}
        answer = await self._request("POST", f"/{self.name}/_mget", wanted)
        if failed := next((each["error"] for each in answer["docs"] if "error" in each), None):
            raise StoreUnavailable(f"OpenSearch cannot read: {failed.get('type')}")
        return {each["_id"]: each for each in answer["docs"] if each.get("found")}

    async def bulk(self, lines: Iterable[Mapping[str, Any]], routing: str | None = None) -> None:
        """Durable, and seen by every search, when it returns. Raises OpenSearchRefusal with the first failure, where
        the rest may have been done."""
        await self._prepare()
        answer = await self._client.lines(
            f"/{self.name}/_bulk", lines, routing=routing, refresh=True, require_alias=True
        )
        if not answer["errors"]:
            return
        for item in answer["items"]:
            [outcome] = item.values()
            if "error" in outcome:
                raise self._noted(OpenSearchRefusal(outcome["status"], outcome["error"]["type"]))

    async def delete(self, query: Mapping[str, Any], routing: str | None = None) -> int:
        """All that meets the query, in portions; returns how many. Lucene's files are rid of it as segments are
        merged."""
        await self._prepare()
        path = f"/{self.name}/_delete_by_query"
        deleted = conflicts = 0
        while True:
            answer = await self._request(
                *("POST", path, {"query": query}),
                routing=routing,
                refresh=True,
                conflicts="proceed",
                max_docs=PORTION,
                request_timeout=_LONG,
            )
            deleted += int(answer["deleted"])
            if answer["failures"]:
                raise StoreUnavailable("OpenSearch could not delete all there was to delete: try again")
            conflicts += bool(answer["version_conflicts"])  # somebody writes meanwhile
            if answer["total"] < PORTION and (not answer["version_conflicts"] or conflicts >= _ATTEMPTS):
                return deleted

    async def start_deleting(
        self, query: Mapping[str, Any], routing: str | None = None, **parameters: str | int
    ) -> None:
        """The same without waiting, for what no reader sees any more."""
        await self._prepare()
        path = f"/{self.name}/_delete_by_query"
        request = self._request(
            "POST", path, {"query": query}, routing=routing, conflicts="proceed", request_timeout=_LONG, **parameters
        )
        self._begin(request, "deletion")

    async def mapping(self) -> Mapping[str, Any]:
        """Not to be asked for before the index is there: for `check`."""
        [index] = (await self._request("GET", f"/{self.name}/_mapping")).values()
        mapping: Mapping[str, Any] = index["mappings"]
        return mapping

    async def extend(self, change: Mapping[str, Any]) -> None:
        """The mapping. For `check`."""
        await self._request("PUT", f"/{self.name}/_mapping", change)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    def _begin(self, work: Coroutine[Any, Any, object], name: str) -> None:
        """What nobody waits for: by a task here, since each of OpenSearch's own leaves a document behind."""

        async def run() -> None:
            try:
                await work
            except StoreUnavailable as error:
                logger.warning("%s of %s: %s", name, self.name, error)

        task = asyncio.create_task(run(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(self, method: str, path: str, body: Any = None, **parameters: str | int | bool | None) -> Any:
        try:
            return await self._client.request(method, path, body, **parameters)
        except OpenSearchRefusal as error:
            raise self._noted(error) from None

    def _noted(self, error: OpenSearchRefusal) -> OpenSearchRefusal:
        if error.kind == "index_not_found_exception":  # somebody removed it: the next call makes it anew
            self._prepared = False
        return error

    async def _prepare(self) -> None:
        if self._prepared:
            return
        async with self._preparing:
            if not self._prepared:
                await self._make()
                if self._check is not None:
                    await self._check()
                self._prepared = True

    async def _make(self) -> None:
        try:
            await self._request("GET", f"/_alias/{self.name}")
            return
        except OpenSearchRefusal as error:
            if error.status != 404:
                raise
        settings = {**_SETTINGS, **self._definition["settings"], "index.number_of_shards": self._shards}
        body = {**self._definition, "settings": settings, "aliases": {self.name: {"is_write_index": True}}}
        try:
            await self._request("PUT", f"/{self.name}-1", body)
        except OpenSearchRefusal as error:
            if error.kind != "resource_already_exists_exception":  # another process was first
                raise


def _whole(answer: Any) -> Found:
    if "error" in answer:
        raise OpenSearchRefusal(answer.get("status", 500), answer["error"].get("type", "error"))
    if answer["timed_out"] or answer["_shards"]["failed"]:
        raise StoreUnavailable("OpenSearch could search a part only")
    found: Found = answer
    return found
