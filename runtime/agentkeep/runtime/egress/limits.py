"""How much and how long sessions may go out."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EgressLimits"]


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """Times in seconds. The first five are settings (`AGENTKEEP_RUNTIME_EGRESS_...`)."""

    connections_of_session: int = 64
    connections: int = 2000
    connect: float = 10.0  # the name and all its addresses together
    idle: float = 300.0  # nothing either way
    life: float = 3600.0
    hello: float = 10.0  # from our answer to the client's whole ClientHello
    hello_pieces: int = 64  # in which it comes: it is looked at anew with each
    leave: float = 5.0  # for what a client sent before it left
    hosts: int = 1000  # different ones of one session: each is an audit record
    lookups: int = 4  # names of one session looked up at one time
    addresses: int = 3  # tried of one name
    notes: int = 100  # of refusals, in one session's log
