"""AWS KMS as a key service, through boto3 with the platform's own credentials."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from agentkeep.core.errors import KeyRefused, KeyServiceUnavailable
from agentkeep.core.key_service import KMS, Context, DataKey, not_a_key, unknown_wrapping

__all__ = ["KmsKeyService"]

_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):\d{12}:(key|alias)/[A-Za-z0-9/_-]{1,256}")
_LENGTH: Final = 2  # bytes, of the ARN's length
_THREADS: Final = 8
#: KMS's errors after which the same call may do. All others are about the key, or the platform's rights to it.
_PASSING: Final = frozenset(
    {
        "DependencyTimeoutException",
        "KMSInternalException",
        "KeyUnavailableException",
        "LimitExceededException",
        "RequestLimitExceeded",
        "ServiceUnavailableException",
        "ThrottlingException",
    }
)


class KmsKeyService:
    """Wrapped keys name the key that wrapped them, by its ARN. `endpoint`: None for AWS's own. `time_limit`: seconds,
    of one call with all that belongs to it (credentials, a second attempt)."""

    def __init__(self, endpoint: str | None = None, time_limit: float = 5.0) -> None:
        self._endpoint = endpoint
        self._time_limit = time_limit
        self._clients: dict[str, Any] = {}
        self._making = Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kms")
        # At DEBUG it writes whole answers into the log, and KMS's have data keys in them.
        logging.getLogger("botocore.parsers").setLevel(logging.INFO)

    async def generate(self, context: Context, arn: str | None = None) -> DataKey:
        if arn is None or _ARN.fullmatch(arn) is None:
            raise not_a_key(str(arn))
        answer = await self._call(
            arn,
            lambda client: client.generate_data_key(KeyId=arn, KeySpec="AES_256", EncryptionContext=dict(context)),
        )
        name = str(answer["KeyId"]).encode()  # of the key itself, even where an alias was named
        return DataKey(
            answer["Plaintext"], KMS + len(name).to_bytes(_LENGTH, "big") + name + bytes(answer["CiphertextBlob"])
        )

    async def unwrap(self, wrapped: bytes, context: Context) -> bytes:
        start = 1 + _LENGTH
        end = start + int.from_bytes(wrapped[1:start], "big")
        try:
            arn, blob = wrapped[start:end].decode(), wrapped[end:]
        except UnicodeDecodeError:
            raise unknown_wrapping() from None
        if wrapped[:1] != KMS or _ARN.fullmatch(arn) is None or not blob:
            raise unknown_wrapping()
        answer = await self._call(
            arn, lambda client: client.decrypt(KeyId=arn, CiphertextBlob=blob, EncryptionContext=dict(context))
        )
        plain: bytes = answer["Plaintext"]
        return plain

    async def erase(self, wrapped: bytes) -> None:
        """KMS keeps nothing of a data key."""

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()

    async def _call(self, arn: str, ask: Callable[[Any], Any]) -> Any:
        loop = asyncio.get_running_loop()
        try:
            asked = loop.run_in_executor(self._threads, lambda: ask(self._client(arn)))
            return await asyncio.wait_for(asked, self._time_limit)
        except TimeoutError:
            raise _away(arn, "it does not answer in time") from None
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = error.response.get("Error", {}).get("Code", "")
            if status >= 500 or code in _PASSING:
                raise _away(arn, code) from None
            raise KeyRefused(
                f"AWS KMS does not let the platform use the key {arn} for this: {code}. Is it enabled, and may the "
                "platform's role use it (kms:GenerateDataKey, kms:Decrypt)?",
                gone=code == "NotFoundException",
            ) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise KeyRefused(f"The key {arn} cannot be used: the platform has no AWS credentials of its own") from None
        except BotoCoreError as error:
            raise _away(arn, type(error).__name__) from None

    def _client(self, arn: str) -> Any:
        """Made in a thread: reading the service's model takes a while."""
        match = _ARN.fullmatch(arn)
        assert match is not None
        region = match["region"]
        with self._making:
            if region not in self._clients:
                config = Config(
                    connect_timeout=min(self._time_limit, 2.0),
                    read_timeout=self._time_limit,
                    retries={"total_max_attempts": 2, "mode": "standard"},
                    max_pool_connections=_THREADS,
                )
                session = boto3.session.Session()
                self._clients[region] = session.client(
                    "kms", region_name=region, endpoint_url=self._endpoint, config=config
                )
            return self._clients[region]


def _away(arn: str, why: str) -> KeyServiceUnavailable:
    return KeyServiceUnavailable(f"AWS KMS cannot be asked for the key {arn} ({why}): try again")
