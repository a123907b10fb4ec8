"""Which runs have ended: one that a dead ring still has as open may be one of them."""

from __future__ import annotations

__all__ = ["EndedRuns"]

_KEPT = 10_000


class EndedRuns:
    """
    Ids of the runs that were read last.

    A run that a process began may be recorded by its child, in another ring; then the process's own table
    still has it as open.

    Args:
        kept: How many ids are kept.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._ids: dict[str, None] = {}  # a dict keeps the order

    def add(self, run_id: str) -> None:
        self._ids.pop(run_id, None)
        self._ids[run_id] = None
        if len(self._ids) > self._kept:
            del self._ids[next(iter(self._ids))]

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._ids
