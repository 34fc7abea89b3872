"""From method and path to the operation.

Works on the raw path: identifiers arrive percent-encoded and may hold encoded slashes, so the path is split first and
decoded afterwards. All services' routes share one tree; they do not collide (a test shows it).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from agentkeep.wire.faults import cannot_parse
from agentkeep.wire.model import SERVICES, service
from agentkeep.wire.operation import Operation
from agentkeep.wire.parser import ShapeParsers
from agentkeep.wire.request import unquote

__all__ = ["Match", "Router"]


class Match(NamedTuple):
    """`labels` by their names in the path's template, percent-decoded."""

    operation: Operation
    labels: dict[str, str]


class _Route(NamedTuple):
    operation: Operation
    labels: tuple[str, ...]


class _Node:
    __slots__ = ("label", "literals", "routes")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node] = {}
        self.label: _Node | None = None
        self.routes: dict[str, _Route] = {}


_DOTS: Final = (b".", b"..")


class Router:
    """Routes of the services named (by default all). A literal segment wins over a label.

    A slash at the end is part of many templates; clients that leave it out or add one mean the same operation, and no
    two operations differ in it.
    """

    def __init__(self, services: Iterable[str] = SERVICES) -> None:
        self._root = _Node()
        self._deepest = 0
        operations: list[Operation] = []
        for name in services:
            operations += self._add(name)
        self.operations = tuple(operations)

    def _add(self, name: str) -> list[Operation]:
        model, parsers = service(name), ShapeParsers()
        made = []
        for operation_name in model.operation_names:
            method, path = model.route(operation_name)
            operation = Operation(model, operation_name, parsers)
            made.append(operation)
            segments = path.strip("/").split("/")
            node, labels = self._root, []
            for segment in segments:
                if segment.startswith("{"):
                    labels.append(segment[1:-1])
                    node.label = node.label or _Node()
                    node = node.label
                else:
                    node = node.literals.setdefault(segment.encode(), _Node())
            if method in node.routes:
                raise ValueError(f"{operation_name} and {node.routes[method].operation.name} share a route")
            node.routes[method] = _Route(operation, tuple(labels))
            self._deepest = max(self._deepest, len(segments))
        return made

    def find(self, method: str, raw_path: bytes) -> Match | None:
        """None: no operation has this path, or none with this method (`methods` tells).

        Raises ValidationException where a label is no UTF-8.
        """
        found: list[bytes] = []
        node = self._walk(raw_path, method, found)
        if node is None:
            return None
        route = node.routes[method]
        labels = {}
        for name, raw in zip(route.labels, found, strict=True):
            text = unquote(raw)
            if text is None:
                cannot_parse(f"'{name}' in the path is not percent-encoded UTF-8")
            labels[name] = text
        return Match(route.operation, labels)

    def methods(self, raw_path: bytes) -> frozenset[str]:
        """The methods this path knows; empty for an unknown path."""
        node = self._walk(raw_path, None, [])
        return frozenset(node.routes) if node is not None else frozenset()

    def _walk(self, raw_path: bytes, method: str | None, labels: list[bytes]) -> _Node | None:
        if raw_path[:1] != b"/":  # absolute-form and asterisk-form targets
            return None
        segments = raw_path[1:-1].split(b"/") if raw_path[-1:] == b"/" else raw_path[1:].split(b"/")
        if len(segments) > self._deepest:
            return None
        return self._descend(self._root, segments, 0, method, labels)

    def _descend(
        self, node: _Node, segments: list[bytes], at: int, method: str | None, labels: list[bytes]
    ) -> _Node | None:
        if at == len(segments):
            return node if (method in node.routes if method is not None else node.routes) else None
        segment = segments[at]
        literal = node.literals.get(segment)
        if literal is not None:
            found = self._descend(literal, segments, at + 1, method, labels)
            if found is not None:
                return found
        # Dot segments and empty ones are not names: signatures are made over paths without them.
        if node.label is not None and segment and segment not in _DOTS:
            labels.append(segment)
            found = self._descend(node.label, segments, at + 1, method, labels)
            if found is not None:
                return found
            labels.pop()
        return None
