"""The fixture that starts hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from oracle import Host


@pytest.fixture
def start_host() -> Iterator[Callable[..., Host]]:
    """Starts hosts, each a program of `workload` in a process; those that are left end with the test."""
    from oracle import Host  # it imports picostep, which may fail: pytest's header says so

    started: list[Host] = []

    def start(env: Mapping[str, str], *program: object) -> Host:
        started.append(Host(env, *program))
        return started[-1]

    yield start
    for host in started:
        host.close()
