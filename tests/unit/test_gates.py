"""The gates of benchmarks/gates.py trip, in both directions, and count what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not BENCHMARKS.exists(), reason="needs a checkout: benchmarks are not installed"
)

REPORT = """\
events: Ir
ob=(1) /usr/lib/libpython3.11.so.1.0
fl=(1) ceval.c
fn=(1) evaluate
0 100
cob=(2) /site-packages/picostep/_api.cpython-311-x86_64-linux-gnu.so
cfn=(2) end
calls=3 0
0 5000
0 7
ob=(2)
fn=(2)
0 40
cob=(3) /lib/libc.so.6
cfn=(3) memcpy
calls=1 0
0 900
ob=(3)
fn=(3)
0 900
ob=(4) /site-packages/orjson/orjson.cpython-311-x86_64-linux-gnu.so
0 11
ob=(5) /usr/bin/python3.11
+0 2
ob=(6) /usr/lib/python3.11/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so
0 1
totals: 1061
"""


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gates

    return gates


def test_a_report_is_summed_by_file_and_without_callees(gates: Any) -> None:
    assert gates.parse(REPORT) == (40, 40 + 107 + 2 + 1, 1061)


@pytest.mark.parametrize(
    ("core", "python", "wrong"),
    [
        (1000, 5000, []),
        (1029, 5149, []),
        (971, 4851, []),
        (1031, 5000, ["step: 1,000 instructions of picostep's own code became 1,031 (+3.1%)"]),
        (969, 5000, ["step: 1,000 instructions of picostep's own code became 969 (-3.1%)"]),
        (1000, 5200, ["step: 5,000 instructions of that and the interpreter became 5,200 (+4.0%)"]),
        (1000, 4800, ["step: 5,000 instructions of that and the interpreter became 4,800 (-4.0%)"]),
    ],
)
def test_more_and_less_than_the_margin_are_wrong(
    gates: Any, core: int, python: int, wrong: list[str]
) -> None:
    found = {"step": gates.Count(core, python, 9999), gates.PLAIN: gates.Count(0, 1, 1)}
    assert gates.compare(found, {"step": [1000, 5000]}) == wrong


def test_what_has_no_baseline_is_wrong(gates: Any) -> None:
    assert gates.compare({"new": gates.Count(1, 2, 3)}, {}) == ["new: there is no baseline"]


def test_baselines_have_all_that_is_counted(gates: Any) -> None:
    baselines = json.loads(gates.BASELINES.read_text())
    assert baselines
    assert {frozenset(baseline) for baseline in baselines.values()} == {
        frozenset(gates.WORKS) - {gates.PLAIN}
    }
