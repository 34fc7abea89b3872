"""A client of the Docker Engine API over its Unix socket: the calls the driver makes, and no others.

So this file is the list that a filtering proxy before the socket must let pass. Source: the Engine API's reference,
versions 1.41 to 1.47.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from agentkeep.core.errors import DriverError, SandboxUnavailable

__all__ = ["Engine", "EngineError", "EngineUnavailable"]

OLDEST: Final = (1, 41)
_NO_ENGINE: Final = 502  # what a proxy before it answers; the engine itself never does
NEWEST: Final = (1, 47)  # the newest these calls were read against; newer engines still speak it


class EngineError(DriverError):
    """The engine refused. `status` is HTTP's; the message is the engine's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EngineUnavailable(SandboxUnavailable):
    """The engine does not answer."""


class Engine:
    """One event loop. Every call raises EngineError or EngineUnavailable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: aiohttp.ClientSession | None = None
        self._prefix: str | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # The engine itself.

    async def version(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._call("GET", "/version", versioned=False)
        return found

    async def info(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._call("GET", "/info")
        return found

    # Networks.

    async def network(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._call("GET", f"/networks/{name}", missing=True)
        return found

    async def create_network(self, configuration: Mapping[str, Any]) -> None:
        await self._call("POST", "/networks/create", body=configuration)

    # Images.

    async def image(self, reference: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._call("GET", f"/images/{reference}/json", missing=True)
        return found

    async def pull(self, reference: str) -> None:
        await self._progress("POST", "/images/create", {"fromImage": reference})

    async def import_image(self, archive: bytes, repository: str, tag: str) -> None:
        """An image made of a tar archive's files."""
        await self._progress("POST", "/images/create", {"fromSrc": "-", "repo": repository, "tag": tag}, archive)

    async def tag(self, image_id: str, repository: str, tag: str) -> None:
        await self._call("POST", f"/images/{image_id}/tag", query={"repo": repository, "tag": tag})

    async def remove_image(self, reference: str) -> None:
        await self._call("DELETE", f"/images/{reference}", missing=True)

    # Containers.

    async def containers(self, label: str) -> list[dict[str, Any]]:
        """All that bear the label, running or not."""
        query = {"all": "true", "filters": json.dumps({"label": [label]})}
        found: list[dict[str, Any]] = await self._call("GET", "/containers/json", query=query)
        return found

    async def create(self, name: str, configuration: Mapping[str, Any]) -> None:
        await self._call("POST", "/containers/create", query={"name": name}, body=configuration)

    async def container(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._call("GET", f"/containers/{name}/json", missing=True)
        return found

    async def start(self, name: str) -> None:
        await self._call("POST", f"/containers/{name}/start")

    async def kill(self, name: str, signal: str) -> None:
        """Nothing, if it does not run."""
        try:
            await self._call("POST", f"/containers/{name}/kill", query={"signal": signal}, missing=True)
        except EngineError as error:
            if error.status != 409:
                raise

    async def wait(self, name: str) -> int | None:
        """Returns its exit status when it does not run any more; None if there is no such container."""
        found = await self._call("POST", f"/containers/{name}/wait", missing=True, timeout=None)
        return None if found is None else int(found["StatusCode"])

    async def remove(self, name: str) -> None:
        """Kills it, too. Nothing, if it is not there."""
        try:
            await self._call(
                "DELETE", f"/containers/{name}", query={"force": "true", "v": "true"}, missing=True, timeout=120
            )
        except EngineError as error:
            if error.status != 409:  # somebody else is removing it
                raise

    @asynccontextmanager
    async def output(self, name: str) -> AsyncIterator[aiohttp.StreamReader]:
        """What it writes from now on, both streams in the engine's frames (see `output.py`)."""
        query = {"stream": "true", "stdout": "true", "stderr": "true"}
        async with self._request("POST", f"/containers/{name}/attach", query) as response:
            yield response.content

    # Commands in containers.

    async def create_command(self, name: str, configuration: Mapping[str, Any]) -> str:
        """Its id."""
        found = await self._call("POST", f"/containers/{name}/exec", body=configuration)
        return str(found["Id"])

    @asynccontextmanager
    async def run_command(self, id: str) -> AsyncIterator[aiohttp.StreamReader]:
        """Starts it. What it writes, both streams in the engine's frames."""
        body = json.dumps({"Detach": False, "Tty": False}).encode()
        async with self._request("POST", f"/exec/{id}/start", {}, body) as response:
            yield response.content

    async def command(self, id: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._call("GET", f"/exec/{id}/json", missing=True)
        return found

    # How.

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        missing: bool = False,
        versioned: bool = True,
        timeout: float | None = 60,
    ) -> Any:
        """The answer's JSON. `missing`: None instead of the error that the thing named is not there."""
        data = None if body is None else json.dumps(body).encode()
        try:
            async with (
                asyncio.timeout(timeout),
                self._request(method, path, query or {}, data, versioned=versioned) as response,
            ):
                text = await response.read()
        except EngineError as error:
            if missing and error.status == 404:
                return None
            raise
        except TimeoutError:
            raise EngineUnavailable(f"the Docker engine did not answer {method} {path} within {timeout:g} s") from None
        return json.loads(text) if text.strip() else {}

    async def _progress(self, method: str, path: str, query: Mapping[str, str], data: bytes | None = None) -> None:
        """A call that reports progress, and perhaps its failure, line by line after its status."""
        async with self._request(method, path, query, data) as response:
            rest = b""
            async for piece in response.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                for line in filter(bytes.strip, lines):
                    report = json.loads(line)
                    if "error" in report:
                        raise EngineError(500, str(report["error"]))

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        data: bytes | None = None,
        *,
        versioned: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=str(self._path), limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            )
        if any(part in ("", ".", "..") for part in path.split("/")[1:]):
            raise EngineError(400, f"{path!r} is not the path of a call")  # two dots would make it another's
        prefix = await self._negotiate() if versioned else ""
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            async with self._session.request(
                method,
                f"http://docker{prefix}{path}",
                params=query,
                data=data,
                headers=headers,
            ) as response:
                if response.status == _NO_ENGINE:
                    raise EngineUnavailable(_message(await response.text()))
                if response.status >= 400:
                    raise EngineError(response.status, _message(await response.text()))
                yield response
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise EngineUnavailable(
                f"the Docker engine does not answer at {self._path} ({error}); start it, or name its socket in "
                "AGENTKEEP_RUNTIME_DOCKER_SOCKET"
            ) from error

    async def _negotiate(self) -> str:
        """The newest version of the API that both know, as a path's beginning."""
        if self._prefix is None:
            offered = await self.version()
            newest = tuple(map(int, offered["ApiVersion"].split(".")))
            if newest < OLDEST:
                raise SandboxUnavailable(
                    f"Docker engine {offered.get('Version')} is too old; install version 20.10 or newer"
                )
            major, minor = min(newest, NEWEST)
            self._prefix = f"/v{major}.{minor}"
        return self._prefix


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:500]
