"""The models' regular expressions, which are Java's, as Python's.

Smithy's patterns come without their anchors: the whole string must match.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Final

__all__ = ["MAX_UNBOUNDED", "matcher", "translate"]

#: Longest string that is held against a pattern where the model gives no maximum. Every identifier and ARN is shorter.
MAX_UNBOUNDED: Final = 2048

#: Patterns that a hostile string makes take quadratic time or worse, and what matches exactly the same in linear time.
#: tests/wire/test_patterns.py looks for others.
_LINEAR: Final = {
    # ActorId. What follows the last group is taken by the group, or by the first star.
    "[a-zA-Z0-9][a-zA-Z0-9-_/]*(?::[a-zA-Z0-9-_/]+)*[a-zA-Z0-9-_/]*": "[a-zA-Z0-9][a-zA-Z0-9-_/]*(?::[a-zA-Z0-9-_/]+)*",
    # Namespace: the same.
    "[a-zA-Z0-9/*][a-zA-Z0-9-_/*]*(?::[a-zA-Z0-9-_/*]+)*[a-zA-Z0-9-_/*]*": (
        "[a-zA-Z0-9/*][a-zA-Z0-9-_/*]*(?::[a-zA-Z0-9-_/*]+)*"
    ),
    # UserTokenType, up to 131072 characters. Its dots are not escaped, so they match any character: cubic. Here by how
    # many characters outside the class there are (none, one, two).
    "[A-Za-z0-9-_=]+.[A-Za-z0-9-_=]+.[A-Za-z0-9-_=]+": (
        "[A-Za-z0-9-_=]{5,}+"
        "|[A-Za-z0-9-_=]{3,}+[^A-Za-z0-9-_=\n][A-Za-z0-9-_=]++"
        "|[A-Za-z0-9-_=]++[^A-Za-z0-9-_=\n][A-Za-z0-9-_=]{3,}+"
        "|[A-Za-z0-9-_=]++[^A-Za-z0-9-_=\n][A-Za-z0-9-_=]++[^A-Za-z0-9-_=\n][A-Za-z0-9-_=]++"
    ),
    # HarnessAwsSkillPath: a backslash can be read in either branch, which is exponential.
    r"([^*?\[\]]|\\*)+": r"[^*?\[\]]*",
}

#: Java's \p{C}, as far as a character class can say it: controls, formats, surrogates, private use. Unassigned code
#: points are left out: which they are depends on the version of Unicode.
_INVISIBLE: Final = (
    r"\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\ud800-\uf8ff\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U0010ffff"
)


def translate(pattern: str) -> str:
    """The pattern in Python's syntax, in a form that takes linear time."""
    return _LINEAR.get(pattern, pattern).replace(r"\p{C}", _INVISIBLE)


@cache
def matcher(pattern: str) -> Callable[[str], object]:
    """A function that is truthy for a string the whole of which matches. `pattern` is a model's, in Java's syntax.

    Java's \\d, \\w and \\s are ASCII's. The caller checks the length first: time grows with it.
    """
    return re.compile(translate(pattern), re.ASCII).fullmatch
