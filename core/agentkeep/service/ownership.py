"""Which plane serves a path: what an edge, and a session's listener, must know to hand a request on.

The first segment of a path decides; for tags and resource policies, which several planes have, the resource named does.
Every route of the service models and every mount is covered (tests/service/test_ownership.py, which also holds this
against the planes' own operations). `tools/generate_routes.py` writes it down for nginx.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

__all__ = ["BY_RESOURCE", "PLANES", "PREFIXES", "RESOURCES", "plane_of"]

PLANES: Final = ("runtime", "gateway", "memory", "identity", "observability")

_OWNED: Final[Mapping[str, str]] = {
    "runtime": "runtimes harnesses capacity-providers configuration-bundles browsers browser-profiles code-interpreters"
    " credentials artifacts sessions logs",
    "gateway": "gateways model guardrail policy-engines policy-engine-summaries registries registry-records web-search"
    " catalogue audit .well-known",
    "memory": "memories memory",
    "identity": "identities payments operator-keys roles sts",
    "observability": "v1 usage traces alerts audit-records budgets evaluations evaluators online-evaluation-configs"
    " datasets recommendations ab-tests agentinsights agent-insight-stores",
}

#: A path's first segment, and whose it is.
PREFIXES: Final[Mapping[str, str]] = {name: plane for plane, names in _OWNED.items() for name in names.split()}

#: First segments whose second one is the ARN of a resource of any plane.
BY_RESOURCE: Final = ("tags", "resourcepolicy")

#: How the resource part of an ARN begins, and whose such resources are.
RESOURCES: Final[Mapping[str, str]] = {
    "runtime": "runtime",
    "gateway": "gateway",
    "policy-engine": "gateway",
    "memory": "memory",
    "workload-identity-directory": "identity",
    "token-vault": "identity",
}

_PREFIXES: Final = {name.encode(): plane for name, plane in PREFIXES.items()}
_BY_RESOURCE: Final = frozenset(name.encode() for name in BY_RESOURCE)


def plane_of(raw_path: bytes) -> str | None:
    """The plane that serves `raw_path` (percent-encoded, without query); None: nobody does."""
    first, _, rest = raw_path[1:].partition(b"/")
    if first in _BY_RESOURCE:
        parts = unquote_to_bytes(rest).decode("latin-1").split(":", 5)
        return RESOURCES.get(parts[-1].partition("/")[0]) if len(parts) == 6 else None
    return _PREFIXES.get(first)
