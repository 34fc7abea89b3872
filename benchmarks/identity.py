"""What it costs to know who is calling: JWT verification, keys, credentials for a session.

One process, one core, a real Valkey, the provider's keys fetched over HTTP. Verification is compared with the bare
signature check of the same library in the same run, which is the least it can cost.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from _history import keep
from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from joserfc import jwk, jwt

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.storage.valkey import ValkeyKeyValueStore

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
TOKENS = 1000
SESSIONS = 500
RUNTIME = "helper-1234567890"


class Provider:
    """An OpenID provider with a key of each kind."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {
            "RS256": jwk.RSAKey.generate_key(2048, {"kid": "RS256", "use": "sig"}),
            "ES256": jwk.ECKey.generate_key("P-256", {"kid": "ES256", "use": "sig"}),
            "EdDSA": jwk.OKPKey.generate_key("Ed25519", {"kid": "EdDSA", "use": "sig"}),
        }
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._metadata)
        app.router.add_get("/keys", self._keys)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _metadata(self, _: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})

    async def _keys(self, _: web.Request) -> web.Response:
        return web.json_response({"keys": [key.as_dict(private=False) for key in self.keys.values()]})

    def tokens(self, algorithm: str, count: int) -> list[str]:
        """Tokens of the size Keycloak makes, each for another user."""
        name = "RS256" if algorithm == "PS256" else algorithm
        now = int(time.time())
        header = {"alg": "Ed25519" if algorithm == "EdDSA" else algorithm, "kid": name, "typ": "JWT"}
        claims = {
            "iss": self.url,
            "aud": ["support", "account"],
            "azp": "web",
            "scope": "openid profile email",
            "iat": now,
            "exp": now + 3600,
            "realm_access": {"roles": [f"role-{number}" for number in range(10)]},
            "email": "someone@example.com",
            "name": "Some One",
        }
        algorithms = [header["alg"]]
        return [
            jwt.encode(header, {**claims, "sub": f"user-{number}"}, self.keys[name], algorithms)
            for number in range(count)
        ]


def per_call(seconds: float, calls: int) -> str:
    return f"{seconds / calls * 1e6:8.1f} us {calls / seconds:9.0f} /s"


async def cpu_of(calls: int, work: Callable[[], Awaitable[None]]) -> float:
    """CPU seconds of this process, which is what one core's throughput follows from on a shared machine."""
    before = time.process_time()
    await work()
    return time.process_time() - before


def percentiles(samples: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(samples, n=100)
    return {name: round(cuts[cut - 1] * 1000, 3) for name, cut in (("p50", 50), ("p95", 95), ("p99", 99))}


async def timed(count: int, work: Callable[[int], Awaitable[object]]) -> dict[str, float]:
    samples = []
    for number in range(count):
        start = time.perf_counter()
        await work(number)
        samples.append(time.perf_counter() - start)
    return percentiles(samples)


async def measure(plane: IdentityPlane, provider: Provider) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    authorizer = {
        "discoveryUrl": f"{provider.url}/.well-known/openid-configuration",
        "allowedAudience": ["support"],
        "allowedClients": ["web"],
        "allowedScopes": ["profile"],
    }
    await plane.authorizers.verify(authorizer, provider.tokens("RS256", 1)[0])

    key = provider.keys["RS256"]
    message = b"x" * 700
    signature = key.private_key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    before = time.process_time()
    for _ in range(TOKENS):
        key.public_key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
    bare = time.process_time() - before
    print(f"bare RS256 signature check          {per_call(bare, TOKENS)}")

    for algorithm in ALGORITHMS:
        tokens = provider.tokens(algorithm, TOKENS)

        async def verify(tokens: list[str] = tokens) -> None:
            for token in tokens:
                await plane.authorizers.verify(authorizer, token)

        spent = await cpu_of(TOKENS, verify)
        figures[f"verify_{algorithm}_per_second"] = round(TOKENS / spent)
        ratio = f"  {spent / bare:.1f} x bare" if algorithm == "RS256" else ""
        print(f"verify {algorithm}, token not seen before {per_call(spent, TOKENS)}{ratio}")
        if algorithm == "RS256":
            figures["verify_RS256_over_bare"] = round(spent / bare, 2)

    before = time.process_time()
    for token in tokens:
        plane.authorizers.cached(authorizer, token)
    spent = time.process_time() - before
    figures["verified_before_us"] = round(spent / TOKENS * 1e6, 2)
    print(f"token verified before               {per_call(spent, TOKENS)}")

    issued = await plane.keys.issue_operator_key("benchmark", acts_for_users=True)
    await plane.keys.find(issued.id)
    before = time.process_time()
    for _ in range(TOKENS):
        plane.keys.cached(issued.id)
    spent = time.process_time() - before
    figures["key_cached_us"] = round(spent / TOKENS * 1e6, 2)
    print(f"access key, cached                  {per_call(spent, TOKENS)}")

    await plane.workload_tokens.create_for_service(RUNTIME)
    users = provider.tokens("RS256", SESSIONS)

    async def vend(number: int) -> None:
        """What a session's first call needs: its user, its credentials, its workload access token."""
        user = await plane.authorizers.verify({**authorizer, "allowedAudience": ["account"]}, users[number])
        await plane.keys.issue_for_session(SessionRef(RUNTIME, f"session-{number:028}"), user)
        await plane.workload_tokens.issue(RUNTIME, user, users[number])

    figures["verify_and_vend_ms"] = await timed(SESSIONS, vend)
    print(f"verify a user and vend credentials  {figures['verify_and_vend_ms']} ms   (aim: p95 below 5)")

    keys = [
        await plane.keys.issue_for_session(SessionRef(RUNTIME, f"found-{number:030}"), None)
        for number in range(SESSIONS)
    ]
    figures["find_ms"] = await timed(SESSIONS, lambda number: plane.keys.find(keys[number].access_key_id))
    print(f"find a session's key in the store   {figures['find_ms']} ms")
    figures["end_session_ms"] = await timed(
        SESSIONS, lambda number: plane.keys.end_session(SessionRef(RUNTIME, f"found-{number:030}"))
    )
    print(f"end a session                       {figures['end_session_ms']} ms")
    return figures


async def main() -> None:
    provider = Provider()
    runner = await provider.start()
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedValkey(Path(folder) / "valkey") as valkey:
            store = ValkeyKeyValueStore(valkey.url)
            plane = IdentityPlane(
                store, FileMasterKey(b"b" * 32), Deployment(), SystemClock(), IdentitySettings(verified_tokens=10_000)
            )
            figures = await measure(plane, provider)
            await plane.close()
            await store.close()
    await runner.cleanup()
    keep("identity", figures)


if __name__ == "__main__":
    uvloop.run(main())
