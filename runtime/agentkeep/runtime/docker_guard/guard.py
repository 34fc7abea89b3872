"""The proxy: a small HTTP server that knows the docker driver's calls and no others.

Nothing a client sends is passed on. A call is parsed, checked, and made anew with the driver's own client of the
engine; so what is not a method of `Engine` cannot be said, and there is one parser to fool, not two. A container is
looked up and found to be ours by its label before anything is done to it, and it is done to the id found then.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import StreamReader, web

from agentkeep.core.errors import DriverError
from agentkeep.runtime.docker_guard.bodies import checked, image_named
from agentkeep.runtime.docker_guard.commands import STARTED, checked_command, container_of, told_of
from agentkeep.runtime.docker_guard.names import AllowedImages
from agentkeep.runtime.docker_guard.refusal import Refused
from agentkeep.runtime.drivers.docker.container import NAME, PROBE, SESSION
from agentkeep.runtime.drivers.docker.engine import Engine, EngineError
from agentkeep.runtime.drivers.docker.images import REPOSITORY, image_of, is_reference
from agentkeep.runtime.drivers.docker.network import LABEL, NETWORK
from agentkeep.runtime.drivers.docker.probe import PROBE_IMAGE
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import Limits

__all__ = ["DockerGuard"]

logger = logging.getLogger(__name__)

_MOST_ARCHIVE: Final = 10240  # an archive of no files
_VERSION: Final = r"(?:/v1\.4[1-7])?"
_REFERENCE: Final = r"(?P<reference>[A-Za-z0-9][A-Za-z0-9._:@/-]{0,500})"
_CONTAINER: Final = rf"/containers/(?P<name>{NAME.pattern})"
_COMMAND: Final = r"/exec/(?P<command>[0-9a-f]{64})"
#: Of what the engine tells about its machine, what the driver reads.
_TOLD: Final = ("Version", "ApiVersion", "OperatingSystem", "MemoryLimit", "PidsLimit", "CpuCfsQuota")
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call that has the form of one of the driver's."""

    request: web.BaseRequest
    place: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes


_Answer = Awaitable[web.StreamResponse]


@dataclass(frozen=True, slots=True)
class _Form:
    method: str
    path: re.Pattern[str]
    query: frozenset[str]  # all of them, once each
    body: bool
    answer: Callable[[DockerGuard, _Asked], _Answer]


class DockerGuard:
    def __init__(self, engine: Engine, images: AllowedImages, most: Limits, settings: DockerDriverSettings) -> None:
        self._engine = engine
        self._images = images
        self._most = most
        self._settings = settings

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """For `aiohttp.web.Server`."""
        try:
            asked, form = await _parsed(request)
            return await form.answer(self, asked)
        except Refused as refused:
            target = f"{request.method} {request.raw_path}"
            logger.warning("refused: %s: %s", repr(target)[:_SHOWN], refused)
            return _failure(403, f"refused by agentkeep's proxy before the Docker socket: {refused}")
        except EngineError as error:
            return _failure(error.status, str(error))
        except DriverError as error:
            logger.error("the engine does not answer: %s", error)
            return _failure(502, str(error))

    # The engine itself.

    async def version(self, asked: _Asked) -> web.StreamResponse:
        return _success(_told(await self._engine.version()))

    async def info(self, asked: _Asked) -> web.StreamResponse:
        return _success(_told(await self._engine.info()))

    async def network(self, asked: _Asked) -> web.StreamResponse:
        return _success(await self._engine.network(NETWORK), f"network {NETWORK} not found")

    # Images.

    async def image(self, asked: _Asked) -> web.StreamResponse:
        reference = asked.place["reference"]
        if not is_reference(reference):
            raise Refused(f"{reference!r} is not the name of an image")
        found = await self._engine.image(reference)
        if found is not None and not self._images.run(found):
            raise Refused(f"the image {reference} is not among AGENTKEEP_DOCKER_GUARD_IMAGES")
        return _success(found, f"No such image: {reference}")

    async def pull(self, asked: _Asked) -> web.StreamResponse:
        reference = asked.query["fromImage"]
        if not self._images.pull(reference):
            raise Refused(f"the image {reference[:_SHOWN]!r} is not among AGENTKEEP_DOCKER_GUARD_IMAGES")
        await self._engine.pull(reference)
        return web.Response()

    async def import_image(self, asked: _Asked) -> web.StreamResponse:
        wanted = asked.query["fromSrc"], asked.query["repo"], asked.query["tag"]
        if wanted != ("-", *PROBE_IMAGE) or len(asked.body) > _MOST_ARCHIVE:
            raise Refused("only the empty image of `agentkeep doctor` may be imported")
        await self._engine.import_image(asked.body, *PROBE_IMAGE)
        return web.Response()

    async def tag(self, asked: _Asked) -> web.StreamResponse:
        reference, repository, tag = asked.place["reference"], asked.query["repo"], asked.query["tag"]
        if repository != REPOSITORY or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", tag):
            raise Refused(f"only {REPOSITORY} may be given to an image as a name")
        found = await self._engine.image(reference)
        if found is None:
            return _success(None, f"No such image: {reference}")
        if not self._images.pin(found):
            raise Refused("none of the image's names is among AGENTKEEP_DOCKER_GUARD_IMAGES")
        await self._engine.tag(found["Id"], REPOSITORY, tag)
        return web.Response(status=201)

    async def remove_image(self, asked: _Asked) -> web.StreamResponse:
        reference = asked.place["reference"]
        if not re.fullmatch(rf"{REPOSITORY}:[A-Za-z0-9._-]{{1,128}}", reference) and reference != ":".join(PROBE_IMAGE):
            raise Refused(f"only names in {REPOSITORY} may be removed")
        await self._engine.remove_image(reference)
        return _success([])

    # Containers.

    async def containers(self, asked: _Asked) -> web.StreamResponse:
        label = f"{LABEL}={SESSION}"
        if asked.query["all"] != "true" or _json(asked.query["filters"].encode()) != {"label": [label]}:
            raise Refused(f"only containers with the label {label} may be listed")
        return _success(await self._engine.containers(label))

    async def create(self, asked: _Asked) -> web.StreamResponse:
        name, body = asked.query["name"], _json(asked.body)
        if not NAME.fullmatch(name):
            raise Refused(f"a session's container is named {NAME.pattern}")
        image_id = image_named(body)
        found = await self._engine.image(image_id)
        if found is None:
            return _success(None, f"No such image: {image_id}")
        if not self._images.run(found):
            raise Refused("none of the image's names is among AGENTKEEP_DOCKER_GUARD_IMAGES")
        await self._engine.create(name, checked(body, image_of(found), self._most, self._settings))
        return _success({"Id": name, "Warnings": []}, status=201)

    async def container(self, asked: _Asked) -> web.StreamResponse:
        name = asked.place["name"]
        return _success(await self._ours(name), _no_container(name))

    async def start(self, asked: _Asked) -> web.StreamResponse:
        return await self._done(asked, self._engine.start)

    async def kill(self, asked: _Asked) -> web.StreamResponse:
        signal = asked.query["signal"]
        if signal not in ("SIGTERM", "SIGKILL"):
            raise Refused("the signal must be SIGTERM or SIGKILL")
        return await self._done(asked, lambda found: self._engine.kill(found, signal))

    async def remove(self, asked: _Asked) -> web.StreamResponse:
        if set(asked.query.values()) != {"true"}:
            raise Refused("force and v must be true")
        return await self._done(asked, self._engine.remove)

    async def wait(self, asked: _Asked) -> web.StreamResponse:
        found = await self._ours(asked.place["name"])
        status = None if found is None else await self._engine.wait(found["Id"])
        return _success(None if status is None else {"StatusCode": status}, _no_container(asked.place["name"]))

    async def attach(self, asked: _Asked) -> web.StreamResponse:
        """Its output only: nothing is sent to a container this way."""
        if set(asked.query.values()) != {"true"}:
            raise Refused("stream, stdout and stderr must be true")
        found = await self._ours(asked.place["name"])
        if found is None:
            return _success(None, _no_container(asked.place["name"]))
        async with self._engine.output(found["Id"]) as reader:
            return await _streamed(asked, reader)

    # Commands in containers.

    async def create_command(self, asked: _Asked) -> web.StreamResponse:
        body = checked_command(_json(asked.body))
        name = asked.place["name"]
        found = await self._ours(name)
        if found is None:
            return _success(None, _no_container(name))
        return _success({"Id": await self._engine.create_command(found["Id"], body)}, status=201)

    async def run_command(self, asked: _Asked) -> web.StreamResponse:
        id = asked.place["command"]
        if _json(asked.body) != STARTED:
            raise Refused("a command is started attached, without a terminal")
        if await self._command(id) is None:
            return _success(None, f"No such exec instance: {id}")
        async with self._engine.run_command(id) as reader:
            return await _streamed(asked, reader)

    async def command(self, asked: _Asked) -> web.StreamResponse:
        id = asked.place["command"]
        found = await self._command(id)
        return _success(None if found is None else told_of(found), f"No such exec instance: {id}")

    async def _command(self, id: str) -> dict[str, Any] | None:
        found = await self._engine.command(id)
        if found is None or await self._ours(container_of(found)) is None:
            return None
        return found

    async def _done(self, asked: _Asked, act: Callable[[str], Awaitable[None]]) -> web.StreamResponse:
        name = asked.place["name"]
        found = await self._ours(name)
        if found is None:
            return _success(None, _no_container(name))
        await act(found["Id"])
        return web.Response(status=204)

    async def _ours(self, name: str) -> dict[str, Any] | None:
        """Labels of a container never change: what is found to be ours by its id stays so."""
        found = await self._engine.container(name)
        if found is not None and (found["Config"].get("Labels") or {}).get(LABEL) not in (SESSION, PROBE):
            raise Refused(f"the container {name} is not a session's")
        return found


async def _streamed(asked: _Asked, reader: StreamReader) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/vnd.docker.raw-stream"})
    await response.prepare(asked.request)
    async for piece in reader.iter_any():
        await response.write(piece)
    return response


def _form(
    method: str,
    path: str,
    answer: Callable[[DockerGuard, _Asked], _Answer],
    *,
    query: str = "",
    body: bool = False,
) -> _Form:
    return _Form(method, re.compile(_VERSION + path), frozenset(query.split()), body, answer)


#: The driver's calls (`drivers/docker/engine.py`), but for the one that makes the network, which is not its to make.
_FORMS: Final = (
    _form("GET", "/version", DockerGuard.version),
    _form("GET", "/info", DockerGuard.info),
    _form("GET", f"/networks/{NETWORK}", DockerGuard.network),
    _form("GET", f"/images/{_REFERENCE}/json", DockerGuard.image),
    _form("POST", "/images/create", DockerGuard.pull, query="fromImage"),
    _form("POST", "/images/create", DockerGuard.import_image, query="fromSrc repo tag", body=True),
    _form("POST", r"/images/(?P<reference>sha256:[0-9a-f]{64})/tag", DockerGuard.tag, query="repo tag"),
    _form("DELETE", f"/images/{_REFERENCE}", DockerGuard.remove_image),
    _form("GET", "/containers/json", DockerGuard.containers, query="all filters"),
    _form("POST", "/containers/create", DockerGuard.create, query="name", body=True),
    _form("GET", f"{_CONTAINER}/json", DockerGuard.container),
    _form("POST", f"{_CONTAINER}/start", DockerGuard.start),
    _form("POST", f"{_CONTAINER}/kill", DockerGuard.kill, query="signal"),
    _form("POST", f"{_CONTAINER}/wait", DockerGuard.wait),
    _form("POST", f"{_CONTAINER}/attach", DockerGuard.attach, query="stream stdout stderr"),
    _form("POST", f"{_CONTAINER}/exec", DockerGuard.create_command, body=True),
    _form("POST", f"{_COMMAND}/start", DockerGuard.run_command, body=True),
    _form("GET", f"{_COMMAND}/json", DockerGuard.command),
    _form("DELETE", _CONTAINER, DockerGuard.remove, query="force v"),
)


async def _parsed(request: web.BaseRequest) -> tuple[_Asked, _Form]:
    # The path as it was sent: no percent sign is in any of the driver's, so none is decoded.
    path, _, text = request.raw_path.partition("?")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=8) if text else []
    except ValueError:
        raise Refused("the query cannot be read") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise Refused("a query parameter is given twice")
    for name in ("Upgrade", "Content-Encoding", "Expect"):
        if name in request.headers:
            raise Refused(f"the header {name} is not the driver's")
    alike = [
        (form, matched)
        for form in _FORMS
        if form.method == request.method and (matched := form.path.fullmatch(path)) is not None
    ]
    if not alike:
        raise Refused("not one of the driver's calls")
    form, matched = next((each for each in alike if each[0].query == query.keys()), (None, None))
    if form is None or matched is None:
        raise Refused(f"its query parameters must be {' or '.join(repr(sorted(form.query)) for form, _ in alike)}")
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refused("its body is longer than 1 MiB") from None
    if body and not form.body:
        raise Refused("it has no body")
    return _Asked(request, matched.groupdict(), query, body), form


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("what should be JSON is not") from None


def _told(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in _TOLD if name in found}


def _success(found: Any, missing: str = "", status: int = 200) -> web.Response:
    return _failure(404, missing) if found is None else web.json_response(found, status=status)


def _failure(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status)


def _no_container(name: str) -> str:
    return f"No such container: {name}"
