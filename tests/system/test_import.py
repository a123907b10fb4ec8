"""What `import picostep` costs a host: no module that the host may not want, no warning, no order to keep."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import picostep
from support import clean_environment, run_python

PACKAGE = Path(picostep.__file__).parent

# What the exporter, the sinks and the settings need, and a host that only records does not.
HEAVY = {
    *("asyncio", "contextlib", "ctypes", "dataclasses", "datetime", "decimal", "enum", "hashlib", "http"),
    *("fractions", "inspect", "json", "logging", "orjson", "re", "sqlite3", "ssl", "subprocess", "tempfile"),
    *("threading", "typing", "urllib", "urllib3"),
}

# What only those need that export, read the cost of a step, or have settings that need checking.
PROGRAMS = (
    *("picostep.exporter", "picostep.sinks", "picostep.store", "picostep.metrics", "picostep.prices"),
    *(
        "picostep._cost",
        "picostep.payload",
        "picostep.settings.otel",
        "picostep.amounts",
        "picostep.settings.prices",
        "picostep.settings.redact",
        "picostep.settings.files",
        "picostep._payload",
    ),
)

HOST_MODULES = [
    "picostep",
    *(f"picostep._{name}" for name in ("cost", "api", "ring", "keeper")),
    *(
        f"picostep.{name}"
        for name in ("api", "config", "errors", "launch", "ringdir", "runtime", "settings", "times", "usage")
    ),
    *(f"picostep.settings.{name}" for name in ("destination", "table", "urls")),
]


def loaded_by(statement: str, *args: str) -> set[str]:
    """Return what a statement loads in a bare interpreter: no environment, no site-packages."""
    code = (
        f"import os, sys; sys.path.append(sys.argv[1]); before = set(sys.modules); {statement}; "
        "print(*(set(sys.modules) - before))"
    )
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", code, str(PACKAGE.parent), *args]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["picostep", "picostep.api"])
def test_import_loads_nothing_heavy(module: str) -> None:
    loaded = loaded_by(f"import {module}")

    assert {name for name in loaded if name.partition(".")[0] in HEAVY} == set()
    assert {name for name in loaded if name.startswith(PROGRAMS)} == set()
    outside = {name for name in loaded if not name.startswith(("picostep", "_cython", "cython_runtime"))}
    assert outside <= {"__future__", "atexit", "time"}


def test_recording_loads_nothing_heavy(tmp_path: Path) -> None:
    """Not even the first record, which opens the ring, and its exit."""
    statement = (
        "import picostep as p, os; os.environ.update(PICOSTEP_EXPORTER='off', PICOSTEP_DIR=sys.argv[2], "
        "PICOSTEP_TO='stdout'); p.step('r').prompt('p').response('q').tokens(1, 2, 3, cache_write=4)"
        ".model('m', provider='p', service_tier='batch').cost(0.5).end(); p.stats()"
    )

    loaded = loaded_by(statement, str(tmp_path))

    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()
    assert {name for name in loaded if name.startswith(PROGRAMS)} == set()


def test_reading_a_cost_loads_prices_and_no_more(tmp_path: Path) -> None:
    """What a regular expression needs, but neither an exporter nor OpenSSL, JSON, dates or logging."""
    statement = (
        "import picostep as p, os; os.environ.update(PICOSTEP_EXPORTER='off', PICOSTEP_DIR=sys.argv[2], "
        "PICOSTEP_TO='stdout'); p.step('r').model('gpt-4o').tokens(1, 2, 3).total_cost"
    )

    loaded = {name.partition(".")[0] for name in loaded_by(statement, str(tmp_path))}

    assert loaded & HEAVY <= {"decimal", "enum", "re"}


@pytest.mark.parametrize("module", HOST_MODULES)
def test_each_module_alone(module: str) -> None:
    run_python(f"import warnings; warnings.simplefilter('error'); import {module}")


def test_every_host_module_is_listed() -> None:
    """A new module at the top is one that hosts load, and then tested here, or kept from them above."""
    found = {
        path.name.partition(".")[0] for path in PACKAGE.iterdir() if path.suffix in (".py", ".so", ".pyd")
    }

    others = {"__init__", "__main__", "_payload", "amounts", "asgi", "demo", "payload", "record", "redaction"}
    assert found - others == {name.partition(".")[2].partition(".")[0] for name in HOST_MODULES[1:]} - {
        "settings"
    }


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("config", {"get_api_key", "get_url"}),
        ("redaction", {"PRESET", "rules_in", "rules_of"}),
    ],
)
def test_names_of_the_reference_can_be_imported(module: str, names: set[str]) -> None:
    """Both modules are found by the names that contextcompany gives its own; `test_layers` has the rooms."""
    found = import_module(f"picostep.{module}")
    assert set(found.__all__) == names
    assert all(callable(getattr(found, name)) for name in names - {"PRESET"})
    assert import_module(f"contextcompany.{module}")


def test_every_name_is_there() -> None:
    assert [name for name in picostep.__all__ if not hasattr(picostep, name)] == []
    assert picostep.__all__ == sorted(picostep.__all__)


def test_version() -> None:
    assert picostep.__version__ == version("picostep")


def test_nothing_is_read_at_import() -> None:
    """Settings that cannot be used do not stop a program from starting."""
    wrong = {"PICOSTEP_RING_BYTES": "x", "PICOSTEP_EXPORTER": "x", "TCC_BASE_URL": "x", "PICOSTEP_TO": "x"}

    run_python("import picostep", wrong)
