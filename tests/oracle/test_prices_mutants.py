"""The arithmetic with a mistake put in: the comparison with genai-prices must notice each of them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("genai_prices", reason="genai-prices needs Python 3.11")

from prices_oracle import CAMPAIGN, SEED

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "ext" / "picostep"
CALLS = 2000

pytestmark = [
    pytest.mark.skipif(not (SOURCE / "_cost.pyx").exists(), reason="needs the sources of the compiled core"),
    pytest.mark.skipif(sys.platform == "win32", reason="one compiler is enough"),
    pytest.mark.timeout(300),
]

MUTANTS = {
    "the tier holds from its threshold on": ("total > rows[next].above", "total >= rows[next].above"),
    "the tier is chosen by uncached tokens only": (
        "return checked_add(total, tokens.cached) | checked_add(total, tokens.cache_write)",
        "return 0",
    ),
    "cache writes do not count for the tier": (
        "checked_add(total, tokens.cached) | checked_add(total, tokens.cache_write)",
        "checked_add(total, tokens.cached)",
    ),
    "the next tier is never reached": ("while next >= 0 and", "while False and"),
    "cached tokens are counted twice": (
        "checked_add_product(pico, tokens.uncached, row.uncached)",
        "checked_add_product(pico, tokens.uncached + tokens.cached, row.uncached)",
    ),
    "writes for 5 minutes and an hour are swapped": (
        "tokens.cache_write_1h, row.cache_write_1h)",
        "tokens.cache_write_1h, row.cache_write)",
    ),
    "writes for an hour are counted twice": (
        "tokens.cache_write - tokens.cache_write_1h, row.cache_write)",
        "tokens.cache_write, row.cache_write)",
    ),
    "the fee of a request is dropped": ("pico[0] = row.request", "pico[0] = 0"),
    "reasoning is counted twice": (
        "tokens.completion - tokens.reasoning, row.output",
        "tokens.completion, row.output",
    ),
    "reasoning costs as output": ("tokens.reasoning, row.reasoning)", "tokens.reasoning, row.output)"),
    "a price begins a second late": ("slots[n - 1].second > second", "slots[n - 1].second >= second"),
    "a price begins a day late": ("slots[n - 1].day > day", "slots[n - 1].day >= day"),
    "the time of day is not looked at": (" or slots[n - 1].second > second", ""),
    "the service tier is not looked at": ("if variant == VARIANT_STANDARD:", "if True:"),
    "an overflow is not noticed": ("    elif overflow:\n", "    elif False:\n"),
}
IN_CI = "the tier holds from its threshold on"
long = pytest.mark.skipif(not CAMPAIGN, reason="compiles for seconds; PICOSTEP_CAMPAIGN=1 runs it")

# Imports the module of the first argument as the core, then compares.
PROGRAM = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("picostep._cost", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["picostep._cost"] = module
spec.loader.exec_module(module)
import prices_oracle
import picostep.prices
assert picostep.prices.PriceTable is module.PriceTable
print(len(prices_oracle.compare(int(sys.argv[2]), int(sys.argv[3])).failures))
"""


def compiled(text: str, away: Path) -> Path:
    """Compile the core with this text as its _cost.pxd; return the module."""
    pytest.importorskip("Cython")  # in the extra "test", but a packager may have none
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    package = away / "ext" / "picostep"
    package.mkdir(parents=True)
    (package / "__init__.pxd").touch()
    (package / "_cost.pxd").write_text(text, encoding="utf-8")
    (package / "_cost.pyx").write_bytes((SOURCE / "_cost.pyx").read_bytes())
    modules = cythonize(
        [Extension("picostep._cost", [str(package / "_cost.pyx")], extra_compile_args=["-O1", "-g0"])],
        include_path=[str(away / "ext")],
        quiet=True,
    )
    command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(away)
    command.ensure_finalized()
    command.run()
    return away / "picostep" / f"_cost{sysconfig.get_config_var('EXT_SUFFIX')}"


def failures(module: Path) -> int:
    """Count the calls for which a module differs from the references, in a process of its own."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(module), str(SEED), str(CALLS)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def mutated(name: str) -> str:
    before, after = MUTANTS[name]
    text = (SOURCE / "_cost.pxd").read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{name}: {text.count(before)} places to change"
    return text.replace(before, after)


def test_every_mutation_has_its_place() -> None:
    assert len({mutated(name) for name in MUTANTS}) == len(MUTANTS)


@pytest.mark.slow
def test_one_mutant_is_noticed(tmp_path: Path) -> None:
    assert failures(compiled(mutated(IN_CI), tmp_path)) > 0, f"PICOSTEP_SEED={SEED}"


@long
@pytest.mark.slow
def test_the_portable_arithmetic_is_right(tmp_path: Path) -> None:
    """What compilers without overflow builtins get."""
    text = (SOURCE / "_cost.pxd").read_text(encoding="utf-8")
    before = "#if defined(__GNUC__) || defined(__clang__)"
    assert text.count(before) == 1
    assert failures(compiled(text.replace(before, "#if 0"), tmp_path)) == 0


@long
@pytest.mark.slow
def test_the_original_is_not_a_mutant(tmp_path: Path) -> None:
    assert failures(compiled((SOURCE / "_cost.pxd").read_text(encoding="utf-8"), tmp_path)) == 0


@long
@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_is_noticed(name: str, tmp_path: Path) -> None:
    assert failures(compiled(mutated(name), tmp_path)) > 0, f"PICOSTEP_SEED={SEED}"
