"""Which addresses a target may have.

Who makes a target chooses where the platform connects to, so the platform's own network is out of bounds unless the
operator of the platform opened it. Link-local addresses are out of bounds for good: cloud metadata services are there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from agentkeep.core.addresses import Address, Standing, literal, standing
from agentkeep.gateway.targets.errors import TargetFailed, TargetRefused

__all__ = ["AllowedAddresses"]


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
        address = literal(host)
        encrypted = parts.scheme == "https"
        if address is not None:
            self._check(address, host, encrypted)
        elif not encrypted and not self._networks and not self._named(host):
            raise _plain(host)

    async def resolve(self, host: str, port: int, *, encrypted: bool) -> str:
        """One address of `host` that may be connected to. Raises TargetRefused, TargetFailed."""
        given = literal(host)
        if given is not None:
            self._check(given, host, encrypted)
            return str(given)
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
        found = standing(address, self._networks)
        if found is Standing.NEVER:
            raise TargetRefused(f"Targets may not be at {address}: link-local and metadata addresses are never called")
        if found is Standing.OPENED or self._named(host):
            return
        if found is Standing.PRIVATE:
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
