"""Which embedding model makes texts comparable by meaning, by settings."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentkeep.storage.embedding import Embedder
from agentkeep.storage.embedding_minilm import MiniLmEmbedder
from agentkeep.storage.embedding_openai import OpenAIEmbeddings
from agentkeep.storage.embedding_remote import RemoteEmbedder

__all__ = ["EmbeddingSettings"]


class EmbeddingSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="AGENTKEEP_MEMORY_", frozen=True, extra="ignore")

    embedding: Literal["minilm", "bedrock", "openai", "none"] = Field(
        "minilm",
        description="What makes texts comparable by meaning: a small model that runs here, a model of Amazon Bedrock "
        "(Titan or Cohere), any server with OpenAI's /embeddings, or none (search by words). Vectors of one do not "
        "compare with those of another: a store that holds some is refused with another model.",
    )
    embedding_model: str | None = Field(
        None, description="Of `bedrock` and `openai`: the model's id, such as amazon.titan-embed-text-v2:0."
    )
    embedding_dimensions: int | None = Field(
        None, ge=1, le=16_384, description="Of `bedrock` and `openai`: how many numbers the model's vectors have."
    )
    embedding_url: str | None = Field(
        None,
        description="Of `openai`: the API's base (https://host/v1). Of `bedrock`: where InvokeModel is, if not at "
        "AWS's address of the region.",
    )
    embedding_key: SecretStr = Field(SecretStr(""), description="Of `openai`: the key sent with each request, if any.")
    embedding_region: str | None = Field(None, description="Of `bedrock`: the AWS region, if not boto3's default.")
    embedding_profile: str | None = Field(
        None, description="Of `bedrock`: a profile of AWS's configuration, if not boto3's default credentials."
    )
    embedding_seconds: float = Field(
        30.0, gt=0, le=600, description="Of `bedrock` and `openai`: how long one request may take."
    )
    embedding_sends_dimensions: bool = Field(
        False,
        description="Of `openai`: whether the number of dimensions is sent, for models that can give several.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        wanted = {
            "bedrock": ("embedding_model", "embedding_dimensions"),
            "openai": ("embedding_model", "embedding_dimensions", "embedding_url"),
        }
        missing = [name for name in wanted.get(self.embedding, ()) if getattr(self, name) is None]
        if missing:
            names = ", ".join(f"AGENTKEEP_MEMORY_{name.upper()}" for name in missing)
            raise ValueError(f"AGENTKEEP_MEMORY_EMBEDDING={self.embedding} needs {names}")
        if self.embedding_url is not None and not self.embedding_url.startswith(("https://", "http://")):
            raise ValueError("AGENTKEEP_MEMORY_EMBEDDING_URL must begin with https:// or http://")
        return self

    def embedder(self) -> Embedder | None:
        """None: none is wanted. Raises EmbeddingUnavailable."""
        if self.embedding == "none":
            return None
        if self.embedding == "minilm":
            return MiniLmEmbedder()
        model, dimensions = self.embedding_model or "", self.embedding_dimensions or 0
        if self.embedding == "openai":
            service = OpenAIEmbeddings(
                self.embedding_url or "",
                model,
                api_key=self.embedding_key.get_secret_value(),
                dimensions=dimensions if self.embedding_sends_dimensions else None,
                time_limit=self.embedding_seconds,
            )
            return RemoteEmbedder(f"openai/{model}", dimensions, service)
        from agentkeep.storage.embedding_bedrock import BedrockEmbeddings  # boto3 takes long to load

        bedrock = BedrockEmbeddings(
            model,
            dimensions=dimensions,
            region=self.embedding_region,
            profile=self.embedding_profile,
            endpoint_url=self.embedding_url,
            time_limit=self.embedding_seconds,
        )
        return RemoteEmbedder(f"bedrock/{model}", dimensions, bedrock)
