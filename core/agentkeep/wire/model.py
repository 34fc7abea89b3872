"""The service models: the only file that knows how botocore stores them.

botocore ships AWS's models of `bedrock-agentcore`, `bedrock-agentcore-control` and `bedrock-runtime` as JSON. Here they
become `ServiceModel`, `OperationModel`, `Shape` and `Member`, made when first asked for. What the platform accepts
beyond the models is data in `agentkeep.wire.corrections`.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

import orjson
from botocore.loaders import Loader

from agentkeep.wire.corrections import CORRECTIONS

__all__ = ["SERVICES", "ErrorModel", "Kind", "Location", "Member", "OperationModel", "ServiceModel", "Shape", "service"]

#: What kinds of value there are. `float` is `double` too; a `document` is any JSON.
Kind: TypeAlias = Literal[
    "structure", "document", "list", "map", "string", "integer", "long", "float", "boolean", "timestamp", "blob"
]
#: Where a member travels; None is the body.
Location: TypeAlias = Literal["uri", "querystring", "header", "headers", "statusCode"]

#: The services spoken here, and of each the operations (None: all of the model's).
SERVICES: Final[Mapping[str, frozenset[str] | None]] = {
    "bedrock-agentcore": None,
    "bedrock-agentcore-control": None,
    "bedrock-runtime": frozenset(
        {
            "ApplyGuardrail",
            "Converse",
            "ConverseStream",
            "CountTokens",
            "InvokeModel",
            "InvokeModelWithResponseStream",
        }
    ),
}

_SAME_KIND: Final = {"double": "float"}


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a structure. `wire` is its name in JSON, header, query or path label.

    An idempotency token is never required: AWS's clients fill it in, other callers may leave it out.
    """

    name: str
    wire: str
    shape: Shape
    required: bool
    location: Location | None
    idempotency_token: bool


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """An error an operation models: `code` is what clients see, `status` its HTTP status."""

    code: str
    status: int
    members: frozenset[str]


class Shape:
    """A type of the model. Compared by identity; a `ServiceModel` makes each only once."""

    def __init__(self, name: str, definition: Mapping[str, Any], model: ServiceModel) -> None:
        self.name = name
        self._definition = definition
        self._model = model
        type_name = definition["type"]
        self.kind: Kind = "document" if definition.get("document") else _SAME_KIND.get(type_name, type_name)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    @cached_property
    def members(self) -> Mapping[str, Member]:
        """A structure's members by name, in the model's order."""
        required = frozenset(self._definition.get("required", ()))
        return {
            name: Member(
                name,
                ref.get("locationName", name),
                self._model.shape(ref["shape"]),
                name in required and not ref.get("idempotencyToken"),
                ref.get("location"),
                ref.get("idempotencyToken", False),
            )
            for name, ref in self._definition.get("members", {}).items()
        }

    @cached_property
    def item(self) -> Shape:
        """A list's element."""
        return self._model.shape(self._definition["member"]["shape"])

    @cached_property
    def key(self) -> Shape:
        return self._model.shape(self._definition["key"]["shape"])

    @cached_property
    def value(self) -> Shape:
        return self._model.shape(self._definition["value"]["shape"])

    @property
    def low(self) -> int | float | None:
        """Least value of a number, least length of anything else; None: no limit."""
        return cast("int | float | None", self._definition.get("min"))

    @property
    def high(self) -> int | float | None:
        return cast("int | float | None", self._definition.get("max"))

    @property
    def pattern(self) -> str | None:
        """A regular expression in Java's syntax that the whole string must match."""
        return self._definition.get("pattern")

    @property
    def enum(self) -> tuple[str, ...]:
        return tuple(self._definition.get("enum", ()))

    @property
    def union(self) -> bool:
        """Exactly one member is set."""
        return bool(self._definition.get("union"))

    @property
    def event_stream(self) -> bool:
        return bool(self._definition.get("eventstream"))

    @property
    def error(self) -> bool:
        return bool(self._definition.get("exception"))

    @property
    def sensitive(self) -> bool:
        """Never to be shown: not in messages, not in logs."""
        return bool(self._definition.get("sensitive"))

    @property
    def timestamp_format(self) -> str | None:
        """`iso8601`, `unixTimestamp`, `rfc822`; None: the default of where it travels."""
        return self._definition.get("timestampFormat")

    @cached_property
    def payload(self) -> Member | None:
        """The member that is the whole body."""
        name = self._definition.get("payload")
        return self.members[name] if name else None

    @property
    def http_status(self) -> int | None:
        """An error's status."""
        return cast("int | None", self._definition.get("error", {}).get("httpStatusCode"))


@dataclass(frozen=True, slots=True, eq=False)
class OperationModel:
    """An operation. `path` is the URI template: literal segments and `{labels}`."""

    service: ServiceModel
    name: str
    method: str
    path: str
    status: int
    input: Shape | None
    output: Shape | None
    errors: Mapping[str, ErrorModel]


class ServiceModel:
    """One service. `name` is botocore's; `signing_name` the one in signatures; `version` the API's date."""

    def __init__(self, name: str, definition: Mapping[str, Any]) -> None:
        metadata = definition["metadata"]
        self.name = name
        self.signing_name: str = metadata["signingName"]
        self.version: str = metadata["apiVersion"]
        self.full_name: str = metadata["serviceFullName"]
        self._shapes: Mapping[str, Mapping[str, Any]] = definition["shapes"]
        self._made: dict[str, Shape] = {}
        self._operations: Mapping[str, Mapping[str, Any]] = definition["operations"]
        served = SERVICES[name]
        self.operation_names = tuple(sorted(n for n in self._operations if served is None or n in served))

    def __repr__(self) -> str:
        return f"<service {self.name}>"

    def shape(self, name: str) -> Shape:
        found = self._made.get(name)
        if found is None:
            definition = self._shapes[name]
            correction = CORRECTIONS.get((self.name, name))
            if correction is not None:
                definition = {k: v for k, v in {**definition, **correction.traits}.items() if v is not None}
            found = self._made[name] = Shape(name, definition, self)
        return found

    def error(self, name: str) -> ErrorModel | None:
        """The error of that name, whichever operations model it."""
        return _error(self.shape(name)) if self._shapes.get(name, {}).get("exception") else None

    def route(self, operation: str) -> tuple[str, str]:
        """Method and path template, without making the operation's shapes."""
        http = self._operations[operation]["http"]
        return http["method"], http["requestUri"].partition("?")[0]

    def operation(self, name: str) -> OperationModel:
        definition = self._operations[name]
        method, path = self.route(name)
        errors = {ref["shape"]: _error(self.shape(ref["shape"])) for ref in definition.get("errors", ())}
        return OperationModel(
            self,
            name,
            method,
            path,
            definition["http"].get("responseCode", 200),
            self.shape(definition["input"]["shape"]) if "input" in definition else None,
            self.shape(definition["output"]["shape"]) if "output" in definition else None,
            errors,
        )


def _error(shape: Shape) -> ErrorModel:
    return ErrorModel(shape.name, shape.http_status or 500, frozenset(shape.members))


class _Files:
    """How botocore's loader reads a file; orjson takes a fifth of the time of its own."""

    def exists(self, file_path: str) -> bool:
        return Path(file_path + ".json.gz").is_file() or Path(file_path + ".json").is_file()

    def load_file(self, file_path: str) -> Any:
        if (packed := Path(file_path + ".json.gz")).is_file():
            return orjson.loads(gzip.decompress(packed.read_bytes()))
        if (plain := Path(file_path + ".json")).is_file():
            return orjson.loads(plain.read_bytes())
        return None


@cache
def service(name: str) -> ServiceModel:
    """The model of one of `SERVICES`. Customers' own models (~/.aws/models) are not looked at: the contract is ours."""
    loader = Loader([Loader.BUILTIN_DATA_PATH], file_loader=_Files(), include_default_search_paths=False)
    return ServiceModel(name, loader.load_service_model(name, "service-2"))
