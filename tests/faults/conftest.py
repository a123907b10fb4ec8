"""Fixtures that start hosts, alone or in a scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from oracle import Host
    from scenario import Scenario


@pytest.fixture
def start_host() -> Iterator[Callable[..., Host]]:
    """Starts hosts, each a program of `workload` in a process; those that are left end with the test."""
    from oracle import Host  # it imports picostep, which may fail: pytest's header says so

    started: list[Host] = []

    def start(env: Mapping[str, str], *program: object, inside: Sequence[str] = ()) -> Host:
        started.append(Host(env, *program, inside=inside))
        return started[-1]

    yield start
    for host in started:
        host.close()


@pytest.fixture
def stage(ring_base: Path) -> Iterator[Callable[..., Scenario]]:
    """Sets up a scenario with given settings; everything in it ends with the test."""
    from scenario import Scenario

    scenarios: list[Scenario] = []

    def begin(**settings: Any) -> Scenario:
        scenarios.append(Scenario(ring_base, **settings))
        return scenarios[-1]

    yield begin
    for scenario in scenarios:
        scenario.close()
