"""What kind of address it is that the platform is led to connect to by somebody else.

Names and URLs of others (tools' targets, hosts that agents reach) may lead anywhere, so the platform's own networks are
out of bounds unless its operator opened them. Link-local addresses are out of bounds for good: cloud metadata services
are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

__all__ = ["Address", "Network", "Standing", "is_never", "literal", "standing"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NEVER: Final = tuple(map(ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "0.0.0.0/8", "::/128")))
#: NAT64's prefix (RFC 6052): an IPv4 address in the last 32 bits.
_NAT64: Final = IPv6Network("64:ff9b::/96")
#: IPv4-compatible addresses (RFC 4291): the same.
_COMPATIBLE: Final = IPv6Network("::/96")
_LOOPBACK: Final = IPv6Address("::1")
#: All that is given out of IPv6 for use between networks. Python's `is_global` counts more: what is in no table of its.
_UNICAST: Final = IPv6Network("2000::/3")


class Standing(Enum):
    PUBLIC = "public"
    OPENED = "opened"  # in a network that an operator named
    PRIVATE = "private"
    NEVER = "never"  # link-local, metadata, multicast, no address at all; whatever was opened


def literal(host: str) -> Address | None:
    """The address that `host` is written as; None: it is a name."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def is_never(network: Network) -> bool:
    """Whether nothing in it can be opened."""
    return any(network.version == never.version and network.subnet_of(never) for never in _NEVER)  # type: ignore[arg-type]


def standing(address: Address, opened: Iterable[Network] = ()) -> Standing:
    """Of an IPv6 address that leads to an IPv4 one, it is that one's."""
    inner = _embedded(address)
    if any(one in network for one in (address, inner) for network in _NEVER) or inner.is_multicast:
        return Standing.NEVER
    if any(inner in network for network in opened):
        return Standing.OPENED
    public = inner.is_global and (isinstance(inner, IPv4Address) or inner in _UNICAST)
    return Standing.PUBLIC if public else Standing.PRIVATE


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to, where it does."""
    if isinstance(address, IPv4Address) or address == _LOOPBACK:
        return address
    if address in _NAT64 or address in _COMPATIBLE:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
