"""The process's log."""

from __future__ import annotations

import logging

__all__ = ["start_log"]

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def start_log(level: str) -> None:
    """`level` is of the platform's own lines. Libraries tell no more than INFO: at DEBUG some write down whole requests
    and answers, with prompts and keys in them."""
    logging.basicConfig(level=max(logging.getLevelNamesMapping()[level], logging.INFO), format=_FORMAT)
    logging.getLogger("agentkeep").setLevel(level)
