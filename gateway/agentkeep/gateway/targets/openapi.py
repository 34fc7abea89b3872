"""OpenAPI 3.0 and 3.1 documents as tools: one operation is one tool, its `operationId` the name.

A tool takes one object: the operation's path, query and header parameters by their names, and the members of its JSON
body beside them. Where the body is no object, or a member is called like a parameter, the body is the member `body`.

What could not be honoured is refused, with its JSON pointer, when the target is made: nothing is left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import orjson

from agentkeep.gateway.records import Tool
from agentkeep.gateway.targets.errors import TargetRefused
from agentkeep.gateway.targets.openapi_schemas import Schemas, pointer

__all__ = ["BODY", "OpenApiTool", "Parameter", "openapi_tools"]

#: The member that holds a body which cannot be spread among the parameters.
BODY: Final = "body"

_METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TEMPLATE: Final = re.compile(r"\{([^{}]+)\}")
_DEFAULT_STYLES: Final = {"path": "simple", "query": "form", "header": "simple"}
#: Headers that say who calls, where to, or how the message is framed: the gateway's, never an agent's.
_RESERVED: Final = re.compile(
    r"(authorization|cookie|host|connection|content-.*|transfer-encoding|te|upgrade|expect|proxy-.*|accept-encoding"
    r"|forwarded|x-forwarded-.*|x-amz.*|traceparent|tracestate|baggage)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """`place`: path, query or header. `explode`: of an array, one pair for each element."""

    name: str
    place: str
    explode: bool


@dataclass(frozen=True, slots=True)
class OpenApiTool:
    """How a tool is called. `url` has the path's templates. `body`: None, the members that make it, or BODY alone."""

    tool: Tool
    method: str
    url: str
    parameters: tuple[Parameter, ...]
    body: frozenset[str] | None
    nested: bool


def openapi_tools(text: str | bytes) -> dict[str, OpenApiTool]:
    """The tools of a document, by name. Raises TargetRefused naming the JSON pointer of what cannot be honoured."""
    document = _parsed(text)
    version = document.get("openapi")
    if not isinstance(version, str) or not version.startswith(("3.0.", "3.1.")):
        raise _refused(("openapi",), f"must be 3.0.x or 3.1.x, not {version!r}")
    schemas = Schemas(document, nullable=version.startswith("3.0."))
    tools: dict[str, OpenApiTool] = {}
    for path, item, method, operation in _operations(document, schemas):
        place = ("paths", path, method)
        found = _Operation(document, schemas, place, item, operation).tool(path, method)
        if found.tool.name in tools:
            raise _refused((*place, "operationId"), f"is another operation's too: {found.tool.name}")
        tools[found.tool.name] = found
    if not tools:
        raise _refused(("paths",), "must have at least one operation")
    return tools


def _parsed(text: str | bytes) -> Mapping[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise TargetRefused(f"The OpenAPI document must be JSON: {error}") from None
    if not isinstance(document, dict):
        raise _refused((), "must be an object")
    return document


def _operations(
    document: Mapping[str, Any], schemas: Schemas
) -> Iterator[tuple[str, Mapping[str, Any], str, Mapping[str, Any]]]:
    paths = document.get("paths")
    if not isinstance(paths, dict):
        raise _refused(("paths",), "must be an object")
    for path, item in paths.items():
        if not path.startswith("/"):
            raise _refused(("paths", path), "must begin with /")
        resolved = schemas.resolved(item, ("paths", path))
        for method in _METHODS:
            if method in resolved:
                operation = resolved[method]
                if not isinstance(operation, dict):
                    raise _refused(("paths", path, method), "must be an object")
                yield path, resolved, method, operation


class _Operation:
    def __init__(
        self,
        document: Mapping[str, Any],
        schemas: Schemas,
        place: tuple[str, ...],
        item: Mapping[str, Any],
        operation: Mapping[str, Any],
    ) -> None:
        self._document = document
        self._schemas = schemas
        self._place = place
        self._item = item
        self._operation = operation
        self._properties: dict[str, Any] = {}
        self._required: list[str] = []

    def tool(self, path: str, method: str) -> OpenApiTool:
        name = self._operation.get("operationId")
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise _refused(
                (*self._place, "operationId"), "must name the tool: 1 to 128 letters, digits and the characters _ . -"
            )
        parameters = self._parameters()
        body, nested = self._body(method)
        self._check_path(path, parameters)
        described = [self._operation.get(member) for member in ("summary", "description")]
        schema: dict[str, Any] = {"type": "object", "properties": self._properties, "additionalProperties": False}
        if self._required:
            schema["required"] = self._required
        self._schemas.add_definitions(schema)
        reads = method in ("get", "head", "options")
        tool = Tool(
            name,
            "\n\n".join(text for text in described if isinstance(text, str) and text) or name,
            schema,
            annotations={"readOnlyHint": reads, "openWorldHint": True} | ({} if reads else {"destructiveHint": True}),
        )
        return OpenApiTool(tool, method.upper(), self._server() + path, tuple(parameters), body, nested)

    def _server(self) -> str:
        for owner, place in ((self._operation, self._place), (self._item, self._place[:2]), (self._document, ())):
            servers = owner.get("servers")
            if servers:
                url = servers[0].get("url") if isinstance(servers[0], dict) else None
                if not isinstance(url, str) or "{" in url or not urlsplit(url).scheme or urlsplit(url).query:
                    raise _refused((*place, "servers", "0", "url"), "must be a whole URL without variables or query")
                return urljoin(url, urlsplit(url).path.rstrip("/")) if urlsplit(url).path else url
        raise _refused(("servers",), "must name the service's URL")

    def _parameters(self) -> list[Parameter]:
        known: dict[tuple[str, str], tuple[Mapping[str, Any], tuple[str, ...]]] = {}
        for owner, place in ((self._item, self._place[:2]), (self._operation, self._place)):
            for index, entry in enumerate(owner.get("parameters") or ()):
                where = (*place, "parameters", str(index))
                parameter = self._schemas.resolved(entry, where)
                known[str(parameter.get("name")), str(parameter.get("in"))] = parameter, where
        return [self._parameter(parameter, where) for parameter, where in known.values()]

    def _parameter(self, parameter: Mapping[str, Any], where: tuple[str, ...]) -> Parameter:
        name, place = parameter.get("name"), parameter.get("in")
        if not isinstance(name, str) or not name:
            raise _refused((*where, "name"), "is missing")
        if place not in _DEFAULT_STYLES:
            raise _refused((*where, "in"), f"must be path, query or header, not {place!r}")
        if "content" in parameter or "schema" not in parameter:
            raise _refused(where, "must have a schema; content is not supported here")
        style = parameter.get("style", _DEFAULT_STYLES[place])
        if style != _DEFAULT_STYLES[place]:
            raise _refused((*where, "style"), f"must be {_DEFAULT_STYLES[place]} for a {place} parameter")
        if parameter.get("allowReserved"):
            raise _refused((*where, "allowReserved"), "is not supported")
        if place == "header" and _RESERVED.fullmatch(name):
            raise _refused((*where, "name"), f"{name} is not an agent's to set")
        if name in self._properties:
            raise _refused((*where, "name"), f"{name} is another parameter's too, in another place")
        schema = self._schemas.converted(parameter["schema"], (*where, "schema"))
        self._refuse_objects(schema, (*where, "schema"))
        if (text := parameter.get("description")) and isinstance(schema, dict) and "description" not in schema:
            schema = {**schema, "description": text}
        self._properties[name] = schema
        if parameter.get("required") or place == "path":
            self._required.append(name)
        return Parameter(name, place, bool(parameter.get("explode", place == "query")))

    def _refuse_objects(self, schema: Any, where: tuple[str, ...]) -> None:
        resolved = self._schemas.definition(schema)
        kinds = resolved.get("type") if isinstance(resolved, dict) else None
        if kinds == "object" or (isinstance(kinds, list) and "object" in kinds):
            raise _refused(where, "must be a simple value, or an array of them: objects belong into the body")
        if isinstance(resolved, dict) and isinstance(resolved.get("items"), dict):
            self._refuse_objects(resolved["items"], (*where, "items"))

    def _body(self, method: str) -> tuple[frozenset[str] | None, bool]:
        """The names of the members that make the body, and whether they are one, BODY."""
        if "requestBody" not in self._operation:
            return None, False
        where = (*self._place, "requestBody")
        body = self._schemas.resolved(self._operation["requestBody"], where)
        kinds = body.get("content") or {}
        json = next((kind for kind in kinds if kind.split(";")[0].strip() == "application/json"), None)
        if json is None:
            raise _refused((*where, "content"), "must offer application/json")
        if method in ("get", "head"):
            raise _refused(where, f"{method.upper()} requests have no body")
        where = (*where, "content", json, "schema")
        schema = self._schemas.converted(kinds[json].get("schema", {}), where)
        required = bool(body.get("required"))
        members = self._members(self._schemas.definition(schema), required)
        if members and not members.keys() & self._properties.keys():
            self._properties |= members
            self._required += [name for name in self._schemas.definition(schema).get("required", ()) if name in members]
            return frozenset(members), False
        if BODY in self._properties:
            raise _refused(where, f"a parameter is called {BODY} already")
        self._properties[BODY] = schema
        if required:
            self._required.append(BODY)
        return frozenset({BODY}), True

    @staticmethod
    def _members(schema: Any, required: bool) -> Mapping[str, Any] | None:
        """The members of a body that can be told from parameters: all are named, and they are all there is to say of
        it. A body that may be left out but is not empty says so by being one."""
        if not isinstance(schema, dict) or schema.get("type") != "object":
            return None
        if schema.keys() - {"type", "properties", "required", "additionalProperties", "title", "description"}:
            return None
        if schema.get("additionalProperties") not in (None, False) or (schema.get("required") and not required):
            return None
        members: Mapping[str, Any] | None = schema.get("properties")
        return members

    def _check_path(self, path: str, parameters: list[Parameter]) -> None:
        declared = {parameter.name for parameter in parameters if parameter.place == "path"}
        used = set(_TEMPLATE.findall(path))
        if declared != used:
            names = ", ".join(sorted(declared ^ used))
            raise _refused(self._place[:2], f"path and path parameters do not agree: {names}")


def _refused(place: tuple[str, ...], message: str) -> TargetRefused:
    return TargetRefused(f"The OpenAPI document cannot be used: {pointer(place)} {message}")
