"""The one network all sessions are on: internal, without traffic between containers, the session endpoint at
169.254.170.2.

That is the host's own address on the bridge, or, where the platform runs in containers, the session edge's.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.docker.engine import Engine

__all__ = [
    "BRIDGE",
    "HOST",
    "LABEL",
    "NETWORK",
    "PLATFORM",
    "PROBES",
    "REPLICAS",
    "SUBNET",
    "check_bridge_filtering",
    "check_network",
    "ensure_network",
    "session_addresses",
]

LABEL: Final = "agentkeep"
NETWORK: Final = "agentkeep-sessions"
BRIDGE: Final = "agentkeep0"
#: As wide as can be: a /22 would hold 169.254.169.254 too, and take a cloud machine's metadata service from it.
SUBNET: Final = IPv4Network("169.254.170.0/23")
PLATFORM: Final = "169.254.170.2"  # ECS's credentials address, which AWS's SDKs trust over plain HTTP
HOST: Final = "169.254.171.254"  # the host's address on the bridge, where the platform's is a container's
REPLICAS: Final = IPv4Network("169.254.171.240/29")  # the runtime plane's containers, as the engine gives them out
PROBES: Final = ("169.254.171.252", "169.254.171.253")
_POD_IDENTITY: Final = "169.254.170.23"  # EKS's credentials address: no session's to answer at
_FILTERING: Final = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_CONFIGURATION: Final[dict[str, Any]] = {
    "Name": NETWORK,
    "Driver": "bridge",
    "Internal": True,  # the engine forwards nothing to or from it; nor do our own rules
    "EnableIPv6": False,
    "Attachable": False,
    "Labels": {LABEL: "sessions"},
    "Options": {
        "com.docker.network.bridge.name": BRIDGE,
        "com.docker.network.bridge.enable_icc": "false",
        "com.docker.network.bridge.enable_ip_masquerade": "false",
    },
}


async def ensure_network(engine: Engine) -> None:
    """Makes it if it is not there, the platform being the host. Raises SandboxUnavailable if one of its name is made
    otherwise."""
    if await engine.network(NETWORK) is None:
        pool = {"Config": [{"Subnet": str(SUBNET), "Gateway": PLATFORM}]}
        await engine.create_network({"CheckDuplicate": True, "IPAM": pool, **_CONFIGURATION})
    await check_network(engine, gateway=PLATFORM, given_out=None)


async def check_network(engine: Engine, *, gateway: str, given_out: IPv4Network | None) -> None:
    """Whether it is there, and made so; `given_out`: the addresses of containers that ask for none. Whoever made it may
    have put labels of his own on it. Raises SandboxUnavailable."""
    found = await engine.network(NETWORK)
    if found is None:
        raise SandboxUnavailable(f"the Docker network {NETWORK} is not there; make it again: docker compose up -d")
    wrong = [
        name for name in ("Driver", "Internal", "EnableIPv6", "Options") if found.get(name) != _CONFIGURATION[name]
    ]
    if not _CONFIGURATION["Labels"].items() <= (found.get("Labels") or {}).items():
        wrong.append("Labels")
    pool = [
        (one.get("Subnet"), one.get("Gateway"), one.get("IPRange") or None)
        for one in found.get("IPAM", {}).get("Config", ())
    ]
    if wrong or pool != [(str(SUBNET), gateway, None if given_out is None else str(given_out))]:
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


def session_addresses() -> list[str]:
    """Those a session may have."""
    taken = {IPv4Address(one) for one in (PLATFORM, HOST, _POD_IDENTITY, *PROBES)} | set(REPLICAS)
    return [str(address) for address in SUBNET.hosts() if address not in taken]
