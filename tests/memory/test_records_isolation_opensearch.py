"""MEM-2, MEM-4: what holds of records on SQLite holds on a real OpenSearch: the tests of `test_records_isolation`."""

from __future__ import annotations

from . import test_records_isolation
from .opensearch_records import MARKS, of_module, records_index, search

__all__ = ["records_index", "search"]

pytestmark = MARKS

globals().update(of_module(test_records_isolation))
