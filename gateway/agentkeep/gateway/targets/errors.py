"""What can go wrong between the gateway and a target.

TargetError
├── TargetRefused     it was not called: its address is not allowed, or a credential is missing; says what to do
├── TargetTimeout     it did not answer within the call's time limit
└── TargetFailed      it was called and did not answer as it must; `str` is for the log and for debugging
"""

from __future__ import annotations

import httpx2

__all__ = ["TargetError", "TargetFailed", "TargetRefused", "TargetTimeout", "told"]


class TargetError(Exception):
    code = "TargetError"


class TargetRefused(TargetError):
    code = "TargetRefused"


class TargetTimeout(TargetError):
    code = "TargetTimeout"


class TargetFailed(TargetError):
    code = "TargetFailed"


def told(error: Exception) -> str:
    """What a client's exception may say in a TargetFailed. Those about the protocol quote what was sent or what came,
    in which a target may repeat the key it was shown."""
    name = type(error).__name__
    return name if isinstance(error, httpx2.ProtocolError) else f"{name}: {error}"
