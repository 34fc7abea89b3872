"""Tags by which a memory is told what AgentCore has no member for. AgentCore keeps them and passes over them.

agentkeep:extraction   as-events-come (default) | at-session-end       when long-term records are made of events
agentkeep:events       kept (default) | until-session-end              how long events are kept, within their expiry
agentkeep:agents       agent runtime ids, separated by spaces          which agents may use it; default: every one
agentkeep:issuers      issuers of users' tokens, separated by spaces   whose users it is for (see admission.py)
agentkeep:expiry:NAME  days                                            how long records are kept at most: of strategy
                                                                       NAME, or of namespace NAME and beneath (/a/)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from agentkeep.core.errors import FieldError, ValidationException

__all__ = ["Behaviour", "EventRetention", "Extraction", "behaviour", "check_tags", "expiries"]

PREFIX: Final = "agentkeep:"
EXTRACTION: Final = PREFIX + "extraction"
EVENTS: Final = PREFIX + "events"
AGENTS: Final = PREFIX + "agents"
ISSUERS: Final = PREFIX + "issuers"
EXPIRY: Final = PREFIX + "expiry:"
_KNOWN: Final = (EXTRACTION, EVENTS, AGENTS, ISSUERS)

#: The service model's AgentRuntimeId.
_RUNTIME_ID: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,99}-[a-zA-Z0-9]{10}")

_MOST_DAYS: Final = 36_500

E = TypeVar("E", bound=StrEnum)


class Extraction(StrEnum):
    AS_EVENTS_COME = "as-events-come"
    AT_SESSION_END = "at-session-end"


class EventRetention(StrEnum):
    """Of a session's events: for the memory's expiry, or until the session has ended and extraction has had them."""

    KEPT = "kept"
    UNTIL_SESSION_END = "until-session-end"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a memory's tags say. `agents`: runtime ids that may use it; None: every agent. `issuers`: identity providers
    that give no two users the same subject, all of whose users it is for; None: not said."""

    extraction: Extraction = Extraction.AS_EVENTS_COME
    events: EventRetention = EventRetention.KEPT
    agents: frozenset[str] | None = None
    issuers: frozenset[str] | None = None

    @property
    def heeds_session_ends(self) -> bool:
        """Whether the end of a session changes anything in the memory."""
        return self.extraction is Extraction.AT_SESSION_END or self.events is EventRetention.UNTIL_SESSION_END


def behaviour(tags: Mapping[str, str]) -> Behaviour:
    """Raises ValidationException for what `check_tags` refuses."""
    return Behaviour(
        _one_of(Extraction, tags, EXTRACTION, Extraction.AS_EVENTS_COME),
        _one_of(EventRetention, tags, EVENTS, EventRetention.KEPT),
        _agents(tags[AGENTS]) if AGENTS in tags else None,
        _issuers(tags[ISSUERS]) if ISSUERS in tags else None,
    )


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises ValidationException for a value that says nothing, and for keys of ours that are none: who meant
    something by them must not find out by what does not happen."""
    for key in tags:
        if key.startswith(PREFIX) and key not in _KNOWN and not key.startswith(EXPIRY):
            known = ", ".join((*_KNOWN, EXPIRY + "STRATEGY-OR-NAMESPACE"))
            raise _invalid(key, f"is no tag that is known of a memory: those are {known}")
    behaviour(tags)
    expiries(tags)


def expiries(tags: Mapping[str, str]) -> dict[str, int]:
    """Category -> days. A category is a strategy's name, or a namespace, normalised. Raises ValidationException."""
    found: dict[str, int] = {}
    for key, value in tags.items():
        if not key.startswith(EXPIRY):
            continue
        category = key.removeprefix(EXPIRY)
        if not category.strip("/"):
            raise _invalid(key, "names no category: end it with a strategy's name or a namespace, such as /facts/")
        if not value.isascii() or not value.isdigit() or len(value) > 5 or not 1 <= int(value) <= _MOST_DAYS:
            raise _invalid(key, f"must be a number of days between 1 and {_MOST_DAYS}, not {value!r}")
        found[f"/{category.strip('/')}/" if category.startswith("/") else category] = int(value)
    return found


def _one_of(kind: type[E], tags: Mapping[str, str], key: str, default: E) -> E:
    value = tags.get(key)
    if value is None:
        return default
    try:
        return kind(value)
    except ValueError:
        raise _invalid(key, f"must be {' or '.join(kind)}, not {value!r}") from None


def _agents(value: str) -> frozenset[str]:
    found = value.split()
    if not found:
        raise _invalid(AGENTS, "names no agent runtime: list the ids of those that may use the memory, or remove it")
    for one in found:
        if _RUNTIME_ID.fullmatch(one) is None:
            raise _invalid(AGENTS, f"must list ids of agent runtimes, separated by spaces; {one!r} is none")
    return frozenset(found)


def _issuers(value: str) -> frozenset[str]:
    found = value.split()
    if not found or any(not one.startswith(("https://", "http://")) for one in found):
        raise _invalid(ISSUERS, "must list issuers as users' tokens name them (`iss`), URLs separated by spaces")
    return frozenset(found)


def _invalid(key: str, message: str) -> ValidationException:
    return ValidationException(f"Tag {key} {message}", fields=[FieldError(f"tags.{key}", message)])
