"""A second look at the best records: the odds that one answers the query, by a logistic form with fitted weights.

Beside the score of the first look it heeds two things about the text itself: that it asks rather than tells, and how
much it says. The weights were fitted by benchmarks/fit_reranker.py, on conversations that were made for it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEPTH", "features", "odds"]

#: So many of the best by the first look are looked at again, or as many as are asked for.
DEPTH: Final = 50

#: As `features` gives them, and last the constant.
_WEIGHTS: Final = (7.86, -1.49, 10.79, -5.65)
#: Longer texts say no more of one thing; words. And the usual length, in the logarithm's terms.
_LONG: Final = 60
_USUAL: Final = 0.6


def features(scores: NDArray[Any], texts: Sequence[str], spoken: Sequence[bool]) -> NDArray[Any]:
    """One row for each record: its score by the first look; and of what somebody said, whether it asks, and how long it
    is (logarithmic, about 0). Of other records neither says anything."""
    said = np.array(spoken, float)
    asks = [text.rstrip().endswith("?") for text in texts]
    lengths = np.array([np.log1p(min(len(text.split()), _LONG)) for text in texts]) / np.log1p(_LONG)
    return np.column_stack([scores, np.array(asks, float) * said, (lengths - _USUAL) * said])


def odds(rows: NDArray[Any], weights: Sequence[float] = _WEIGHTS) -> NDArray[Any]:
    """From 0 to 1, for each row of `features`."""
    *each, constant = weights
    found: NDArray[Any] = 1 / (1 + np.exp(-(rows @ np.array(each) + constant)))
    return found
