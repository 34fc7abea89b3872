"""Token endpoints and metadata that misbehave: what comes from outside has a size, a time and a form."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from aiohttp import web
from consent_stand import ConsentStand
from exchange_server import ExchangeServer
from openid_provider import query

from agentkeep.core.errors import ServiceUnavailableException, ValidationException
from agentkeep.identity.oauth2.grants import TokenSet
from agentkeep.identity.oauth2.token_endpoint import ClientCredentials
from agentkeep.identity.settings import IdentitySettings

GOOD = {"access_token": "t0ken", "token_type": "Bearer", "expires_in": 300}


@pytest.fixture
def settings() -> IdentitySettings:
    return IdentitySettings(provider_timeout=0.3, provider_document_limit=4096)


@pytest.fixture
async def token(stand: ConsentStand, exchange: ExchangeServer) -> str:
    """A workload access token; `tickets` is `exchange`'s."""
    await stand.workload()
    await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    return await stand.token_of("alice")


def answers(exchange: ExchangeServer, body: bytes | dict[str, Any], status: int = 200, **headers: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return web.Response(status=status, body=data, headers=headers, content_type="application/json")

    exchange.answer = answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'"t0ken"',
        {},
        {"access_token": ""},
        {"access_token": 7},
        {"access_token": ["t0ken"]},
        {"access_token": "two\r\nlines"},
        {"access_token": "t\u00f6ken"},
        {"access_token": "t0ken", "token_type": "DPoP"},
        {"access_token": "t0ken", "token_type": None},
        {**GOOD, "issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {**GOOD, "padding": "x" * 5000},
    ],
    ids=str,
)
async def test_what_is_no_token_is_not_taken_for_one(
    stand: ConsentStand, exchange: ExchangeServer, token: str, body: bytes | dict[str, Any]
) -> None:
    answers(exchange, body)
    with pytest.raises(ServiceUnavailableException, match=r"did not answer as it should\. Try again") as error:
        await stand.ask(token, "M2M")
    assert "t0ken" not in str(error.value)
    answers(exchange, GOOD)
    assert (await stand.ask(token, "M2M"))["accessToken"] == "t0ken", "and nothing of it was kept"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_followed(
    stand: ConsentStand, exchange: ExchangeServer, token: str, status: int
) -> None:
    """The client's secret would go along."""
    elsewhere = ExchangeServer(exchange._trusted, exchange._issuer)
    await elsewhere.start()
    answers(exchange, GOOD, status, location=f"{elsewhere.url}/token")
    with pytest.raises(ServiceUnavailableException):
        await stand.ask(token, "M2M")
    assert elsewhere.requests == []
    await elsewhere.stop()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, "invalid_request") for status in (429, 500, 502, 503)),
        *((400, error) for error in ("temporarily_unavailable", "server_error", "slow_down")),
        (200, "temporarily_unavailable"),
    ],
)
async def test_failures_that_pass_are_told_from_refusals(
    stand: ConsentStand, exchange: ExchangeServer, token: str, status: int, error: str
) -> None:
    answers(exchange, {"error": error}, status)
    with pytest.raises(ServiceUnavailableException):
        await stand.ask(token, "M2M")


@pytest.mark.parametrize(
    "head", ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: ",
             "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
)  # fmt: skip
async def test_a_server_that_repeats_what_it_was_sent(
    stand: ConsentStand, exchange: ExchangeServer, token: str, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    """And not in HTTP: errors of that quote it. Nothing of it gets into the log, nor to the agent."""

    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = await reader.readuntil(b"\r\n\r\n")
        (length,) = (line.split(b":")[1] for line in sent.split(b"\r\n") if line.lower().startswith(b"content-length"))
        writer.write(head.encode() + await reader.readexactly(int(length)) + b"\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(repeat, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token"
        metadata = {**exchange.metadata["authorizationServerMetadata"], "tokenEndpoint": url}
        discovery = {"authorizationServerMetadata": {**metadata, "tokenEndpointAuthMethods": ["client_secret_post"]}}
        await stand.credential_provider(discovery, "agent", "s3cret-of-the-client")
        with pytest.raises(ServiceUnavailableException) as error:
            await stand.ask(token, "M2M")
    assert "did not answer in HTTP" in caplog.text
    assert "s3cret" not in caplog.text + str(error.value)


async def test_a_slow_server_is_not_waited_for(stand: ConsentStand, exchange: ExchangeServer, token: str) -> None:
    """Nor one whose answer never ends; and the next who asks asks anew."""

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.json_response(GOOD)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    for answer in (slow, endless):
        exchange.answer = answer
        async with asyncio.timeout(2):
            with pytest.raises(ServiceUnavailableException):
                await stand.ask(token, "M2M")
    exchange.answer = None
    assert (await stand.ask(token, "M2M"))["accessToken"]


async def test_a_code_is_not_lost_with_an_answer(stand: ConsentStand, exchange: ExchangeServer, token: str) -> None:
    """The server fails while a consent is confirmed: the code is kept, and confirming again sends it again."""
    begun = await stand.ask(token)
    state = query(begun["authorizationUrl"])["state"]
    callback = query(begun["authorizationUrl"])["redirect_uri"]
    assert (await stand.get(f"{callback}?{urlencode({'state': state, 'code': 'c0de'})}")).status_code == 302
    answers(exchange, b"", 502)
    with pytest.raises(ServiceUnavailableException):
        await stand.complete("alice", begun["sessionUri"])
    assert (await stand.ask(token, sessionUri=begun["sessionUri"]))["sessionStatus"] == "IN_PROGRESS"
    answers(exchange, GOOD)
    await stand.complete("alice", begun["sessionUri"])
    assert await stand.ask(token, sessionUri=begun["sessionUri"]) == {"accessToken": "t0ken"}
    assert [dict(asked)["code"] for asked in exchange.requests] == ["c0de", "c0de"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"error": "invalid_client"}, 401, "invalid_client"),
        ({"error": "unauthorized_client"}, 400, "unauthorized_client"),
        ({"error": "invalid_grant"}, 400, "invalid_grant"),  # of the client's own, not of any user's token
        ({"error": "incorrect_client_credentials"}, 200, "incorrect_client_credentials"),  # GitHub
        ({"ok": False, "error": "bad_client_secret"}, 200, "bad_client_secret"),  # Slack
        ({"error": {"message": "s3cret-of-the-client", "code": 190}}, 400, "unknown"),  # Facebook
        ({"error": "s3cret-of-the-client"}, 400, "unknown"),
        ({"error": "x" * 100}, 400, "unknown"),
        ({"message": "no"}, 403, "unknown"),
    ],
)
async def test_a_refusals_code_is_said_and_nothing_else(
    stand: ConsentStand, exchange: ExchangeServer, token: str, body: dict[str, Any], status: int, said: str
) -> None:
    answers(exchange, {**body, "error_description": "the secret is s3cret-of-the-client"}, status)
    with pytest.raises(ValidationException, match=rf"tickets refused \({said}\)") as error:
        await stand.ask(token, "M2M")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("expires_in", "kept"),
    [(300, 239), ("300", 239), (50, 39), (None, 239), (True, 239), ("soon", 239), ("NaN", 239), (1e300, 10**7)],
)
async def test_how_long_a_token_is_handed_out(
    stand: ConsentStand, exchange: ExchangeServer, token: str, clock: Any, expires_in: object, kept: int
) -> None:
    """A minute, or a fifth of a short life, is left to use it in; five minutes where the server does not say."""
    exchange.expires_in = expires_in
    first = (await stand.ask(token, "M2M"))["accessToken"]
    clock.move(kept)
    token = await stand.token_of("alice")
    assert (await stand.ask(token, "M2M"))["accessToken"] == first
    if kept < 10**6:
        clock.move(2)
        assert (await stand.ask(token, "M2M"))["accessToken"] != first


@pytest.mark.parametrize("expires_in", [0, -1, "-1e300"])
async def test_a_token_that_has_ended_is_not_kept(
    stand: ConsentStand, exchange: ExchangeServer, token: str, expires_in: object
) -> None:
    exchange.expires_in = expires_in
    first = (await stand.ask(token, "M2M"))["accessToken"]
    assert (await stand.ask(token, "M2M"))["accessToken"] != first


@pytest.mark.parametrize(
    "published",
    [
        {"issuer": None},
        {"issuer": 7},
        {"token_endpoint": None},
        {"token_endpoint": "http://10.0.0.1/token"},
        {"token_endpoint": "http://169.254.169.254/latest"},
        {"token_endpoint": "file:///etc/passwd"},
        {"token_endpoint": "https://user:password@idp.example/token"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": ["https://idp.example"]},
    ],
    ids=str,
)
async def test_metadata_that_leads_astray_is_refused(
    stand: ConsentStand, exchange: ExchangeServer, published: dict[str, Any]
) -> None:
    await stand.workload()
    discovery = f"{exchange.url}/.well-known/openid-configuration"
    await stand.credential_provider(discovery, exchange.client_id, exchange.client_secret)
    exchange.published = published
    token = await stand.token_of("alice")
    with pytest.raises(ServiceUnavailableException, match="publishes no metadata that can be used"):
        await stand.ask(token, "M2M")
    assert exchange.requests == []
    exchange.published = {}
    assert (await stand.ask(token, "M2M"))["accessToken"]


async def test_metadata_from_elsewhere_does_not_lead_to_this_machine(
    stand: ConsentStand, exchange: ExchangeServer, make_plane: Any
) -> None:
    """What only this machine reaches is not for documents of others."""
    await stand.workload()
    known = "https://idp.example"
    plane = make_plane(settings=IdentitySettings(provider_addresses=f"{known}={exchange.url}"))
    discovery = f"{known}/.well-known/openid-configuration"
    await stand.credential_provider(discovery, exchange.client_id, exchange.client_secret)
    token = await stand.token_of("alice")
    with pytest.raises(ServiceUnavailableException):
        await stand.ask(token, "M2M", plane=plane)
    assert exchange.requests == []
    exchange.known_as = known
    assert (await stand.ask(token, "M2M", plane=plane))["accessToken"]


async def test_metadata_is_used_through_an_outage(stand: ConsentStand, exchange: ExchangeServer, clock: Any) -> None:
    """As keys are: fetched again after ten minutes, used up to an hour."""
    await stand.workload()
    discovery = f"{exchange.url}/.well-known/openid-configuration"
    await stand.credential_provider(discovery, exchange.client_id, exchange.client_secret)
    token = await stand.token_of("alice")
    assert (await stand.ask(token, "M2M"))["accessToken"]
    exchange.published = {"issuer": None}
    clock.move(1800)
    assert (await stand.ask(token, "M2M"))["accessToken"]
    clock.move(1799)
    token = await stand.token_of("alice")
    assert (await stand.ask(token, "M2M"))["accessToken"]
    clock.move(301)
    with pytest.raises(ServiceUnavailableException):
        await stand.ask(token, "M2M")


def test_nothing_that_holds_a_token_shows_it(clock: Any) -> None:
    tokens = TokenSet("t0ken", clock.now(), None, "r3fresh")
    assert TokenSet.load(tokens.dump()).refresh_token == "r3fresh"
    shown = repr(tokens) + str(tokens) + repr(ClientCredentials("agent", "s3cret"))
    assert not any(secret in shown for secret in ("t0ken", "r3fresh", "s3cret"))
