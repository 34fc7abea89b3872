"""A connection to OpenSearch, for the stores on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson
from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import ConnectionTimeout, OpenSearchException, TransportError
from opensearchpy.serializer import JSONSerializer

from agentkeep.core.errors import StoreUnavailable

__all__ = ["OpenSearchClient", "OpenSearchRefusal"]

#: What it writes of each request at lower levels has the documents in it.
_LOGGER: Final = logging.getLogger("opensearch")


#: Requests under way, and those that wait for a connection: more are refused at once.
MOST_WAITING: Final = 500

#: What is to be done, by OpenSearch's name of a refusal.
_ADVICE: Final[Mapping[str, str]] = {
    "cluster_block_exception": "it takes no writes: its disk is full, or an operator has set it read-only. Make room "
    "(it goes on by itself), or lift the block",
    "rejected_execution_exception": "it has more to do than it can: try again",
    "circuit_breaking_exception": "it is short of memory: try again, or give it more",
    "security_exception": "the user or password is wrong, or the user has no right to do this",
}


class OpenSearchRefusal(StoreUnavailable):
    """OpenSearch answered, but not with what was asked for. `status`: HTTP's; `kind`: OpenSearch's name of it."""

    def __init__(self, status: int, kind: str) -> None:
        kind = kind.removeprefix("es_")
        advice = _ADVICE.get(kind) or ("it has more to do than it can: try again" if status == 429 else "")
        super().__init__(f"OpenSearch refuses: {status} {kind}{': ' * bool(advice)}{advice}")
        self.status = status
        self.kind = kind

    @property
    def passes(self) -> bool:
        """Whether the same may do a moment later."""
        if self.kind == "index_not_found_exception":  # it is made anew
            return True
        return self.kind != "cluster_block_exception" and (self.status == 429 or self.status >= 500)


class OpenSearchClient:
    """`urls`: of the nodes of one cluster, any of which may be away. `certificates`: path of the authorities that the
    nodes' certificates are checked against; empty, the machine's. `time_limit`: seconds, of one request, in which it
    must also get one of the `connections` there are to each node."""

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        user: str = "",
        password: str = "",
        certificates: str = "",
        time_limit: float = 10.0,
        connections: int = 20,
    ) -> None:
        if _LOGGER.level == logging.NOTSET:
            _LOGGER.setLevel(logging.ERROR)
        self._client = AsyncOpenSearch(
            [urls] if isinstance(urls, str) else list(urls),
            http_auth=(user, password) if user else None,
            ca_certs=certificates or None,
            serializer=_Orjson(),
            timeout=time_limit,
            maxsize=connections,
        )
        self._under_way = 0

    async def request(self, method: str, path: str, body: Any = None, **parameters: str | int | bool | None) -> Any:
        """The answer, taken apart. A request that met no node is tried again on the others. Raises OpenSearchRefusal,
        or StoreUnavailable where there is no answer."""
        given = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in parameters.items()
            if value is not None
        }
        if self._under_way >= MOST_WAITING:
            raise StoreUnavailable(f"{self._under_way} requests to OpenSearch are under way already: try again")
        self._under_way += 1
        try:
            return await self._client.transport.perform_request(method, path, params=given, body=body)
        except ConnectionTimeout:
            raise StoreUnavailable("OpenSearch does not answer within its time limit") from None
        except TransportError as error:
            if not isinstance(error.status_code, int):
                raise StoreUnavailable(f"OpenSearch is not to be reached: {error.error}") from None
            raise OpenSearchRefusal(error.status_code, str(error.error)) from None
        except OpenSearchException as error:
            raise StoreUnavailable(f"OpenSearch gives no answer that can be read: {type(error).__name__}") from None
        finally:
            self._under_way -= 1

    async def lines(self, path: str, lines: Iterable[Mapping[str, Any]], **parameters: str | bool | None) -> Any:
        """A request whose body is one JSON object a line, as bulk and multiple search have it."""
        body = b"\n".join(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY) for line in lines) + b"\n"
        return await self.request("POST", path, body, **parameters)

    async def close(self) -> None:
        await self._client.close()


class _Orjson(JSONSerializer):
    """Faster by far than the default, above all with vectors."""

    def dumps(self, data: Any) -> Any:
        if isinstance(data, (str, bytes)):
            return data
        return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)

    def loads(self, s: str) -> Any:
        return orjson.loads(s)
