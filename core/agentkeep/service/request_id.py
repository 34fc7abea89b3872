"""Request ids: unique, shaped as AWS's (UUIDs), and cheap: the hot path makes one per call."""

from __future__ import annotations

import os
from itertools import count

__all__ = ["new_request_id"]

_random = os.urandom(8).hex()
#: Random for the process, then a counter. They name requests in logs and answers; nothing is authorised by them.
_FORM = f"{_random[:8]}-{_random[8:12]}-4{_random[12:15]}-a{os.urandom(2).hex()[1:]}-%012x"
_next = count(int.from_bytes(os.urandom(4), "big")).__next__


def new_request_id() -> str:
    return _FORM % _next()
