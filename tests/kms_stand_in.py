"""AWS KMS to test with: its wire for GenerateDataKey and Decrypt, over HTTP.

It opens nothing under another key or encryption context than it was wrapped for, and asks for a signature. Tests
disable keys, make it slow, let it throttle, and stop it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

REGION = "eu-west-1"


def key_arn(number: int = 1) -> str:
    return f"arn:aws:kms:{REGION}:123456789012:key/00000000-0000-0000-0000-{number:012}"


class _Refused(Exception):
    pass


class KmsStandIn:
    """`keys`: ARN -> its secret. `asked` counts calls. While `answering` is clear it hangs."""

    def __init__(self, *arns: str) -> None:
        self.keys = {arn: AESGCM(AESGCM.generate_key(256)) for arn in arns or (key_arn(),)}
        self.aliases: dict[str, str] = {}
        self.disabled: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.contexts: list[dict[str, str]] = []
        self.answering = asyncio.Event()
        self.answering.set()
        self.throttling = False
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self) -> None:
        """Again at the same address."""
        app = web.Application()
        app.router.add_post("/", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        self.answering.set()
        if self._runner is not None:
            await asyncio.sleep(0.05)  # for what waits to be answered
            await self._runner.cleanup()
            self._runner = None

    async def _serve(self, request: web.Request) -> web.Response:
        operation = request.headers["X-Amz-Target"].removeprefix("TrentService.")
        self.asked[operation] += 1
        await self.answering.wait()
        try:
            if not request.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 Credential="):
                raise _Refused("MissingAuthenticationTokenException")
            if self.throttling:
                raise _Refused("ThrottlingException")
            given = json.loads(await request.read())
            self.contexts.append(given.get("EncryptionContext", {}))
            answer = self._generate(given) if operation == "GenerateDataKey" else self._decrypt(given)
        except _Refused as refused:
            return self._answer({"__type": str(refused), "message": "as the stand-in sees it"}, 400)
        return self._answer(answer, 200)

    def _generate(self, given: dict[str, Any]) -> dict[str, Any]:
        arn, key = self._key(given["KeyId"])
        plain, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
        assert given["KeySpec"] == "AES_256"
        blob = arn.encode() + b"\0" + nonce + key.encrypt(nonce, plain, _context(given))
        return {"KeyId": arn, "Plaintext": _text(plain), "CiphertextBlob": _text(blob)}

    def _decrypt(self, given: dict[str, Any]) -> dict[str, Any]:
        name, _, rest = base64.b64decode(given["CiphertextBlob"]).partition(b"\0")
        arn, key = self._key(given["KeyId"])
        if name.decode(errors="replace") != arn:
            raise _Refused("IncorrectKeyException")
        try:
            plain = key.decrypt(rest[:12], rest[12:], _context(given))
        except (InvalidTag, ValueError):
            raise _Refused("InvalidCiphertextException") from None
        return {"KeyId": arn, "Plaintext": _text(plain), "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}

    def _key(self, name: str) -> tuple[str, AESGCM]:
        arn = self.aliases.get(name, name)
        if arn not in self.keys:
            raise _Refused("NotFoundException")
        if arn in self.disabled:
            raise _Refused("DisabledException")
        return arn, self.keys[arn]

    def _answer(self, document: dict[str, Any], status: int) -> web.Response:
        return web.Response(
            body=json.dumps(document).encode(), status=status, content_type="application/x-amz-json-1.1"
        )


def _context(given: dict[str, Any]) -> bytes:
    return json.dumps(given.get("EncryptionContext", {}), sort_keys=True).encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@asynccontextmanager
async def running_kms(monkeypatch: pytest.MonkeyPatch, *arns: str, secret: str = "secret") -> AsyncIterator[KmsStandIn]:
    """Started, and with credentials where AWS's libraries look for them. `secret`: the secret access key."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    stand_in = KmsStandIn(*arns)
    await stand_in.start()
    yield stand_in
    await stand_in.stop()
