"""Steps whose times are known, and the percentiles of known values."""

from __future__ import annotations

import math
from typing import Any

from picostep.record import Record

START = 1_700_000_000_000_000_001
SECOND = 1_000_000_000


def step(**fields: Any) -> Record:
    times = {"start_ns": START, "end_ns": START + SECOND, "status_code": 0}
    return {"kind": "step", "run_id": "r", "step_id": "s", **times, **fields}


def exact(values: list[int], q: float) -> int:
    """The value at the rank that a percentile names."""
    return sorted(values)[math.floor(q * (len(values) - 1))]
