"""Where to read what is implemented."""

from typing import Final

#: Path in the repository and in the documentation of the generated parity table.
COMPATIBILITY_PAGE: Final = "docs/compatibility.md"
