"""Who a service is, to the other services: short-lived tokens signed with a key of its own.

Each service has an Ed25519 private key; all have all public keys (a JWKS whose key ids are the services' names). Two
kinds of tokens (RFC 7519, Ed25519 by RFC 9864), told apart by their `typ`, neither good in the other's place:

- a *call* token says which service calls which;
- a *listener* token says, besides, through which session's listener the runtime service took the request it hands on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock
from agentkeep.core.errors import UnauthorizedException

__all__ = ["SESSION_HEADER", "Proof", "ServiceCredentials", "TokenKind", "TrustedServices"]

#: Carries a listener token. Nobody's but the runtime service's: dropped from what clients and agents send.
SESSION_HEADER: Final = b"x-agentkeep-session"

_ALGORITHM: Final = "Ed25519"
#: Seconds. A token is used again while at least half of its life is left.
LIFE: Final = 60
#: Between two machines' clocks, seconds.
_SKEW: Final = 5
_MOST_KEPT: Final = 10_000
_LONGEST: Final = 2048
#: The one service that has session listeners.
_LISTENS: Final = "runtime"


class TokenKind(StrEnum):
    """The token's `typ`."""

    CALL = "agentkeep-call+jwt"
    LISTENER = "agentkeep-listener+jwt"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a token proved: the service that calls, and for listener tokens the session."""

    service: str
    session: SessionRef | None = None


class ServiceCredentials:
    """The service `name`, with its private key."""

    def __init__(self, name: str, key: OKPKey, clock: Clock) -> None:
        self.name = name
        self._key = key
        self._clock = clock
        self._made: dict[tuple[str, SessionRef | None], tuple[str, float]] = {}  # oldest first

    def __repr__(self) -> str:
        return f"ServiceCredentials({self.name!r})"

    def token(self, audience: str, session: SessionRef | None = None) -> str:
        """For `audience` only. `session`: a listener token of that session."""
        now = self._clock.monotonic()
        made = self._made.get((audience, session))
        if made is not None and now < made[1]:
            return made[0]
        kind = TokenKind.CALL if session is None else TokenKind.LISTENER
        issued = int(self._clock.now().timestamp())
        claims: dict[str, Any] = {"iss": self.name, "aud": audience, "iat": issued, "exp": issued + LIFE}
        if session is not None:
            claims |= {"runtime": session.runtime_id, "session": session.session_id}
        header = {"alg": _ALGORITHM, "typ": kind.value, "kid": self.name}
        token = jws.serialize_compact(header, orjson.dumps(claims), self._key, algorithms=[_ALGORITHM])
        self._made.pop((audience, session), None)
        self._made[audience, session] = (token, now + LIFE / 2)
        if len(self._made) > _MOST_KEPT:
            del self._made[next(iter(self._made))]
        return token

    def forget(self, session: SessionRef) -> None:
        """Its listener is gone."""
        for known in [known for known in self._made if known[1] == session]:
            del self._made[known]


class TrustedServices:
    """Verifies the tokens that are meant for `audience`. `keys`: public keys by service, several while one is being
    replaced. What was verified is remembered until it expires."""

    def __init__(self, audience: str, keys: Mapping[str, list[OKPKey]], clock: Clock) -> None:
        self._audience = audience
        self._keys = keys
        self._clock = clock
        self._verified: dict[str, tuple[TokenKind, Proof, float]] = {}  # oldest first

    def verify(self, token: str, kind: TokenKind) -> Proof:
        """Raises UnauthorizedException; the message says what is wrong, not what would be right."""
        now = self._clock.now().timestamp()
        known = self._verified.get(token)
        if known is None:
            known = self._verify(token, now)
            self._verified[token] = known
            if len(self._verified) > _MOST_KEPT:
                del self._verified[next(iter(self._verified))]
        found, proof, expires = known
        if now >= expires:
            del self._verified[token]
            raise UnauthorizedException("The service token has expired")
        if found is not kind:
            raise UnauthorizedException("The service token is of another kind")
        return proof

    def _verify(self, token: str, now: float) -> tuple[TokenKind, Proof, float]:
        kind, service, claims = self._signed(token)
        if claims.get("iss") != service or claims.get("aud") != self._audience:
            raise UnauthorizedException("The service token was made by or for another service")
        expires, issued = claims.get("exp"), claims.get("iat")
        if type(expires) is not int or type(issued) is not int or expires - issued > LIFE or issued > now + _SKEW:
            raise UnauthorizedException("The service token's times are wrong")
        if kind is TokenKind.CALL:
            return kind, Proof(service), expires + _SKEW
        runtime_id, session_id = claims.get("runtime"), claims.get("session")
        if service != _LISTENS or not isinstance(runtime_id, str) or not isinstance(session_id, str):
            raise UnauthorizedException("The service token does not name a session, or its service has none")
        return kind, Proof(service, SessionRef(runtime_id, session_id)), expires + _SKEW

    def _signed(self, token: str) -> tuple[TokenKind, str, dict[str, Any]]:
        if len(token) > _LONGEST:
            raise UnauthorizedException("The service token is too long")
        try:
            signature = jws.extract_compact(token.encode("ascii"))
            header = signature.headers()
            kind, service = TokenKind(header["typ"]), header["kid"]
            keys = self._keys.get(service, ()) if header["alg"] == _ALGORITHM else ()
            if any(jws.validate_compact(signature, key, algorithms=[_ALGORITHM]) for key in keys):
                claims = orjson.loads(signature.payload)
                if isinstance(claims, dict):
                    return kind, service, claims
        except (JoseError, ValueError, TypeError, KeyError):
            pass
        raise UnauthorizedException("The service token is not one of this platform's")
