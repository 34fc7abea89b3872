"""What people, agents and models wrote, on spans: only where the operator wants it, and never more than so much."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentkeep.core.telemetry_settings import TelemetrySettings

__all__ = ["capture", "capture_json", "capture_settings", "captured_bytes"]

#: Nesting of a captured document; deeper parts are left out.
MAX_DEPTH = 12


class _Capture:
    """For the process, as OpenTelemetry's tracer provider is."""

    bytes = TelemetrySettings.model_fields["content_bytes"].default


_capture = _Capture()


def capture_settings(settings: TelemetrySettings) -> None:
    """From here on spans say this much."""
    _capture.bytes = settings.content_bytes if settings.content else 0


def captured_bytes() -> int:
    """The most that is kept of one text; 0: nothing is."""
    limit: int = _capture.bytes
    return limit


def capture(text: str | bytes) -> str | None:
    """The text, or as much as is kept of it; None where nothing is. Bytes that are no text are told by their size."""
    limit = captured_bytes()
    if not limit:
        return None
    kept: str | bytes = text[:limit]
    if isinstance(kept, bytes):
        try:
            # A cut may go through a character.
            kept = kept.decode("utf-8", "strict" if len(text) <= limit else "ignore")
        except UnicodeDecodeError:
            return f"({len(text)} bytes that are no text)"
    return kept if len(text) <= limit else f"{kept}… ({len(text)} in all)"


def capture_json(document: Any) -> str | None:
    """A document as JSON, its texts cut where all of it would be too much, so that it stays JSON."""
    limit = captured_bytes()
    return json.dumps(_Budget(limit).part(document), ensure_ascii=False, default=str) if limit else None


class _Budget:
    """Copies a document until its texts have used up `left` characters."""

    def __init__(self, left: int) -> None:
        self.left = left

    def part(self, value: Any, depth: int = 0) -> Any:
        match value:
            case str():
                return self._text(value)
            case bytes() | bytearray():
                return f"({len(value)} bytes)"
            case Mapping():
                members: dict[str, Any] = {}
                for name, member in value.items():
                    if self.left <= 0 or depth > MAX_DEPTH:
                        members["…"] = f"({len(value) - len(members)} more)"
                        break
                    self.left -= len(str(name)) + 6
                    members[str(name)] = self.part(member, depth + 1)
                return members
            case Sequence():
                items: list[Any] = []
                for item in value:
                    if self.left <= 0 or depth > MAX_DEPTH:
                        items.append(f"… ({len(value) - len(items)} more)")
                        break
                    self.left -= 4
                    items.append(self.part(item, depth + 1))
                return items
        self.left -= 8
        return value

    def _text(self, text: str) -> str:
        kept = max(self.left, 0)
        self.left -= len(text) + 2
        return text if len(text) <= kept else f"{text[:kept]}… ({len(text)} in all)"
