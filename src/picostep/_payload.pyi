"""Which fields the JSON of a record has: for every record that leaves a ring, so in C."""

from decimal import Decimal
from typing import Any

from picostep.record import Record

def wire(record: Record) -> dict[str, Any]:
    """
    Return the object that the ingest takes for a step, run or tool call, or the body of a feedback.

    A key that is not set is absent. Values are those of the record, except that metadata is merged: a cost
    may be a `Decimal`, and a text a `JSONText`, which stands for the JSON value in it. Times are ISO 8601,
    UTC, cut to milliseconds.

    Raises:
        Exception: of any type, for a damaged record.
    """

def local(record: Record) -> dict[str, Any]:
    """
    Return everything known of a record: `wire(record)`, and what the ingest has no place for.

    That is `first_token_time`, `provider`, `service_tier`, more counts, `total_cost` (US dollars, exact),
    `cost_status`, `price_table`, `traceparent`, `shed`, `shortened`, `withheld`. A feedback has the form
    `type run_id feedback_id time score? text?`.

    Raises:
        Exception: of any type, for a damaged record.
    """

def total_cost(record: Record) -> int | float | Decimal | None:
    """Return what a step with `cost_pico` costs, in US dollars: as the user gave it, else computed."""

def merged_metadata(record: Record) -> dict[str, Any]:
    """
    Return the metadata of a run that has some: the JSON objects of its lines, later keys win.

    A line that was cut as the record was too large is left out.

    Raises:
        ValueError: a line is not JSON.
    """
