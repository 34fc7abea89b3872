"""The one network all sessions are on: internal, without traffic between containers, the platform at its gateway.

Each container gets one address, fixed when it is made and used again as late as possible.
"""

from __future__ import annotations

from collections import deque
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final

from agentkeep.core.errors import EnvironmentStartFailed, SandboxUnavailable
from agentkeep.runtime.drivers.docker.engine import Engine

__all__ = ["BRIDGE", "LABEL", "NETWORK", "PLATFORM", "SUBNET", "Addresses", "ensure_network"]

LABEL: Final = "agentkeep"
NETWORK: Final = "agentkeep-sessions"
BRIDGE: Final = "agentkeep0"
SUBNET: Final = IPv4Network("169.254.170.0/24")
PLATFORM: Final = "169.254.170.2"  # ECS's credentials address, which AWS's SDKs trust over plain HTTP
_FILTERING: Final = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_CONFIGURATION: Final[dict[str, Any]] = {
    "Name": NETWORK,
    "Driver": "bridge",
    "Internal": True,  # the engine forwards nothing to or from it; nor do our own rules
    "EnableIPv6": False,
    "Attachable": False,
    "Labels": {LABEL: "sessions"},
    "IPAM": {"Config": [{"Subnet": str(SUBNET), "Gateway": PLATFORM}]},
    "Options": {
        "com.docker.network.bridge.name": BRIDGE,
        "com.docker.network.bridge.enable_icc": "false",
        "com.docker.network.bridge.enable_ip_masquerade": "false",
    },
}


async def ensure_network(engine: Engine) -> None:
    """Makes it if it is not there. Raises SandboxUnavailable if one of its name is made otherwise."""
    found = await engine.network(NETWORK)
    if found is None:
        await engine.create_network({"CheckDuplicate": True, **_CONFIGURATION})
        found = await engine.network(NETWORK) or {}
    wrong = [
        name
        for name in ("Driver", "Internal", "EnableIPv6", "Labels", "Options")
        if found.get(name) != _CONFIGURATION[name]
    ]
    pool = [(one.get("Subnet"), one.get("Gateway")) for one in found.get("IPAM", {}).get("Config", ())]
    if wrong or pool != [(str(SUBNET), PLATFORM)]:
        raise SandboxUnavailable(
            f"the Docker network {NETWORK} is there and made otherwise ({', '.join(wrong) or 'its addresses'}); end "
            f"what uses it and remove it: docker network rm {NETWORK}"
        )


def check_bridge_filtering(path: Path = _FILTERING) -> None:
    """Traffic from container to container crosses the bridge only; the kernel filters it there if it is told to.
    Raises SandboxUnavailable. Blocking."""
    try:
        on = path.read_text().strip() == "1"
    except OSError:
        on = False
    if not on:
        raise SandboxUnavailable(
            "the kernel does not filter traffic between containers of one bridge; run: modprobe br_netfilter && "
            "sysctl net.bridge.bridge-nf-call-iptables=1"
        )


class Addresses:
    """Those of the subnet but the platform's, the least recently used first."""

    def __init__(self) -> None:
        self._free = deque(str(address) for address in SUBNET.hosts() if str(address) != PLATFORM)

    def take(self) -> str:
        if not self._free:
            raise EnvironmentStartFailed(
                f"all {SUBNET.num_addresses - 3} addresses of {SUBNET} are in use: no more sessions fit on this "
                "machine; stop some, or lower AGENTKEEP_RUNTIME_MAX_SESSIONS so that callers are told so"
            )
        return self._free.popleft()

    def claim(self, address: str) -> None:
        """Of a container that was found again. Raises ValueError if it is in use or not of the subnet."""
        self._free.remove(address)

    def give_back(self, address: str) -> None:
        self._free.append(address)
