"""Timestamps as AWS clients send and expect them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any, Final

__all__ = ["epoch_seconds", "http_date", "iso8601", "parse_timestamp"]

_NUMBER: Final = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?", re.ASCII).fullmatch
_LONGEST: Final = 64


def parse_timestamp(value: Any) -> datetime | None:
    """Any of the forms, whatever the model says: seconds since 1970 (integer, fraction, or either as text), ISO 8601
    (UTC where no offset is given), HTTP date. Aware, UTC, to the microsecond. None: it is none of these.

    Clients of several ages send different forms for the same member, and none can be mistaken for another.
    """
    try:
        if type(value) is float or type(value) is int:
            return datetime.fromtimestamp(value, UTC)
        if type(value) is not str or len(value) > _LONGEST:
            return None
        if _NUMBER(value):
            return datetime.fromtimestamp(float(value), UTC)
        moment = parsedate_to_datetime(value) if value[:1].isalpha() else datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError, TypeError, IndexError):
        return None


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def epoch_seconds(moment: datetime) -> float:
    """Seconds since 1970, to the microsecond. Times without a zone are UTC."""
    return _aware(moment).timestamp()


def iso8601(moment: datetime) -> str:
    return _aware(moment).astimezone(UTC).isoformat().replace("+00:00", "Z")


def http_date(moment: datetime) -> str:
    return format_datetime(_aware(moment).astimezone(UTC).replace(microsecond=0), usegmt=True)
