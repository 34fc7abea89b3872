"""What is wrong with a request: collected while it is parsed, reported all at once, in AWS's words."""

from __future__ import annotations

from typing import Any, Final, NoReturn, TypeAlias

from agentkeep.core.errors import FieldError, ValidationException

__all__ = ["ROOT", "Faults", "Path", "cannot_parse", "render"]

#: Where a value stands: (parent, name). An int names a list's element; a third item says that a map's key is meant.
#: Linked, and made text only for a fault: most requests have none.
Path: TypeAlias = Any
ROOT: Final[Path] = None

_MOST: Final = 50  # faults reported; more are noise, and an answer must not grow with a hostile request
_LONGEST_VALUE: Final = 100
_LONGEST_KEY: Final = 64


def render(path: Path) -> str:
    """`payload.1.member.conversational`, as AWS writes it."""
    parts: list[str] = []
    while path is not None:
        name = path[1]
        if type(name) is int:
            parts.append(f"{name}.member")
        elif len(path) == 3:
            parts.append(f"{_cut(name, _LONGEST_KEY)}.member")
        else:
            parts.append(name)
        path = path[0]
    return ".".join(reversed(parts))


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + "..."


def _shown(value: Any) -> str:
    """`Value 'x'`; containers and secrets are not shown."""
    if value is None:
        return "Value null"
    if value is True or value is False:
        return f"Value '{str(value).lower()}'"
    if isinstance(value, str | int | float):
        return f"Value '{_cut(str(value), _LONGEST_VALUE)}'"
    return "Value"


class Faults:
    """Collects faults; `check` raises them as one ValidationException."""

    __slots__ = ("_found", "_more")

    def __init__(self) -> None:
        self._found: list[tuple[Path, str, str]] = []
        self._more = 0

    def add(self, path: Path, value: Any, constraint: str, sensitive: bool = False) -> None:
        """`constraint`: `Member must ...`. A `sensitive` value is never shown."""
        if len(self._found) == _MOST:
            self._more += 1
            return
        self._found.append((path, "Value" if sensitive and value is not None else _shown(value), constraint))

    def missing(self, path: Path) -> None:
        self.add(path, None, "Member must not be null")

    def __bool__(self) -> bool:
        return bool(self._found)

    def check(self) -> None:
        if not self._found:
            return
        count = len(self._found) + self._more
        fields = [FieldError(render(path), constraint) for path, _, constraint in self._found]
        text = "; ".join(
            f"{shown} at '{field.name}' failed to satisfy constraint: {field.message}"
            for field, (_, shown, _) in zip(fields, self._found, strict=True)
        )
        if self._more:
            text += f"; and {self._more} more"
        raise ValidationException(
            f"{count} validation error{'s' if count > 1 else ''} detected: {text}", "FieldValidationFailed", fields
        )


def cannot_parse(message: str) -> NoReturn:
    """Refuses what is not even the right form."""
    raise ValidationException(message, "CannotParse")
