"""The services' secrets: made once, as files, each service's in a folder with only what it needs.

    FOLDER/<service>/service.key       its private key (a JWK)
                     services.jwks     all services' public keys
                     store-password
                     search-password   of OpenSearch's user, where there is one: put there by hand
           identity/master.key         what all other keys and tokens are derived from or sealed with
           memory/data.key             what memories' keys are wrapped with
           runtime/data.key            what the keys of runtimes' environment variables are wrapped with
           observability/otlp-token    the Collector's bearer token; the same as collector/otlp-token
           valkey/valkey.conf          `requirepass ...`, and the password alone in valkey/password
           keycloak/admin-password, and those of the development realm's users

Files are 0600 and their container's user's own. Nothing that is there is ever replaced, but services.jwks grows.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
from joserfc.jwk import OKPKey

from agentkeep.core.clock import Clock
from agentkeep.core.errors import AgentkeepError
from agentkeep.core.sealing import derived
from agentkeep.service.credentials import ServiceCredentials, TrustedServices
from agentkeep.service.ownership import PLANES

__all__ = ["IMAGE_USERS", "Secrets", "SecretsMissing", "make_secrets"]

_SERVICE_KEY: Final = "service.key"
_ALL_KEYS: Final = "services.jwks"
_STORE_PASSWORD: Final = "store-password"  # noqa: S105
_SEARCH_PASSWORD: Final = "search-password"  # noqa: S105
_OTLP_TOKEN: Final = "otlp-token"  # noqa: S105
_MASTER_KEY: Final = "master.key"
_DATA_KEY: Final = "data.key"

#: The users that the containers' images run as, by consumer.
IMAGE_USERS: Final[Mapping[str, int]] = {
    "valkey": 999,
    "keycloak": 1000,
    "collector": 10_001,
    **dict.fromkeys(PLANES, 10_001),
}


#: Of the realm for development, infra/compose/realm.json.
DEVELOPMENT_USERS: Final = ("alice", "bob")


class SecretsMissing(AgentkeepError):
    """A secret is not there or cannot be used; the message says which and what to do."""


class Secrets:
    """One service's folder of secrets. Reads files: use it before the event loop runs."""

    def __init__(self, folder: Path, service: str) -> None:
        self._folder = folder
        self._service = service

    def credentials(self, clock: Clock) -> ServiceCredentials:
        return ServiceCredentials(self._service, _key(self._read(_SERVICE_KEY), self._path(_SERVICE_KEY)), clock)

    def trusted(self, clock: Clock) -> TrustedServices:
        path = self._path(_ALL_KEYS)
        keys: dict[str, list[OKPKey]] = {}
        try:
            for document in orjson.loads(self._read(_ALL_KEYS))["keys"]:
                keys.setdefault(document["kid"], []).append(OKPKey.import_key(document))
        except (ValueError, KeyError, TypeError):
            raise SecretsMissing(f"{path} is not a set of public keys: {_ADVICE}") from None
        return TrustedServices(self._service, keys, clock)

    @property
    def store_password(self) -> str | None:
        """None: the store asks for none, or its URL has it."""
        path = self._path(_STORE_PASSWORD)
        return self._read(_STORE_PASSWORD).decode().strip() if path.exists() else None

    @property
    def search_password(self) -> str:
        """Of OpenSearch's user; empty: it asks for none. Not made here: whoever made the user puts it there."""
        path = self._path(_SEARCH_PASSWORD)
        return self._read(_SEARCH_PASSWORD).decode().strip() if path.exists() else ""

    @property
    def otlp_token(self) -> bytes | None:
        return self._read(_OTLP_TOKEN).strip() if self._path(_OTLP_TOKEN).exists() else None

    @property
    def master_key(self) -> Path:
        path = self._path(_MASTER_KEY)
        if not path.exists():
            # Never made on the way: with another one, nothing that was issued or sealed before could be used again.
            raise SecretsMissing(f"{path} is missing: {_ADVICE}")
        return path

    @property
    def data_key(self) -> bytes:
        """The secret of the plane's own local key service: the memory plane's, the runtime plane's."""
        return self._read(_DATA_KEY).strip()

    @property
    def fingerprint_key(self) -> bytes:
        """What the service makes fingerprints of requests with: derived from its own key, and replaced with it."""
        return derived(self._read(_SERVICE_KEY), "request-fingerprints")

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _read(self, name: str) -> bytes:
        path = self._path(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise SecretsMissing(f"{path} cannot be read ({error.strerror}): {_ADVICE}") from None


_ADVICE: Final = (
    "make all secrets with `python -m agentkeep.service secrets FOLDER`, and let AGENTKEEP_SECRETS name the folder "
    "FOLDER/<service>, readable by the service's user"
)


def _key(data: bytes, path: Path) -> OKPKey:
    try:
        key = OKPKey.import_key(orjson.loads(data))
        if key.is_private:
            return key
    except (ValueError, KeyError, TypeError):
        pass
    raise SecretsMissing(f"{path} is not a private key: {_ADVICE}")


def make_secrets(
    folder: Path, master_key: Callable[[Path], object], *, users: Mapping[str, int] | None = IMAGE_USERS
) -> list[Path]:
    """Makes what is missing; returns what it made. `master_key` makes the identity plane's at a path. `users`: whose
    the files are, by consumer; None: his who makes them (giving files away takes root). Raises OSError."""
    return _Maker(folder, users).make(master_key)


class _Maker:
    def __init__(self, folder: Path, users: Mapping[str, int] | None) -> None:
        self._folder = folder
        self._users = users
        self._made: list[Path] = []

    def make(self, master_key: Callable[[Path], object]) -> list[Path]:
        password = self._keep("valkey", "password", _random)
        self._keep("valkey", "valkey.conf", lambda: b"requirepass " + password + b"\n")
        token = self._keep("observability", _OTLP_TOKEN, _random)
        self._keep("collector", _OTLP_TOKEN, lambda: token)
        for user in ("admin", *DEVELOPMENT_USERS):
            self._keep("keycloak", f"{user}-password", _random)
        public: list[dict[str, Any]] = []
        for plane in PLANES:
            self._keep(plane, _STORE_PASSWORD, lambda: password)
            private = _key(self._keep(plane, _SERVICE_KEY, _new_key(plane)), self._folder / plane / _SERVICE_KEY)
            public.append({**private.as_dict(private=False), "kid": plane})
        for plane in ("memory", "runtime"):
            self._keep(plane, _DATA_KEY, _random)
        master = self._consumer("identity") / _MASTER_KEY
        if not master.exists():
            master_key(master)
            self._give(master, "identity")
            self._made.append(master)
        for plane in PLANES:
            self._publish(plane, public)
        return self._made

    def _keep(self, consumer: str, name: str, content: Callable[[], bytes]) -> bytes:
        path = self._consumer(consumer) / name
        if not path.exists():
            self._write(path, content(), consumer)
        return path.read_bytes()

    def _publish(self, consumer: str, keys: list[dict[str, Any]]) -> None:
        """Old keys stay: they may be another replica's until it has the new one."""
        path = self._consumer(consumer) / _ALL_KEYS
        known: list[dict[str, Any]] = orjson.loads(path.read_bytes())["keys"] if path.exists() else []
        new = [key for key in keys if key not in known]
        if new:
            self._write(path, orjson.dumps({"keys": [*known, *new]}), consumer)

    def _consumer(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_dir():
            path.mkdir(parents=True, mode=0o700)
            self._give(path, name)
        return path

    def _write(self, path: Path, content: bytes, consumer: str) -> None:
        """Whole or not at all: a crash must not leave half a secret that is then taken for one."""
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        self._give(draft, consumer)
        draft.replace(path)
        self._made.append(path)

    def _give(self, path: Path, consumer: str) -> None:
        if self._users is not None:
            os.chown(path, self._users[consumer], self._users[consumer])


def _random() -> bytes:
    return secrets.token_urlsafe(32).encode()


def _new_key(service: str) -> Callable[[], bytes]:
    return lambda: orjson.dumps(OKPKey.generate_key("Ed25519", {"kid": service}).as_dict(private=True))
