"""Where a session wants to go, and where a rule lets it: a host and a port, each written in one way only.

What resolvers would take for an address (`127.1`, `0x7f000001`) and is not written as one is no host here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from agentkeep.core.addresses import Address

__all__ = ["HTTPS", "BadDestination", "Destination", "HostPattern", "parse_destination", "parse_pattern"]

HTTPS: Final = 443
_LONGEST: Final = 253
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
#: A last label like this makes a resolver read the whole as an IPv4 address.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


class BadDestination(ValueError):
    """Not a host and a port; the message says what it should be."""


@dataclass(frozen=True, slots=True)
class Destination:
    """`host` in lower case, without a dot at its end; `address`: where it is written as one."""

    host: str
    port: int
    address: Address | None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class HostPattern:
    """`below`: not the host itself, and all names that end in it."""

    host: str
    port: int
    address: Address | None
    below: bool = False

    def covers(self, wanted: Destination) -> bool:
        if wanted.port != self.port:
            return False
        if self.address is not None or wanted.address is not None:
            return wanted.address == self.address
        return wanted.host.endswith(f".{self.host}") if self.below else wanted.host == self.host

    def __str__(self) -> str:
        return ("*." if self.below else "") + str(Destination(self.host, self.port, self.address))


def parse_destination(authority: bytes) -> Destination:
    """The target of a CONNECT (RFC 9110, 9.3.6). Raises BadDestination."""
    try:
        text = authority.decode("ascii")
    except UnicodeDecodeError:
        raise BadDestination("a host is written in ASCII (xn--... for others)") from None
    host, port = _split(text)
    if port is None:
        raise BadDestination("the target of CONNECT is host:port")
    address = _address(host)
    return Destination(str(address) if address is not None else _name(host), _port(port), address)


def parse_pattern(text: object) -> HostPattern:
    """Of a rule: `api.example.com`, `*.s3.eu-west-1.amazonaws.com`, `203.0.113.7`, `[2001:db8::7]`; with a port or for
    443. Raises BadDestination."""
    if not isinstance(text, str):
        raise BadDestination("a host is text")
    if not text.isascii():
        raise BadDestination(f"{text!r}: write hosts in ASCII (xn--... for others)")
    below = text.startswith("*.")
    host, port = _split(text[2:] if below else text)
    address = None if below else _address(host)
    name = str(address) if address is not None else _name(host)
    if below and "." not in name:
        raise BadDestination(f"{text!r} would be all of a top-level domain; write what is before it, too")
    return HostPattern(name, HTTPS if port is None else _port(port), address, below)


def _split(text: str) -> tuple[str, str | None]:
    """Host, in brackets if it was, and port as text."""
    if text.startswith("["):
        host, closed, rest = text.partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise BadDestination("an IPv6 address is written in brackets: [2001:db8::7]:443")
        return f"{host}]", rest[1:] if rest else None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _port(text: str) -> int:
    if _PORT.fullmatch(text) is None or int(text) > 65_535:
        raise BadDestination("a port is a number from 1 to 65535")
    return int(text)


def _address(host: str) -> Address | None:
    written = host[1:-1] if host.startswith("[") else host
    try:
        if "%" in written:
            raise ValueError
        address = ip_address(written)
    except ValueError:
        if host.startswith("["):
            raise BadDestination("what is in brackets is an IPv6 address without a zone") from None
        return None
    if host.startswith("[") != (address.version == 6):
        raise BadDestination("an IPv6 address, and no other, is written in brackets")
    return address


def _name(host: str) -> str:
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > _LONGEST or any(_LABEL.fullmatch(label) is None for label in labels):
        raise BadDestination("a host is a name of letters, digits, hyphens and dots, or an address")
    if _NUMBER.fullmatch(labels[-1]) is not None:
        raise BadDestination("an IPv4 address is four numbers from 0 to 255: 203.0.113.7")
    return name
