"""AWS's query protocol: a form as request, XML as answer. Source: the `query` protocol of botocore (`parsers.py`,
`serialize.py`), which is what clients do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from agentkeep.core.errors import ValidationException

__all__ = ["CONTENT_TYPE", "parse_form", "write_answer", "write_error"]

CONTENT_TYPE: Final = b"text/xml"
_MOST_FIELDS: Final = 100
#: What XML 1.0 cannot say, however it is escaped.
_UNSAYABLE: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parse_form(data: bytes) -> dict[str, str]:
    """The fields of a form. Raises ValidationException: it is none, or says something twice."""
    try:
        pairs = parse_qsl(data.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise ValidationException("The request is no form (application/x-www-form-urlencoded)", "CannotParse") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValidationException("The request names a parameter twice", "CannotParse")
    return fields


def write_answer(operation: str, namespace: str, result: Mapping[str, Any], request_id: str) -> bytes:
    """`result`: members by name; texts, numbers, and structures of them."""
    return (
        f'<{operation}Response xmlns="{namespace}"><{operation}Result>{_members(result)}</{operation}Result>'
        f"<ResponseMetadata>{_members({'RequestId': request_id})}</ResponseMetadata></{operation}Response>"
    ).encode()


def write_error(code: str, message: str, status: int, namespace: str, request_id: str) -> bytes:
    kind = "Sender" if status < 500 else "Receiver"
    error = {"Error": {"Type": kind, "Code": code, "Message": message}, "RequestId": request_id}
    return f'<ErrorResponse xmlns="{namespace}">{_members(error)}</ErrorResponse>'.encode()


def _members(values: Mapping[str, Any]) -> str:
    return "".join(f"<{name}>{_value(value)}</{name}>" for name, value in values.items())


def _value(value: Any) -> str:
    return _members(value) if isinstance(value, Mapping) else escape(_UNSAYABLE.sub("\ufffd", str(value)))
