"""The name in a ClientHello, of real clients and of those that would hide it."""

from __future__ import annotations

import ssl

import pytest

from agentkeep.runtime.egress.client_hello import BadHello, read_client_hello


def hello(name: str | None) -> bytes:
    """As this Python's TLS says it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def record(message: bytes, kind: int = 22) -> bytes:
    return bytes((kind, 3, 1)) + len(message).to_bytes(2, "big") + message


def with_extensions(*extensions: tuple[int, bytes], tail: bytes = b"") -> bytes:
    said = b"".join(kind.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data for kind, data in extensions)
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + len(said).to_bytes(2, "big") + said + tail
    return record(b"\x01" + len(body).to_bytes(3, "big") + body)


def server_name(name: bytes, kind: int = 0) -> tuple[int, bytes]:
    entry = bytes((kind,)) + len(name).to_bytes(2, "big") + name
    return 0, len(entry).to_bytes(2, "big") + entry


def test_the_name_is_read_however_it_comes() -> None:
    whole = hello("Api.Example.com")
    assert read_client_hello(whole) == (True, "api.example.com")
    assert all(read_client_hello(whole[:length]) == (False, None) for length in range(len(whole)))
    message = whole[5:]
    split = record(message[:3]) + record(message[3:70]) + record(message[70:])
    assert read_client_hello(split) == (True, "api.example.com")
    assert read_client_hello(hello(None)) == (True, None)
    assert read_client_hello(with_extensions(server_name(b"a.example"))) == (True, "a.example")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-x\r\n",
        b"\x80\x2e\x01\x03\x01",
        record(b"\x01", kind=23),
        record(b"\x02\0\0\0"),
        b"\x16\x02\x00\x00\x10",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        record(b"\x01\xff\xff\xff"),
        with_extensions(server_name(b"a.example"), server_name(b"b.example")),
        with_extensions(server_name(b"a.example"), (0xFE0D, b"\0")),
        with_extensions(server_name(b"a.example"), (0xFFCE, b"\0")),
        with_extensions(server_name(b"a.example", kind=1)),
        with_extensions((0, b"\0\x0d\0\0\x03a.x\0\0\x03b.x")),
        with_extensions((0, b"\0\x09\0\0\x03a.b")),
        with_extensions((0, b"")),
        with_extensions(server_name("bücher.example".encode())),
        with_extensions(server_name(b"a.example"), tail=b"x"),
        with_extensions(server_name(b"a.example"))[:5] + b"\x01\0\0\x05" + bytes(40),
        record(b"\x01\0\0\x03\x03\x03\0"),
    ],
    ids=range(20),
)
def test_what_says_no_name_in_clear_is_refused(sent: bytes) -> None:
    """IDN-2: not TLS, malformed, two names, or a name that may be hidden."""
    with pytest.raises(BadHello):
        read_client_hello(sent)


def test_an_endless_hello_is_refused() -> None:
    piece = record(bytes(1 << 14))
    start = record(b"\x01\x00\xff\xf0")
    with pytest.raises(BadHello):
        read_client_hello(start + piece * 5)
