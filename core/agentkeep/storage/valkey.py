"""The key-value store and the counters on Valkey or Redis: each operation one script, one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import ConditionFailed, ValidationException
from agentkeep.storage.counters import Counter, Exceeded
from agentkeep.storage.interface import ABSENT, ANY, PRESENT, Check, Clear, Delete, Item, Once, Put, Replayed, Write
from agentkeep.storage.resp import Argument, Endpoint, RespClient, ServerError

__all__ = ["ValkeyKeyValueStore"]


class _Script:
    def __init__(self, name: str) -> None:
        folder = files("agentkeep.storage") / "lua"
        self.text = (folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_GET: Final = _Script("get")
_QUERY: Final = _Script("query")
_TRANSACT: Final = _Script("transact")
_DELETE_PARTITION: Final = _Script("delete_partition")
_TAKE: Final = _Script("take")
_GIVE_BACK: Final = _Script("give_back")
_COUNTER: Final = _Script("counter")
_ALL: Final = (_GET, _QUERY, _TRANSACT, _DELETE_PARTITION, _TAKE, _GIVE_BACK, _COUNTER)
_SCRIPTS: Final = [script.text for script in _ALL]

_EXPECTATIONS: Final = {ANY: "*", ABSENT: "-", PRESENT: "+"}


class ValkeyKeyValueStore:
    """Both a `KeyValueStore` and a `CounterStore`; counters and partitions have keys of different kinds, so that they
    never meet.

    `url`: `unix:///path`, `redis://` or `rediss://`. `prefix` begins every key; its braces make it a cluster's hash
    tag, so that transactions span partitions there too (all of a deployment is in one slot, that is, on one shard).

    `time_limit`: seconds. `clock`: whose time ends items and windows; None, the server's, on which all replicas agree.
    """

    def __init__(
        self, url: str, *, prefix: str = "{agentkeep}", time_limit: float = 5.0, clock: Clock | None = None
    ) -> None:
        self._client = RespClient(Endpoint(url), time_limit, _SCRIPTS)
        self._prefix = prefix
        self._clock = clock

    async def get(self, partition: str, sort: str) -> bytes | None:
        values: list[bytes | None] = await self._run(_GET, self._keys(partition, "hx"), (self._now(), sort))
        return values[0]

    async def get_many(self, partition: str, sorts: Sequence[str]) -> list[bytes | None]:
        if not sorts:
            return []
        values: list[bytes | None] = await self._run(_GET, self._keys(partition, "hx"), (self._now(), *sorts))
        return values

    async def query(
        self,
        partition: str,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 100,
        reverse: bool = False,
        max_bytes: int | None = None,
    ) -> list[Item]:
        low = "-" if after is None else f"({after}"
        high = "+" if before is None else f"({before}"
        start, end = (high, low) if reverse else (low, high)
        found: list[bytes] = await self._run(
            _QUERY,
            self._keys(partition, "hzx"),
            (self._now(), start, end, limit, int(reverse), max_bytes or 0),
        )
        pairs = iter(found)
        return [Item(sort.decode(), value) for sort, value in zip(pairs, pairs, strict=True)]

    async def transact(self, writes: Sequence[Write], once: Once | None = None) -> Replayed | None:
        partitions: dict[str, int] = {}
        arguments: list[Argument] = [self._now(), len(writes)]
        for write in writes:
            number = partitions.setdefault(write.partition, len(partitions))
            if isinstance(write, Put):
                expect, expected = _expectation(write.expect)
                arguments += ("P" + expect, number, write.sort, write.value, expected, write.expires_ms or 0)
            elif isinstance(write, Delete):
                expect, expected = _expectation(write.expect)
                arguments += ("D" + expect, number, write.sort, b"", expected, 0)
            elif isinstance(write, Check):
                expect, expected = _expectation(write.expect)
                arguments += ("C" + expect, number, write.sort, b"", expected, 0)
            elif isinstance(write, Clear):
                arguments += ("X*", number, b"", b"", b"", 0)
            else:
                arguments += ("E*", number, write.sort, write.value, b"", write.expires_ms or 0)
        keys = [key for partition in partitions for key in self._keys(partition, "hzx")]
        if once is not None:
            keys.append(f"{self._prefix}once:{once.key}")
            arguments += (once.fingerprint, once.reference, once.expires_ms)
        # With a token it may be repeated: if the first attempt was done, the second says so.
        reply = await self._run(_TRANSACT, keys, arguments, repeatable=once is not None)
        if reply == 0:
            return None
        verdict = reply[0]
        if verdict == b"failed":
            raise ConditionFailed(reply[1], reply[2] if len(reply) > 2 else None)
        if verdict == b"replayed":
            return Replayed(reply[1])
        raise ValidationException(
            "This client token was used before with different parameters: use a new token for a new request",
            reason="IdempotentParameterMismatchException",
        )

    async def delete_partition(self, partition: str) -> int:
        count: int = await self._run(_DELETE_PARTITION, self._keys(partition, "hzx"), (self._now(),))
        return count

    async def take(self, counters: Sequence[Counter]) -> Exceeded | None:
        keys: list[str] = []
        arguments: list[Argument] = [self._now()]
        for counter in counters:
            if counter.amount < 0:
                raise ValueError(f"counter {counter.key!r}: amounts are 0 or more, not {counter.amount}")
            keys.append(self._counter(counter.key, counter.window_ms))
            arguments += (counter.amount, counter.limit, counter.window_ms or 0, counter.keep_ms)
        # Not repeatable: after a lost connection a second attempt might add a second time.
        reply = await self._run(_TAKE, keys, arguments, repeatable=False)
        if reply == 0:
            return None
        index, value, left = reply
        return Exceeded(index, value, left if left >= 0 else None)

    async def give_back(self, key: str, amount: int, token: str) -> None:
        await self._run(_GIVE_BACK, (self._counter(key, None),), (self._now(), amount, token))

    async def value(self, key: str) -> int:
        value: int = await self._run(_COUNTER, (self._counter(key, None),), (self._now(),))
        return value

    async def rewrite_file(self) -> None:
        """Has the server write its append-only file anew, in the background: then it has nothing any more of what was
        overwritten or deleted. Raises StoreUnavailable; where the server does not do that for us, too."""
        await self._client.execute(("BGREWRITEAOF",), repeatable=True)

    async def close(self) -> None:
        await self._client.close()

    def _now(self) -> int:
        return -1 if self._clock is None else epoch_ms(self._clock.now())

    def _keys(self, partition: str, kinds: str) -> list[str]:
        return [f"{self._prefix}{kind}:{partition}" for kind in kinds]

    def _counter(self, key: str, window_ms: int | None) -> str:
        return f"{self._prefix}c:{window_ms or ''}:{key}"

    async def _run(
        self, script: _Script, keys: Sequence[str], arguments: Sequence[Argument], *, repeatable: bool = True
    ) -> Any:
        try:
            command = ("EVALSHA", script.digest, len(keys), *keys, *arguments)
            return await self._client.execute(command, repeatable=repeatable)
        except ServerError as error:
            if error.code != "NOSCRIPT":
                raise
        # Somebody flushed the scripts (loaded with each new connection), so it was not run.
        return await self._client.execute(("EVAL", script.text, *command[2:]), repeatable=repeatable)


def _expectation(expect: object) -> tuple[str, bytes]:
    if isinstance(expect, bytes):
        return "=", expect
    return _EXPECTATIONS[expect], b""  # type: ignore[index]
