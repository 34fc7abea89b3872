"""The search store that two services share."""

from __future__ import annotations

from agentkeep.distributed.service import Service
from agentkeep.storage.opensearch import OpenSearchClient

__all__ = ["opensearch"]


async def opensearch(service: Service, url: str) -> OpenSearchClient:
    """A client, once OpenSearch answers: the service starts with it. Whoever is given it closes it."""
    settings = service.settings
    client = OpenSearchClient(
        url,
        user=settings.search_user,
        password=service.search_password,
        certificates=str(settings.search_certificates or ""),
    )

    async def check() -> bool:
        await client.request("GET", "/")
        return True

    try:
        await service.require("search", check)
    except BaseException:
        await client.close()
        raise
    # Later outages do not make the service unready: all but records and traces goes on without it.
    del service.checks["search"]
    return client
