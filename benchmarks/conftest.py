"""One exporter for all benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import workloads


@pytest.fixture(scope="session", autouse=True)
def exporter() -> Iterator[None]:
    with workloads.exporter():
        yield
