"""
Fixtures, Hypothesis profiles, the rule of slow tests, and a header that says what is being tested.

A test is slow, and marked so, if it takes much CPU time or waits for long. Those that are not are the quick
ones, which pytest runs unless it is told to run `--all`, or a test by its name.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from support import OURS, Ingest, ring_directory

if TYPE_CHECKING:
    from ringfile import Rig

# No deadline per example: a slow machine is no fault of the code. "quick" is for the quick tests, "ci" for
# all of them; "campaign" is for long runs, started by hand.
settings.register_profile("ci", max_examples=150, deadline=None, print_blob=True)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=30)
settings.register_profile(
    "campaign",
    settings.get_profile("ci"),
    max_examples=int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "20000")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Seconds of CPU, of the test and of the processes that it waited for: a busy machine adds little to them. Far
# more than what a quick test takes, so that no slower machine fails for it.
SLOW = 5.0
QUICK = "quick tests only, about two minutes on two cores; all of them, some minutes: pytest --all"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("picostep")
    group.addoption("--all", action="store_true", help="run the slow tests, too")
    group.addoption(
        "--strict-slow",
        action="store_true",
        help=f"fail if a test takes more than {SLOW} s of CPU and is not marked as slow",
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """
    For the whole tree two workers, and three where it is the quick tests, which wait more than they work.

    Files and tests that are named run right here.
    """
    if config.args_source is config.ArgsSource.ARGS:
        return 0
    return 2 if config.option.all else 3


def pytest_configure(config: pytest.Config) -> None:
    """No test sees the settings or the state of whoever runs it, least of all a real key."""
    settings.load_profile(_profile(config))
    if not hasattr(config, "workerinput"):  # workers of xdist tell the process that started them
        config.pluginmanager.register(_Unmarked(config.option.strict_slow))
    os.environ["XDG_STATE_HOME"] = config._state = tempfile.mkdtemp(prefix="picostep-state-")
    for name in list(os.environ):
        if name.startswith(OURS) and name not in (
            "PICOSTEP_CAMPAIGN",
            "PICOSTEP_OLD_PYTHON",
            "PICOSTEP_SEED",
        ):
            del os.environ[name]
    os.environ.pop("COLUMNS", None)  # of a terminal; workers of xdist are given it, too
    # What ignores a signal hands that on to the hosts it starts, which are sent these.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup
        signal.signal(signal.SIGHUP, lambda *_: None)  # and still go on when the terminal is closed


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config._state, ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> list[str]:
    try:
        import picostep
        from picostep import _api
    except ImportError as error:
        return [f"picostep: cannot be imported: {error}"]
    ours = [
        f"picostep: {picostep.__version__}, core {_api.__file__}",
        f"hypothesis profile: {_profile(config)}",
    ]
    return ours if _runs_slow(config) else [*ours, QUICK]


def _profile(config: pytest.Config) -> str:
    return os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if _runs_slow(config) else "quick")


def _runs_slow(config: pytest.Config) -> bool:
    """Whether slow tests run: when all are asked for, or some by marker or name."""
    return bool(config.option.all or config.option.markexpr or any("::" in each for each in config.args))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _profile(config) == "campaign":
        for item in items:
            item.add_marker(pytest.mark.timeout(0))
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow and not _runs_slow(config):
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


# --- what a test takes of the CPU -------------------------------------------------------------------------

_begun = pytest.StashKey[float]()


def _cpu() -> float:
    """Seconds of this process and of those it has waited for, as far as these waited for theirs."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[_begun] = _cpu()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The last report of a test tells what it took: that also comes out of a worker of xdist."""
    report = yield
    if report.when == "teardown" and not item.get_closest_marker("slow"):
        report.cpu = _cpu() - item.stash[_begun]
    return report


class _Unmarked:
    """Collects the tests that are slow and not marked so; says so at the end, and fails if it is told to."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._found: list[tuple[float, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if getattr(report, "cpu", 0.0) > SLOW:
            self._found.append((report.cpu, report.nodeid))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._found and self._strict and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for seconds, test in sorted(self._found, reverse=True):
            terminalreporter.write_line(f"SLOW {test}: {seconds:.1f} s of CPU, and not marked as slow")


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
