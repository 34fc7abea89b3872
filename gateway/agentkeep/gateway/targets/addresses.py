"""Which addresses a target may have.

Who makes a target chooses where the platform connects to, so the platform's own network is out of bounds unless the
operator of the platform opened it. Link-local addresses are out of bounds for good: cloud metadata services are there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from agentkeep.gateway.targets.errors import TargetFailed, TargetRefused

__all__ = ["AllowedAddresses"]

Address = IPv4Address | IPv6Address

_NEVER: Final = tuple(map(ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "0.0.0.0/8", "::/128")))
#: NAT64's prefix (RFC 6052): an IPv4 address in the last 32 bits.
_NAT64: Final = IPv6Network("64:ff9b::/96")


class AllowedAddresses:
    """`besides`: networks (`10.1.0.0/16`) and host names (`orders.internal`) targets may be at although not public.
    Raises ValueError for what is neither."""

    def __init__(self, besides: Sequence[str] = ()) -> None:
        self._hosts = set()
        self._networks = []
        for entry in besides:
            try:
                self._networks.append(ip_network(entry))
            except ValueError:
                if "/" in entry or not entry:
                    raise ValueError(f"{entry!r} is neither a network (10.1.0.0/16) nor a host name") from None
                self._hosts.add(entry.lower().rstrip("."))

    def check_url(self, url: str) -> None:
        """Raises TargetRefused for a URL that no call could use, before any name is resolved."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise TargetRefused(f"{url!r} is not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise TargetRefused(f"{url!r} must be an https URL with a host")
        if parts.username or parts.password or parts.fragment:
            raise TargetRefused(f"The URL of {host} must have no user, password or fragment")
        literal = _literal(host)
        encrypted = parts.scheme == "https"
        if literal is not None:
            self._check(literal, host, encrypted)
        elif not encrypted and not self._networks and not self._named(host):
            raise _plain(host)

    async def resolve(self, host: str, port: int, *, encrypted: bool) -> str:
        """One address of `host` that may be connected to. Raises TargetRefused, TargetFailed."""
        literal = _literal(host)
        if literal is not None:
            self._check(literal, host, encrypted)
            return str(literal)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise TargetFailed(f"{host} cannot be resolved: {error}") from None
        for *_, (address, *_) in found:
            try:
                candidate = ip_address(str(address).partition("%")[0])
                self._check(candidate, host, encrypted)
            except TargetRefused as refusal:
                refused = refusal
                continue
            return str(candidate)
        raise refused if found else TargetFailed(f"{host} has no address")

    def _named(self, host: str) -> bool:
        return host.lower().rstrip(".") in self._hosts

    def _check(self, address: Address, host: str, encrypted: bool) -> None:
        inner = _embedded(address)
        if any(one in network for one in (address, inner) for network in _NEVER) or inner.is_multicast:
            raise TargetRefused(f"Targets may not be at {address}: link-local and metadata addresses are never called")
        if self._named(host) or any(inner in network for network in self._networks):
            return
        if not inner.is_global:
            raise TargetRefused(
                f"{host} is at {address}, which is not a public address. Name the host or its network in "
                "AGENTKEEP_GATEWAY_ALLOWED_TARGET_HOSTS if targets may be there"
            )
        if not encrypted:
            raise _plain(host)


def _plain(host: str) -> TargetRefused:
    return TargetRefused(
        f"{host} must be called over https: plain HTTP is for hosts and networks named in "
        "AGENTKEEP_GATEWAY_ALLOWED_TARGET_HOSTS"
    )


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
