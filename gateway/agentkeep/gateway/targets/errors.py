"""What can go wrong between the gateway and a target.

TargetError
├── TargetRefused     it was not called: its address is not allowed, or a credential is missing; says what to do
├── TargetTimeout     it did not answer within the call's time limit
└── TargetFailed      it was called and did not answer as it must; `str` is for the log and for debugging
"""

from __future__ import annotations

__all__ = ["TargetError", "TargetFailed", "TargetRefused", "TargetTimeout"]


class TargetError(Exception):
    code = "TargetError"


class TargetRefused(TargetError):
    code = "TargetRefused"


class TargetTimeout(TargetError):
    code = "TargetTimeout"


class TargetFailed(TargetError):
    code = "TargetFailed"
