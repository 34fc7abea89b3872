"""TLS with a name of one's own in front of a plain port: what a deployer puts before the platform for clients that
insist on `wss://` and an AWS host."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass
class TlsFront:
    port: int
    trust: ssl.SSLContext  # for clients

    @property
    def address(self) -> dict[str, object]:
        """Arguments of `websockets.connect` in place of private DNS and a private certificate authority."""
        return {"host": "127.0.0.1", "port": self.port, "ssl": self.trust}


@asynccontextmanager
async def tls_front(
    name: str, port: int, folder: Path, certificate: Path | None = None, at: str = "127.0.0.1"
) -> AsyncIterator[TlsFront]:
    """Answers for `name` at the address `at`, and hands every connection's bytes to 127.0.0.1:`port`. `certificate`:
    another front's, of the same name; None: one of its own is made, `folder`/tls.pem."""
    certificate = certificate or _certificate(name, folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    pipes: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(_pipe(source, target))
            pipes.add(task)
            task.add_done_callback(pipes.discard)

    server = await asyncio.start_server(serve, at, 0, ssl=context)
    try:
        yield TlsFront(server.sockets[0].getsockname()[1], ssl.create_default_context(cafile=str(certificate)))
    finally:
        server.close()
        for task in [*pipes]:
            task.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)


async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        target.close()


def _certificate(name: str, folder: Path) -> Path:
    """A certificate for `name` that signs itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "tls.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
