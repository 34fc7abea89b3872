"""Libraries a fork server may import once for all sessions of a version.

Trust: what is imported here runs before sessions part, owns the user namespace their processes are born in, and could
keep a channel between them. So this is a list of well-known libraries by distribution name, as data; the agent's own
modules are never on it, and a distribution counts only where it is present in the version's `dependencies` and was
installed there from a package index (not from a path, URL or repository). What is not preloaded is imported by each
session for itself: slower, never wrong. Order matters little; a module that fails to import is left out.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["modules_for"]

# Standard library modules that servers of agents import sooner or later.
STANDARD: tuple[str, ...] = (
    "asyncio", "base64", "concurrent.futures.thread", "contextvars", "copy", "dataclasses", "datetime", "decimal",
    "email.message", "email.parser", "encodings.idna", "enum", "functools", "hashlib", "hmac", "http.client",
    "http.cookies", "http.server", "importlib.metadata", "inspect", "ipaddress", "json", "logging.config",
    "mimetypes", "pathlib", "queue", "random", "secrets", "socketserver", "ssl", "subprocess", "tempfile", "threading",
    "traceback", "typing", "unittest.mock", "urllib.request", "uuid", "zoneinfo",
)  # fmt: skip

# Distribution name (normalised) → modules.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "anyio": ("anyio", "anyio._backends._asyncio"),
    "httpx": ("httpx",),
    "orjson": ("orjson",),
    "pydantic": ("pydantic", "pydantic.fields", "pydantic.main"),
    "requests": ("requests",),
    "starlette": ("starlette.applications", "starlette.responses", "starlette.routing", "starlette.websockets"),
    "fastapi": ("fastapi",),
    "websockets": ("websockets.asyncio.server", "websockets.asyncio.client"),
    "uvicorn": (
        "uvicorn", "uvicorn.lifespan.on", "uvicorn.loops.auto", "uvicorn.protocols.http.auto",
        "uvicorn.protocols.websockets.auto",
    ),
    "botocore": ("botocore.session", "botocore.client", "botocore.parsers", "botocore.httpsession"),
    "boto3": ("boto3", "boto3.session"),
    "bedrock-agentcore": ("bedrock_agentcore", "bedrock_agentcore.runtime", "bedrock_agentcore.memory"),
    "numpy": ("numpy", "numpy.random"),
    "langchain-core": ("langchain_core.messages", "langchain_core.tools", "langchain_core.language_models"),
    "langgraph": ("langgraph.graph", "langgraph.prebuilt"),
    "langgraph-checkpoint-aws": ("langgraph_checkpoint_aws",),
    "langchain-aws": ("langchain_aws",),
    "strands-agents": ("strands",),
    "mcp": ("mcp",),
    "openai": ("openai",),
    "opentelemetry-api": ("opentelemetry.trace", "opentelemetry.baggage"),
}  # fmt: skip


#: What OpenTelemetry's instrumentation must meet unimported: it puts other classes in these libraries' places, and
#: OpenTelemetry itself reads its environment at import.
INSTRUMENTED = frozenset(
    {"starlette", "fastapi", "bedrock-agentcore", "mcp", "langchain-core", "langgraph", "langgraph-checkpoint-aws"}
    | {"langchain-aws", "strands-agents", "openai", "httpx", "requests", "opentelemetry-api"}
)


def modules_for(dependencies: Path | None, instrumented: bool = False) -> list[str]:
    """What a fork server of a version with these dependencies imports. Reads the folder: call it in a thread.

    `instrumented`: each session runs OpenTelemetry's automatic instrumentation before its script."""
    modules = list(STANDARD)
    if dependencies is None:
        return modules
    installed = {_normal(path.name.partition("-")[0]): path for path in dependencies.glob("*.dist-info")}
    for name, of_library in LIBRARIES.items():
        if instrumented and name in INSTRUMENTED:
            continue
        path = installed.get(name)
        if path is not None and not (path / "direct_url.json").exists():
            modules.extend(of_library)
    return modules


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
