"""Whose a namespace is.

A namespace is a path, and where in it the actor stands is known from templates: those the memory's strategies declare,
else those that are usual. See docs/decisions/0009.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from agentkeep.memory.memories import Memory

__all__ = ["Layout", "normalised"]

_ACTOR = "{actorId}"
_VARIABLE = re.compile(r"\{[^}]*\}")


def normalised(path: str) -> str:
    """Beginning and ending with a slash. Raises ValueError for one with a wildcard."""
    if "*" in path:
        raise ValueError("wildcards (*) are not supported in namespaces: use namespacePath for all beneath a path")
    inner = path.strip("/")
    return f"/{inner}/" if inner else "/"


@dataclass(frozen=True, slots=True)
class _Template:
    """`text`, with a segment that is the actor; `whole` matches the namespaces it may have become, `head` anything
    that goes on where the actor begins; `literals`: how many segments are fixed."""

    text: str
    whole: re.Pattern[str]
    head: re.Pattern[str]
    literals: int

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str) -> _Template | None:
        """None where no whole segment is the actor: such a template says nothing about whose a namespace is."""
        segments = text.strip("/").split("/")
        if _ACTOR not in segments:
            return None
        at = segments.index(_ACTOR)
        head = "/" + "".join(_pattern(segment) + "/" for segment in segments[:at])
        # An actor's id may have slashes; every other variable is within one segment.
        tail = "".join(r"(?P=actor)/" if one == _ACTOR else _pattern(one) + "/" for one in segments[at + 1 :])
        literals = sum("{" not in segment for segment in segments)
        return _Template(text, re.compile(f"{head}(?P<actor>.+)/{tail}"), re.compile(head + "(?=.)"), literals)


class Layout:
    """A memory's namespaces. `usual`: templates beside the memory's own."""

    def __init__(self, memory: Memory, usual: Iterable[str]) -> None:
        own = (
            template.replace("{memoryStrategyId}", strategy.id)
            for strategy in memory.strategies
            for template in strategy.namespaces
        )
        self._levels = [_parsed(own), _parsed(usual)]

    def owner(self, namespace: str) -> str | None:
        """The actor for whom the namespace is, or None where that is not certain: of the memory's own templates that
        match, or else the usual ones, those with the most fixed segments must agree."""
        for templates in self._levels:
            if actors := _actors(templates, namespace):
                return actors.pop() if len(actors) == 1 else None
        return None

    def admits(self, actor: str, path: str) -> bool:
        """Whether the path, and all beneath it, is for this actor: it names the actor where a template does, and is
        not whole for somebody else. Where no template fits, it must name the actor first of all."""
        for templates in self._levels:
            places = [found.end() for one in templates if (found := one.head.match(path))]
            if places:
                others = {one for one in _actors(templates, path) if not f"{one}/".startswith(f"{actor}/")}
                return not others and any(path.startswith(f"{actor}/", at) for at in places)
        fixed = {one.text.strip("/").split("/")[0] for templates in self._levels for one in templates}
        return path.startswith(f"/{actor}/") and path.split("/")[1] not in fixed

    def examples(self, actor: str) -> str:
        """Namespaces this actor may use, for people."""
        templates = self._levels[0] or self._levels[1]
        return ", ".join(dict.fromkeys(normalised(one.text).replace(_ACTOR, actor) for one in templates))


def _actors(templates: Sequence[_Template], namespace: str) -> set[str]:
    """Whose the namespace is by those templates, of which it may be made, with the most fixed segments."""
    matches = [(one.literals, found["actor"]) for one in templates if (found := one.whole.fullmatch(namespace))]
    most = max((literals for literals, _ in matches), default=0)
    return {actor for literals, actor in matches if literals == most}


def _parsed(templates: Iterable[str]) -> Sequence[_Template]:
    return [template for text in templates if (template := _Template.parse(text)) is not None]


def _pattern(segment: str) -> str:
    return "[^/]+".join(map(re.escape, _VARIABLE.split(segment)))
