"""The search store that two services share."""

from __future__ import annotations

from agentkeep.distributed.service import Service
from agentkeep.storage.opensearch import OpenSearchClient

__all__ = ["opensearch"]


async def opensearch(service: Service, url: str) -> OpenSearchClient:
    """A client, once OpenSearch answers; the service is not ready without it. Whoever is given it closes it."""
    client = OpenSearchClient(url)

    async def check() -> bool:
        await client.request("GET", "/")
        return True

    try:
        await service.require("search", check)
    except BaseException:
        await client.close()
        raise
    return client
