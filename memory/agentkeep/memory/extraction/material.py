"""What records are made of: the messages of events, and of what was ingested without an event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import orjson

from agentkeep.core.call import SessionRef
from agentkeep.memory.long_term.record import Source

__all__ = ["JSON", "Material", "Message", "is_extractable", "messages_of"]

#: The speaker of what is no conversation but a JSON document.
JSON: Final = "JSON"


@dataclass(frozen=True, slots=True)
class Message:
    """`event_id`: of the event it stands in, or of what was ingested; `index`: its place there. `speaker`: the
    payload's role."""

    session_id: str
    event_id: str
    index: int
    speaker: str
    text: str
    at: datetime

    @property
    def source(self) -> Source:
        return Source(self.session_id, self.event_id)

    @property
    def place(self) -> str:
        """Sorts as the conversation went."""
        return f"{self.event_id} {self.index:03}"


@dataclass(frozen=True, slots=True)
class Material:
    """The extractable messages of one event. `variables`: of namespaces. `session`: whose use of models it is."""

    id: str
    session_id: str
    messages: Sequence[Message]
    metadata: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    session: SessionRef | None = None


def is_extractable(payload: Sequence[Mapping[str, Any]]) -> bool:
    return any("conversational" in part or "json" in part for part in payload)


def messages_of(session_id: str, event_id: str, at: datetime, payload: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Blobs are left out; what is only white space, too."""
    found: list[Message] = []
    for index, part in enumerate(payload):
        if "conversational" in part:
            said = part["conversational"]
            speaker, text = said.get("role", "OTHER"), _spoken(said["content"].get("text", ""))
        elif "json" in part:
            speaker, text = JSON, orjson.dumps(part["json"].get("content")).decode()
        else:
            continue
        if text.strip():
            found.append(Message(session_id, event_id, index, speaker, text, at))
    return found


def _spoken(text: str) -> str:
    """The text itself; or, of a message as Strands' session manager keeps it (JSON with content blocks around the
    words), the words."""
    if not text.startswith('{"message"'):
        return text
    try:
        blocks = orjson.loads(text)["message"]["content"]
        return "\n".join(block["text"] for block in blocks if "text" in block)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return text
