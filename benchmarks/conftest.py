"""One exporter for all benchmarks, into a file that is thrown away."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

import picostep


@pytest.fixture(scope="session", autouse=True)
def exporter() -> Iterator[None]:
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108 - a directory of our own below it
    directory = tempfile.mkdtemp(prefix="picostep-bench-", dir=shm)
    picostep.configure(to="jsonl:/dev/null", dir=directory)
    yield
    picostep.shutdown(10)
    shutil.rmtree(directory, ignore_errors=True)
