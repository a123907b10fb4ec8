"""
The same step on each peer. One module each, imported in that peer's own environment only.

A class here says how the step is recorded, in the quickest form that the peer documents for a step that is
opened before the request and closed after the response; everything else about the peer has its default
unless the module says why not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from peers.records import Record
from texts import Texts


class Adapter(ABC):
    """
    One peer, set up.

    Args:
        url: Base URL of the loopback ingest.
    """

    burst_steps = 500
    """Steps between two flushes: at most as many as the peer's queue takes without dropping."""

    burst_bytes = 6_000_000
    """Bytes of texts between two flushes, likewise."""

    round_steps = 1000
    """Steps of a round: fewer for a peer that takes milliseconds."""

    keeps = True
    """Whether what is in memory after a step is the peer's doing."""

    @abstractmethod
    def __init__(self, url: str) -> None: ...

    @abstractmethod
    def step(self, texts: Texts) -> None:
        """Record one step. This is what is timed."""

    def flush(self) -> None:
        """Return when all that was recorded has been handed over; at most about a minute."""
        return

    def shed(self) -> int:
        """Return how many steps the peer has passed on without their texts since the last call."""
        return 0

    def take(self) -> Iterable[Record]:
        """Return what was recorded since the last call, where it goes to no server; else nothing."""
        return ()

    def elsewhere(self) -> int:
        """Return the bytes that steps take outside Python's heap at the moment, where the peer can tell."""
        return 0

    def helpers(self) -> Iterable[int]:
        """Return the pids of other processes that work for it."""
        return ()

    def close(self) -> None:
        """End it; nothing is waited for beyond a few seconds."""
        return
