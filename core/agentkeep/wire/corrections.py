"""Where the platform departs from AWS's models, as data.

Each correction replaces traits of one shape (None removes a trait), and says why. docs/compatibility.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["CORRECTIONS", "Correction"]


@dataclass(frozen=True, slots=True)
class Correction:
    traits: Mapping[str, Any]
    reason: str


CORRECTIONS: Final[Mapping[tuple[str, str], Correction]] = {}
