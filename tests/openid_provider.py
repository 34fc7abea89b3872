"""A certified OpenID provider from npm, as a process, and a browser for its pages.

Installed once by its lock file into /var/tmp; then no registry is asked.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx
from npm_folder import installed

SOURCE = Path(__file__).parent / "identity" / "openid_provider"
RESOURCE = "https://tickets.example"
_PATIENCE = 20.0  # seconds
_MOST_STEPS = 15


class OpenIdServer:
    def __init__(self, url: str) -> None:
        self.url = url
        self.discovery_url = f"{url}/.well-known/openid-configuration"

    def register(self, *callback_urls: str, **metadata: Any) -> dict[str, Any]:
        """A client of its own for a test, by dynamic registration (RFC 7591)."""
        grants = ["authorization_code", "refresh_token", "client_credentials"]
        asked = {"redirect_uris": callback_urls, "grant_types": grants, "response_types": ["code"], **metadata}
        return dict(httpx.post(f"{self.url}/reg", json=asked).raise_for_status().json())

    def asked(self) -> dict[str, int]:
        """How often each grant type was given, and each error answered, since the start."""
        return dict(httpx.get(f"{self.url}/test/asked").raise_for_status().json())

    def revoke_all(self) -> None:
        httpx.post(f"{self.url}/test/revoke").raise_for_status()

    def user_of(self, token: str) -> str | None:
        """Whom an access token is for, by the provider's own word; None where it is not good."""
        answer = httpx.get(f"{self.url}/me", headers={"authorization": f"Bearer {token}"})
        return str(answer.json()["sub"]) if answer.status_code == 200 else None

    def introspect(self, token: str, client: dict[str, Any]) -> dict[str, Any]:
        credentials = (client["client_id"], client["client_secret"])
        answer = httpx.post(f"{self.url}/token/introspection", data={"token": token}, auth=credentials)
        return dict(answer.raise_for_status().json())


@contextmanager
def running_provider() -> Iterator[OpenIdServer]:
    folder = installed(SOURCE)
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            ["node", "server.mjs"], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().decode().strip()
        assert url, (folder / "server.log").read_text()[-2000:]
        yield OpenIdServer(url)
    finally:
        process.kill()
        process.wait(_PATIENCE)
        process.stdout.close()


class Browser:
    """A user's browser: follows redirections, keeps cookies, fills in the provider's forms. It stops where it is sent
    to a page of `stop` (the application's), and says which."""

    def __init__(self, user: str) -> None:
        self.user = user
        self._client = httpx.AsyncClient(timeout=_PATIENCE)
        self.visited: list[str] = []

    async def visit(self, url: str, stop: str = "http://app.example", *, abort: bool = False) -> str:
        """`abort`: clicks on the link that says no. Raises AssertionError with the page where it gets stuck."""
        response = await self._get(url)
        for _ in range(_MOST_STEPS):
            if response.is_redirect:
                url = urljoin(str(response.url), response.headers["location"])
                if url.startswith(stop):
                    return url
                response = await self._get(url)
                continue
            action = re.search(r'<form[^>]* action="([^"]+)"', response.text)
            assert response.status_code == 200 and action, f"{response.url}: {response.status_code} {response.text}"
            if abort:
                link = re.search(r'href="([^"]+/abort)"', response.text)
                assert link, response.text
                response = await self._get(urljoin(str(response.url), unescape(link[1])))
                continue
            prompt = re.search(r'name="prompt" value="(\w+)"', response.text)
            assert prompt
            form = {"prompt": prompt[1], "login": self.user, "password": "any"}
            response = await self._client.post(urljoin(str(response.url), unescape(action[1])), data=form)
        raise AssertionError(f"{url} leads nowhere")

    async def raw(self, url: str) -> httpx.Response:
        """One request, nothing followed."""
        return await self._get(url)

    async def close(self) -> None:
        await self._client.aclose()

    async def _get(self, url: str) -> httpx.Response:
        self.visited.append(url)
        return await self._client.get(url)


def query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))
