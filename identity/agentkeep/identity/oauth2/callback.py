"""The callback URL: where authorization servers send users' browsers back to. Public; the state is what lets one in."""

from __future__ import annotations

import logging
from typing import Final
from urllib.parse import parse_qsl

from agentkeep.core.errors import ServiceError, StoreUnavailable
from agentkeep.identity.oauth2.providers import CALLBACK_PATH
from agentkeep.identity.oauth2.user_federation import CallbackRefused, UserFederation
from agentkeep.service.asgi import Receive, Scope, Send, respond

__all__ = ["Oauth2Callback"]

logger = logging.getLogger(__name__)

_LONGEST_QUERY: Final = 16_384
_MOST_PARAMETERS: Final = 30
#: The query has a code in it, which no other page and no cache shall see.
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
_REFUSED: Final = (
    b"This sign-in cannot be finished: it took too long, was finished before, or did not begin here.\n"
    b"Go back to the application and start again.\n"
)
_UNAVAILABLE: Final = b"This sign-in cannot be finished at the moment. Wait a little, then load this page again.\n"


class Oauth2Callback:
    """ASGI, under CALLBACK_PATH and the id of a provider."""

    def __init__(self, federation: UserFederation) -> None:
        self._federation = federation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await _say(send, 405, b"Only GET is allowed here.\n", (b"allow", b"GET"))
            return
        try:
            answer = _query(scope["query_string"])
            destination = await self._federation.returned(scope["path"].removeprefix(CALLBACK_PATH), answer)
        except CallbackRefused as error:
            logger.warning("a browser that came back from an authorization server was refused: %s", error)
            await _say(send, 400, _REFUSED)
            return
        except (ServiceError, StoreUnavailable) as error:
            # Nothing has happened yet, so that the same address is good once the store or the key service is back.
            logger.error("a browser that came back from an authorization server has to wait: %s", error)
            await _say(send, 503, _UNAVAILABLE, (b"retry-after", b"5"))
            return
        await _say(send, 302, b"", (b"location", destination.encode("ascii")))


async def _say(send: Send, status: int, text: bytes, *headers: tuple[bytes, bytes]) -> None:
    await respond(send, status, text, (*_HEADERS, *headers), b"text/plain; charset=utf-8")


def _query(raw: bytes) -> dict[str, str]:
    """Raises CallbackRefused, also for a parameter that is there twice (RFC 6749, 3.1)."""
    if len(raw) > _LONGEST_QUERY:
        raise CallbackRefused("the query is too long")
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise CallbackRefused("the query is not a form") from None
    answer = dict(pairs)
    if len(answer) != len(pairs):
        raise CallbackRefused("the query has a parameter twice")
    return answer
