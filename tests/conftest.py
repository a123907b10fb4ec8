"""Fixtures, Hypothesis profiles, and a header that says which compiled core is being tested."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from support import OURS, Ingest, ring_directory

if TYPE_CHECKING:
    from ringfile import Rig

# No deadline per example: a slow machine is no fault of the code. "campaign" is for long runs, started by
# hand.
settings.register_profile("ci", max_examples=150, deadline=None, print_blob=True)
settings.register_profile(
    "campaign",
    settings.get_profile("ci"),
    max_examples=int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "20000")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)


def pytest_configure(config: pytest.Config) -> None:
    """No test sees the settings or the state of whoever runs it, least of all a real key."""
    os.environ["XDG_STATE_HOME"] = config._state = tempfile.mkdtemp(prefix="picostep-state-")
    for name in list(os.environ):
        if name.startswith(OURS) and name not in (
            "PICOSTEP_CAMPAIGN",
            "PICOSTEP_OLD_PYTHON",
            "PICOSTEP_SEED",
        ):
            del os.environ[name]
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background; hosts that get one inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config._state, ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> list[str]:
    try:
        import picostep
        from picostep import _api
    except ImportError as error:
        return [f"picostep: cannot be imported: {error}"]
    return [f"picostep: {picostep.__version__}, core {_api.__file__}", f"hypothesis profile: {PROFILE}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if PROFILE == "campaign":
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def clean_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Take settings of ours out of the environment and put the default store below `tmp_path`."""
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return monkeypatch


@pytest.fixture
def ingest() -> Iterator[Ingest]:
    """A real ingest server on 127.0.0.1."""
    with Ingest() as server:
        yield server


@pytest.fixture(scope="module")
def module_rig() -> Iterator[Rig]:
    """This process's recorder and its ring, in a directory of the module's."""
    from ringfile import Rig

    with ring_directory() as directory:
        rig = Rig(directory)
        yield rig
        rig.close()


@pytest.fixture
def rig(module_rig: Rig) -> Rig:
    """That with an empty ring of the smallest size."""
    from ringfile import SMALLEST

    module_rig.renew(SMALLEST)
    return module_rig


@pytest.fixture
def ring_base(clean_env: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for rings, named by PICOSTEP_DIR; its exporters end with the test."""
    with ring_directory() as path:
        clean_env.setenv("PICOSTEP_DIR", str(path))
        yield path


@pytest.fixture
def otlp_host(ring_base: Path, ingest: Ingest, tmp_path: Path) -> dict[str, str]:
    """The settings of a host that sends to `ingest` by OTLP."""
    return {
        "PICOSTEP_DIR": str(ring_base),
        "PICOSTEP_TO": f"otlp:{ingest.url}",
        "PICOSTEP_SPOOL": str(tmp_path / "spool"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
