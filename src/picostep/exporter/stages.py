"""What happens to every record between the ring and whatever comes after: the stages, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picostep.exporter.pricer import Pricer
from picostep.exporter.redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picostep.record import Record
    from picostep.settings.destination import Destination

__all__ = ["preparation"]


def preparation(
    destination: Destination, *observers: Callable[[Sequence[Record]], None]
) -> Callable[[Sequence[Record]], None]:
    """
    Return what prepares records of a destination in place: no sink and no file may get them before.

    Redaction is first, so that no later stage can keep or log what must not be seen.

    Args:
        observers: Get the prepared records as well, each once, however often sinks will be offered it.
    """
    redactor = Redactor(destination)
    pricer = Pricer(destination)

    def prepare(records: Sequence[Record]) -> None:
        redactor.redact(records)
        pricer.price(records)
        for observe in observers:
            observe(records)

    return prepare
