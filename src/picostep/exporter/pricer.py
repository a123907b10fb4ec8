"""What each step cost: computed once, when its record leaves the ring."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from picostep.errors import PicostepError
from picostep.prices import Cost
from picostep.prices.overrides import Overrides
from picostep.prices.steps import current, price_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from picostep.record import Record
    from picostep.settings.destination import Destination

__all__ = ["Pricer"]

_MOST_NAMES = 1000  # of models without a price that are remembered as logged

log = logging.getLogger(__name__)


class Pricer:
    """
    Adds `cost_pico`, `cost_status` and `price_table` to the records of steps: those of them that there are.

    Args:
        destination: Its prices win over the table.
    """

    def __init__(self, destination: Destination) -> None:
        self._overrides = Overrides.from_plain(destination.prices) if destination.prices else None
        self._unknown: set[str] = set()
        self._failed = False

    def price(self, records: Sequence[Record]) -> None:
        """Price those of the records that are steps."""
        try:
            table = current()
        except (PicostepError, OSError) as error:  # damaged since it was installed: records matter more
            if not self._failed:
                self._failed = True
                log.error("no price table, so steps have no cost: %s", error)
            return
        for record in records:
            if record["kind"] == "step":
                try:
                    cost = price_step(record, self._overrides, table)
                except PicostepError:  # a damaged ring may hold any number
                    cost = Cost(None, "invalid_usage", table.id)
                self._add(record, cost)

    def _add(self, record: Record, cost: Cost) -> None:
        if cost.pico is not None:
            record["cost_pico"] = cost.pico
        record["cost_status"] = cost.status
        if cost.table:
            record["price_table"] = cost.table
        if cost.status in ("unknown_model", "unknown_provider"):
            self._log_once(record, cost.status)

    def _log_once(self, record: Record, status: str) -> None:
        model = record.get("model_used") or record.get("model_requested") or ""
        provider = record.get("provider")
        name = f"{provider}/{model}" if provider else model
        if name not in self._unknown and len(self._unknown) < _MOST_NAMES:
            self._unknown.add(name)
            log.warning("no price for model %.200r (%s): its steps have no cost", name, status)
