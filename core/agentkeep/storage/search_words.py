"""How the search stores take texts apart into words, and weigh them: the same in each, so that scores compare.

Words are FTS5's: letters and digits, in lower case and without diacritics, stemmed by Porter's algorithm.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import apsw

from agentkeep.storage.search import Document

__all__ = ["K1", "MAX_QUERY_WORDS", "TOKENIZER", "UNITS", "B", "Stemmer"]

#: BM25's usual constants.
K1: Final = 1.2
B: Final = 0.75
#: Weights are in parts of what a word in a document's text counts for: in the text, in its context, and farther away.
UNITS: Final = 4
_WEIGHTS: Final = (UNITS, 2, 1)
#: Distinct words of a query that are looked up; the longest are kept, being the rarest.
MAX_QUERY_WORDS: Final = 64

#: Name and arguments of FTS5's tokenizer, without the stemming that `porter` puts over it.
TOKENIZER: Final = ("unicode61", ["remove_diacritics", "2"])


class Stemmer:
    """To be used by one thread at a time."""

    def __init__(self) -> None:
        self._connection = apsw.Connection(":memory:")
        name, arguments = TOKENIZER
        self._split = self._connection.fts5_tokenizer(name, arguments)
        self._stem = self._connection.fts5_tokenizer("porter", [name, *arguments])

    def of(self, text: str) -> list[str]:
        return _tokens(self._stem, text) if text else []

    def of_query(self, query: str) -> list[str]:
        """One stem for each word that is looked up: two forms of one word count twice."""
        words = sorted(dict.fromkeys(_tokens(self._split, query)), key=len, reverse=True)
        return [stem for word in words[:MAX_QUERY_WORDS] for stem in self.of(word)]

    def weighed(self, document: Document) -> Counter[str]:
        """The document's stems, and what each counts for, in parts."""
        counts: Counter[str] = Counter()
        for text, weight in zip((document.text, document.context, document.farther), _WEIGHTS, strict=True):
            for stem in self.of(text):
                counts[stem] += weight
        return counts


def _tokens(tokenize: Any, text: str) -> list[str]:
    # Each word is a tuple of its variants; these tokenizers make one.
    found = tokenize(text.encode(), apsw.FTS5_TOKENIZE_DOCUMENT, None, include_offsets=False)
    return [variants[0] for variants in found]
