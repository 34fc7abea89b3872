"""Amazon Bedrock's embedding models, Titan and Cohere, by InvokeModel.

boto3 blocks, so every call of it runs in a thread. Sources: the models' pages in the Amazon Bedrock user guide
(titan-embed-text, cohere embed).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

from agentkeep.storage.embedding import EmbeddingUnavailable
from agentkeep.storage.embedding_remote import EmbeddingRefused, TryAgain

__all__ = ["BedrockEmbeddings"]

_CONNECT_SECONDS: Final = 5.0
_BUSY: Final = {
    "ThrottlingException",
    "TooManyRequestsException",
    "ServiceUnavailableException",
    "ModelNotReadyException",
    "ModelTimeoutException",
    "InternalServerException",
}
#: Cohere's third generation takes so many characters of a text at most.
_COHERE_CHARACTERS: Final = 2048


class BedrockEmbeddings:
    """`model`: a model id, or the ARN or id of an inference profile. Titan takes one text a request, Cohere 96.
    `time_limit`: seconds without an answer. Raises EmbeddingUnavailable where boto3 cannot be set up."""

    at_once = 8

    def __init__(
        self,
        model: str,
        *,
        dimensions: int,
        region: str | None = None,
        profile: str | None = None,
        endpoint_url: str | None = None,
        time_limit: float = 30.0,
    ) -> None:
        self._model = model
        self._cohere = "cohere" in model
        # The first generation has its own size and knows no such member.
        self._choice = {"dimensions": dimensions, "normalize": True} if "v2" in model else {}
        self.batch = 96 if self._cohere else 1
        # AWS_ENDPOINT_URL* lead back to this platform. Trying again is the caller's.
        config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=time_limit,
            max_pool_connections=self.at_once,
            retries={"total_max_attempts": 1, "mode": "standard"},
            ignore_configured_endpoint_urls=True,
            user_agent_appid="agentkeep",
        )
        try:
            session = boto3.Session(profile_name=profile, region_name=region)
            self._client = session.client("bedrock-runtime", endpoint_url=endpoint_url, config=config)
        except (BotoCoreError, ProfileNotFound) as error:
            raise EmbeddingUnavailable(
                f"Amazon Bedrock: {error}: see AGENTKEEP_MEMORY_EMBEDDING_REGION and _PROFILE"
            ) from error
        self._threads = ThreadPoolExecutor(self.at_once, thread_name_prefix="embedding")

    async def ask(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        if not self._cohere:
            return [(await self._invoke({"inputText": texts[0], **self._choice}, _titan))]
        body = {
            "texts": [text[:_COHERE_CHARACTERS] for text in texts],
            # Records and queries alike, as a text's vector does not depend on what it is for.
            "input_type": "search_document",
            "truncate": "END",
        }
        found: Sequence[Sequence[float]] = await self._invoke(body, _cohere)
        return found

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def _invoke(self, body: dict[str, Any], read: Callable[[Any], Any]) -> Any:
        def work() -> Any:
            answer = self._client.invoke_model(
                modelId=self._model, body=json.dumps(body), contentType="application/json", accept="application/json"
            )
            return json.loads(answer["body"].read())

        try:
            return read(await asyncio.get_running_loop().run_in_executor(self._threads, work))
        except ClientError as error:
            raise _failure(error) from None
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise EmbeddingUnavailable(f"no credentials for Amazon Bedrock: {error}") from None
        except (BotoCoreError, OSError) as error:
            raise TryAgain(f"Amazon Bedrock cannot be reached or broke off ({type(error).__name__})") from None
        except (ValueError, TypeError, KeyError):
            raise EmbeddingUnavailable("Amazon Bedrock answers with something that is no vector") from None


def _failure(error: ClientError) -> Exception:
    """By its code alone: what it says may repeat the texts."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    if code == "ValidationException":
        return EmbeddingRefused(f"Amazon Bedrock answers {code}")
    if code in _BUSY or status >= 500 or status == 429:
        return TryAgain(f"Amazon Bedrock answers {code}")
    return EmbeddingUnavailable(
        f"Amazon Bedrock refuses ({code}): see AGENTKEEP_MEMORY_EMBEDDING_MODEL and the platform's credentials"
    )


def _titan(answer: Any) -> Any:
    return [float(number) for number in answer["embedding"]]


def _cohere(answer: Any) -> Any:
    vectors = answer["embeddings"]
    if isinstance(vectors, dict):  # by type, as the fourth generation has it
        vectors = vectors["float"]
    return [[float(number) for number in vector] for vector in vectors]
