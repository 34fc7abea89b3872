"""What hands a session's connection to the replica that has it, and nobody else's: addresses that replicas share, the
session edge, the sockets between them. With sessions in containers: test_docker_replicas.py."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest

from agentkeep.core.errors import CapacityReached, SandboxUnavailable
from agentkeep.runtime.drivers.docker import session_edge, shared_addresses
from agentkeep.runtime.drivers.docker.addresses import Found
from agentkeep.runtime.drivers.docker.engine import Engine
from agentkeep.runtime.drivers.docker.listener import EdgeListener
from agentkeep.runtime.drivers.docker.network import NETWORK, session_addresses
from agentkeep.runtime.drivers.docker.session_edge import SessionEdge
from agentkeep.runtime.drivers.docker.shared_addresses import SharedAddresses, alone
from agentkeep.testing.driver import Answer

HOLDS = """
import asyncio, sys
from pathlib import Path
from agentkeep.runtime.drivers.docker.shared_addresses import SharedAddresses

class Engine:
    async def containers(self, label): return []

async def main():
    addresses = SharedAddresses(Path(sys.argv[1]), "killed", Engine(), "")
    await addresses.start()
    print(await addresses.take(), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


class ListedContainers:
    """Of the engine, what `SharedAddresses` asks: which containers there are."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.created: set[str] = set()

    async def containers(self, label: str) -> list[dict[str, Any]]:
        assert label == "agentkeep=session"
        networks = [{"IPAddress": one, "IPAMConfig": {"IPv4Address": one}} for one in self.running]
        networks += [{"IPAddress": "", "IPAMConfig": {"IPv4Address": one}} for one in self.created]
        return [{"NetworkSettings": {"Networks": {NETWORK: one}}} for one in networks]


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="ak") as name:  # a Unix socket's path is short
        yield Path(name)


class Machine:
    """Replicas that share a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = ListedContainers()
        self.open: list[SharedAddresses] = []

    async def replica(self, name: str) -> SharedAddresses:
        addresses = SharedAddresses(self.folder, name, cast(Engine, self.engine), "agentkeep=session")
        self.open.append(addresses)
        await addresses.start()
        return addresses

    def killed(self) -> str:
        """The address that a replica had, which is dead by SIGKILL."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, self.folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
        finally:
            process.kill()
            _, errors = process.communicate()
        assert address, errors
        return address


@pytest.fixture
async def machine(folder: Path) -> AsyncIterator[Machine]:
    machine = Machine(folder)
    yield machine
    for addresses in machine.open:
        await addresses.close()


class TestAddresses:
    async def test_no_two_replicas_have_the_same(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """EXE-1, EXE-5: all there are, taken by three at once; then one more is refused in words."""
        replicas = [await machine.replica(name) for name in "abc"]
        everything = session_addresses()
        taken = await asyncio.gather(*(replicas[at % 3].take() for at in range(len(everything))))
        assert sorted(taken) == sorted(everything)
        with pytest.raises(CapacityReached, match=f"{len(everything)} sessions are active"):
            await replicas[0].take()
        await replicas[0].give_back(taken[0])
        with pytest.raises(TimeoutError):  # it rests before it is another's
            async with asyncio.timeout(0.3):
                await replicas[1].take()
        monkeypatch.setattr(shared_addresses, "REST", 0.2)
        assert await replicas[1].take() == taken[0]

    async def test_a_living_replicas_are_its_own(self, machine: Machine) -> None:
        """Whatever its heartbeat: the kernel says that it lives."""
        first, second = await machine.replica("first"), await machine.replica("second")
        address = await first.take()
        machine.engine.running.add(address)
        assert await second.claim(address, "first", "first") is Found.OTHERS
        await first.close()
        assert await second.claim(address, "first", "third") is Found.OTHERS
        assert await second.claim(address, "first", "first") is Found.OURS
        await second.close()  # whose it was last counts, not who made it
        third = await machine.replica("third")
        assert await third.claim(address, "first", "first") is Found.OTHERS
        assert await third.claim(address, "first", "second") is Found.OURS

    async def test_what_a_killed_replica_had_is_free_only_without_its_container(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """EXE-6: made and not yet started counts as there."""
        address = await asyncio.to_thread(machine.killed)
        monkeypatch.setattr(shared_addresses, "session_addresses", lambda: [address])
        monkeypatch.setattr(shared_addresses, "REST", 0.2)
        for there in (machine.engine.running, machine.engine.created):
            there.add(address)
            survivor = await machine.replica("survivor")
            with pytest.raises(CapacityReached):
                await survivor.take()
            there.clear()
        assert await survivor.take() == address

    async def test_a_folder_that_is_new_trusts_the_engine(self, machine: Machine) -> None:
        """As after the machine's start, or when somebody removed the volume: containers may be there."""
        there = session_addresses()[:490]
        machine.engine.running.update(there)
        replica = await machine.replica("first")
        taken = {await replica.take() for _ in range(7)}
        assert not taken & set(there)
        with pytest.raises(CapacityReached):
            await replica.take()
        assert await replica.claim(there[0], "first", "first") is Found.OURS
        assert await replica.claim(there[1], "another", "first") is Found.OTHERS

    async def test_a_folder_that_is_not_there_is_told(self, machine: Machine, folder: Path) -> None:
        machine.folder = folder / "missing"
        with pytest.raises(SandboxUnavailable, match="mount the volume"):
            await machine.replica("first")

    async def test_only_one_is_within(self, folder: Path) -> None:
        async with alone(folder / "lock"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3), alone(folder / "lock"):
                    pytest.fail("two are within")
        async with alone(folder / "lock"):
            pass


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


SESSION = "127.0.0.1"  # the address that connections come from here
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class TestEdge:
    @pytest.fixture
    async def listener(self, folder: Path) -> AsyncIterator[EdgeListener]:
        listener = EdgeListener(folder)
        yield listener
        await listener.close()
        assert list(folder.glob("*.sock")) == []

    @pytest.fixture
    async def port(self, folder: Path) -> AsyncIterator[int]:
        with socket.create_server((SESSION, 0)) as found:
            port: int = found.getsockname()[1]
        edge = asyncio.create_task(SessionEdge(folder, SESSION, port).serve())
        while True:
            try:
                _, writer = await asyncio.open_connection(SESSION, port)
                break
            except ConnectionError:
                assert not edge.done(), edge
                await asyncio.sleep(0.01)
        writer.close()
        yield port
        edge.cancel()
        await asyncio.wait([edge])

    async def test_bytes_pass_as_they_are_no_faster_than_they_are_read(self, listener: EdgeListener, port: int) -> None:
        """EXE-2: both ways, until each side has said all it had to say."""
        listener.add(SESSION, Echo)
        reader, writer = await asyncio.open_connection(SESSION, port)
        sent = bytes(range(256)) * (128 << 10)  # 32 MiB

        async def send() -> None:
            writer.write(sent)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        await asyncio.sleep(0.3)
        assert not sending.done()  # nobody reads: what does not fit between waits
        assert await reader.readexactly(len(sent)) == sent
        await sending
        assert await reader.read() == b""
        writer.close()

    async def test_who_asks_is_known_by_the_address_alone(self, listener: EdgeListener, port: int) -> None:
        """EXE-5: another address' socket is not reached; without one of its own a connection ends at once."""
        listener.add("127.0.0.2", lambda: Answer("another's"))
        assert await self.asked(port) == b""
        listener.add(SESSION, lambda: Answer("its own"))
        assert (await self.asked(port)).endswith(b"its own")
        with socket.create_connection((SESSION, port), source_address=("127.0.0.2", 0)) as other:
            reader, writer = await asyncio.open_connection(sock=other)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert (await reader.read()).endswith(b"another's")
            writer.close()

    @staticmethod
    async def asked(port: int) -> bytes:
        reader, writer = await asyncio.open_connection(SESSION, port)
        try:
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def test_a_session_that_ends_is_cut(self, listener: EdgeListener, port: int) -> None:
        """Its connections, before its address is another's."""
        listener.add(SESSION, Echo)
        reader, writer = await asyncio.open_connection(SESSION, port)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        listener.remove(SESSION)
        assert await reader.read() == b""
        listener.add(SESSION, lambda: Answer("the next"))
        writer.write(b"y")
        assert await reader.read() == b""
        writer.close()

    async def test_a_dead_replicas_socket_is_replaced(self, listener: EdgeListener, port: int, folder: Path) -> None:
        """EXE-6"""
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(folder / f"{SESSION}.sock"))
        assert await self.asked(port) == b""
        listener.add(SESSION, lambda: Answer("taken over"))
        assert (await self.asked(port)).endswith(b"taken over")

    async def test_one_session_does_not_take_everything(
        self, listener: EdgeListener, port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session_edge, "MOST_CONNECTIONS", 3)
        listener.add(SESSION, Echo)
        held = [await asyncio.open_connection(SESSION, port) for _ in range(3)]
        for reader, writer in held:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        assert await self.asked(port) == b""
        held[0][1].close()
        async with asyncio.timeout(20):
            while True:
                reader, writer = await asyncio.open_connection(SESSION, port)
                writer.write(b"x")
                if await reader.read(1) == b"x":
                    break
                writer.close()
        for _, each in [*held[1:], (reader, writer)]:
            each.close()

    async def test_a_connection_that_waited_too_long_is_nobodys(self, listener: EdgeListener, port: int) -> None:
        """EXE-5: whoever began it may have ended, and its address be another's by now."""
        listener.add(SESSION, lambda: Answer("the next one's"))
        with socket.create_connection((SESSION, port)) as silent:
            silent.sendall(b"GET / HTTP/1.1\r\n\r\n")
            time.sleep(session_edge._SILENT + 0.3)  # the edge, which runs in this loop, is to stand still
            silent.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=silent)
            try:
                assert await reader.read() == b""
            except ConnectionError:
                pass
            writer.close()
