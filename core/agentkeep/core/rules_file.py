"""An operator's rules in a JSON file: read when the platform starts, which it does not with wrong ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, model_validator

from agentkeep.core.errors import AgentkeepError
from agentkeep.core.json_documents import parse_json

__all__ = ["Rule", "Rules", "RulesFile", "Strict", "agent_name", "twice"]

_LARGEST: Final = 1 << 20
_AGENT: Final = r"^(\*|[A-Za-z][A-Za-z0-9_]{0,47}(-[A-Za-z0-9]{10})?)$"


class Strict(BaseModel):
    """Part of a file whose every member is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Rule(Strict):
    """For some agents' sessions. `agents`: names, or ids of agent runtimes; `*`: all."""

    name: StrictStr = Field(min_length=1, max_length=64, pattern=r"^[\w .,:-]+$")
    agents: tuple[Annotated[StrictStr, Field(pattern=_AGENT)], ...] = Field(min_length=1)

    def is_for(self, runtime_id: str) -> bool:
        return not {"*", runtime_id, agent_name(runtime_id)}.isdisjoint(self.agents)


R = TypeVar("R", bound=Rule)


class Rules(Strict, Generic[R]):
    """In their order; the first that matches decides. `default` says aloud what becomes of what no rule is for."""

    rules: tuple[R, ...] = Field(min_length=1)
    default: Literal["refuse"]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if named := twice(rule.name for rule in self.rules):
            raise ValueError(f"several rules are called {named}; audit records tell them apart by name")
        return self


M = TypeVar("M", bound=Strict)


@dataclass(frozen=True)
class RulesFile(Generic[M]):
    """`called`: what its rules are (`The rules for STS`); `without`: what to do to have none; `page`: of the
    documentation; `error`: raised with every place that is wrong."""

    model: type[M]
    called: str
    without: str
    page: str
    error: type[AgentkeepError]

    def load(self, path: Path) -> M:
        """Does file I/O: call it while the platform starts."""
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST + 1)
        except OSError as error:
            raise self.error(
                f"{self.called}, {path}, cannot be read: {error.strerror}. Put them there, or {self.without}"
            ) from None
        if len(text) > _LARGEST:
            raise self.error(f"{self.called}, {path}, are larger than {_LARGEST} bytes")
        return self.parse(text, str(path))

    def parse(self, text: bytes, name: str) -> M:
        try:
            document = parse_json(text)
        except ValueError as error:
            raise self.error(f"{self.called}, {name}, are not JSON as it must be: {error}") from None
        try:
            return self.model.model_validate(document)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(place) or 'the file'}: {fault}" for place, fault in _faults(error))
            raise self.error(f"{self.called}, {name}, are wrong: {faults}. See {self.page}") from None


def _faults(error: ValidationError) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each place that is wrong, with what is; not those that are only because something in them is."""
    told = error.errors(include_input=False, include_url=False, include_context=False)
    places = [tuple(map(str, each["loc"])) for each in told]
    for each, place in zip(told, places, strict=True):
        if not any(other != place and other[: len(place)] == place for other in places):
            yield place, each["msg"].removeprefix("Value error, ").replace("Tuple", "List").replace("tuple", "list")


def twice(names: Iterable[str]) -> str:
    """Those that are there more than once, in words; empty where all differ."""
    return ", ".join(sorted(name for name, count in Counter(names).items() if count > 1))


def agent_name(runtime_id: str) -> str:
    """Of an agent runtime's id, which is its name and ten characters that tell it from earlier ones of that name."""
    return runtime_id.rpartition("-")[0]
