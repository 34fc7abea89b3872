"""Which headers reach the agent, and under which names the platform adds its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote

__all__ = [
    "CUSTOM_PREFIX",
    "RESTRICTED",
    "SESSION_HEADER",
    "USER_HEADER",
    "agent_headers",
    "why_not_forwardable",
]

SESSION_HEADER: Final = "x-amzn-bedrock-agentcore-runtime-session-id"
REQUEST_HEADER: Final = "x-amzn-bedrock-agentcore-runtime-request-id"
USER_HEADER: Final = "x-amzn-bedrock-agentcore-runtime-user-id"
CUSTOM_PREFIX: Final = "x-amzn-bedrock-agentcore-runtime-custom-"

#: Headers no allow-list may name (developer guide, "runtime-header-allowlist"; the SDK's RESTRICTED_HEADERS).
RESTRICTED: Final = frozenset(
    """
    accept accept-ch accept-ch-lifetime accept-charset accept-encoding accept-language accept-ranges
    access-control-allow-credentials access-control-allow-headers access-control-allow-methods
    access-control-allow-origin access-control-expose-headers access-control-max-age access-control-request-headers
    access-control-request-method cache-control cf-connecting-ip cf-ray clear-site-data connection content-encoding
    content-language content-length content-location content-range content-security-policy
    content-security-policy-report-only content-type cookie cross-origin-embedder-policy cross-origin-opener-policy
    cross-origin-resource-policy date downlink dpr ect etag expect-ct expires feature-policy forwarded from host
    if-match if-modified-since if-none-match if-range if-unmodified-since keep-alive last-modified link location
    origin permissions-policy pragma proxy-authorization proxy-connection public-key-pins public-key-pins-report-only
    range referer referrer-policy retry-after rtt save-data sec-websocket-accept sec-websocket-extensions
    sec-websocket-key sec-websocket-protocol sec-websocket-version server set-cookie strict-transport-security te
    trailer transfer-encoding true-client-ip upgrade user-agent vary via viewport-width width www-authenticate
    x-amz-cf-id x-cache x-client-ip x-cluster-client-ip x-content-type-options x-csrf-token x-forwarded-for
    x-forwarded-host x-forwarded-proto x-frame-options x-original-host x-original-url x-originating-ip x-real-ip
    x-requested-with x-rewrite-url x-served-by x-source-ip x-xss-protection
    """.split()  # noqa: SIM905
)

#: What the platform itself tells the agent. A client that sends one of these must not be taken for the platform.
_PLATFORM: Final = frozenset({"workloadaccesstoken", "oauth2callbackurl"})

#: Members of the operation's input that travel as headers and mean something to the agent.
_MODELLED: Final = (
    "accept",
    "mcp-session-id",
    "mcp-protocol-version",
    "mcp-method",
    "mcp-name",
    "x-amzn-trace-id",
)
#: What else a protocol's servers are told by its clients, by name or as a prefix. MCP: where a broken stream goes on,
#: where a browser's page is from (for the server's own defence), arguments mirrored for whoever looks at heads only.
#: A2A: which version and extensions of the protocol the client speaks.
_OF_PROTOCOL: Final[Mapping[str, tuple[str, ...]]] = {
    "MCP": ("last-event-id", "origin", "mcp-param-"),
    "A2A": ("a2a-version", "a2a-extensions", "x-a2a-extensions"),
}
#: Allow-listed or not, these have their place already.
_PLACED: Final = frozenset({*_MODELLED, "traceparent", "tracestate", "baggage", "authorization"})
_VALUE_LIMIT: Final = 4096
_SESSION_IN_BAGGAGE: Final = re.compile(r"(?:^|,)\s*session\.id\s*=")


def why_not_forwardable(name: str, has_authorizer: bool) -> str | None:
    """Why an allow-list may not name this header; None where it may."""
    lower = name.lower()
    if lower in RESTRICTED or lower in _PLATFORM:
        return f"{name} cannot be forwarded to an agent"
    if lower.startswith("x-amz-") or (lower.startswith("x-amzn-") and not lower.startswith(CUSTOM_PREFIX)):
        return f"{name} cannot be forwarded: x-amz- and x-amzn- are reserved, but for {CUSTOM_PREFIX}*"
    if lower == "authorization" and not has_authorizer:
        return "Authorization is forwarded only where the runtime has a customJWTAuthorizer"
    return None


def agent_headers(
    sent: Mapping[str, str],
    forwarded: frozenset[str],
    session_id: str,
    request_id: str,
    workload_token: str | None,
    callback_url: str | None,
    bearer: str | None,
    trace: Iterable[tuple[bytes, bytes]],
    protocol: str = "HTTP",
) -> list[tuple[bytes, bytes]]:
    """The head of the agent's request but Host and framing. `sent` and `forwarded` have lower-case names; `bearer` is
    the token that passed the runtime's authorizer, `trace` says of which span the agent's own are children;
    `protocol` is the agent's."""
    headers = [
        (b"content-type", sent.get("content-type", "application/json").encode("latin-1")),
        (SESSION_HEADER.encode(), session_id.encode("latin-1")),
        (REQUEST_HEADER.encode(), request_id.encode("latin-1")),
        (b"baggage", _baggage(sent.get("baggage"), session_id).encode("latin-1")),
        *trace,
    ]
    for name in _MODELLED:
        value = sent.get(name)
        if value is not None:
            headers.append((name.encode("latin-1"), value.encode("latin-1")))
    own = _OF_PROTOCOL.get(protocol)
    if own is not None:
        for name, value in sent.items():
            if name.startswith(own) and len(value) <= _VALUE_LIMIT:
                headers.append((name.encode("latin-1"), value.encode("latin-1")))
    if workload_token is not None:
        # The SDK reads the first where both are there; older agents know only the second.
        token = workload_token.encode("latin-1")
        headers.append((b"x-amz-bedrock-agentcore-identity-wat", token))
        headers.append((b"workloadaccesstoken", token))
    if callback_url is not None:
        headers.append((b"oauth2callbackurl", callback_url.encode("latin-1")))
    for name in forwarded:
        value = sent.get(name)
        if value is not None and len(value) <= _VALUE_LIMIT and name not in _PLACED:
            if own is not None and name.startswith(own):
                continue  # is there already
            headers.append((name.encode("latin-1"), value.encode("latin-1")))
    # Never the header as sent: a SigV4 signature is nobody's business, and this token has been verified.
    if bearer is not None and "authorization" in forwarded:
        headers.append((b"authorization", b"Bearer " + bearer.encode("latin-1")))
    return headers


def _baggage(sent: str | None, session_id: str) -> str:
    """With `session.id`, by which OpenTelemetry's AWS distribution ties every span to the session. A caller's own
    value is dropped with all it says: it could name another session."""
    own = f"session.id={quote(session_id, safe='')}"
    if not sent:
        return own
    if _SESSION_IN_BAGGAGE.search(sent):
        sent = ",".join(part for part in sent.split(",") if not _SESSION_IN_BAGGAGE.match(part))
    return f"{sent},{own}" if sent else own
