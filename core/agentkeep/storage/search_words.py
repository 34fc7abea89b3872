"""How the search stores take texts apart into words, and weigh them: the same in each, so that scores compare.

Words are FTS5's: letters and digits, in lower case and without diacritics, stemmed by Porter's algorithm.
"""

from __future__ import annotations

from typing import Any, Final

import apsw

__all__ = ["CONTEXT_WEIGHT", "K1", "MAX_QUERY_WORDS", "TOKENIZER", "B", "Stemmer", "query_words", "split"]

#: BM25's usual constants; the weight of a word found in a document's context beside one in its text.
K1: Final = 1.2
B: Final = 0.75
CONTEXT_WEIGHT: Final = 0.5
#: Distinct words of a query that are looked up; the longest are kept, being the rarest.
MAX_QUERY_WORDS: Final = 64

#: Name and arguments of FTS5's tokenizer, without the stemming that `porter` puts over it.
TOKENIZER: Final = ("unicode61", ["remove_diacritics", "2"])


def split(connection: apsw.Connection, text: str) -> list[str]:
    """Words as they stand, unstemmed."""
    return _tokens(connection.fts5_tokenizer(*TOKENIZER), text)


def query_words(connection: apsw.Connection, query: str) -> list[str]:
    """The words of a query that are looked up, unstemmed, each once."""
    return sorted(dict.fromkeys(split(connection, query)), key=len, reverse=True)[:MAX_QUERY_WORDS]


class Stemmer:
    """Without a database: for a store that is not SQLite. To be used by one thread at a time."""

    def __init__(self) -> None:
        self._connection = apsw.Connection(":memory:")
        name, arguments = TOKENIZER
        self._stem = self._connection.fts5_tokenizer("porter", [name, *arguments])

    def of(self, text: str) -> list[str]:
        return _tokens(self._stem, text)

    def of_query(self, query: str) -> list[str]:
        """One stem for each word that is looked up: two forms of one word count twice."""
        return [stem for word in query_words(self._connection, query) for stem in self.of(word)]


def _tokens(tokenize: Any, text: str) -> list[str]:
    # Each word is a tuple of its variants; these tokenizers make one.
    found = tokenize(text.encode(), apsw.FTS5_TOKENIZE_DOCUMENT, None, include_offsets=False)
    return [variants[0] for variants in found]
