"""Builds the compiled core; everything static is in pyproject.toml.

Switches, each set to 1 in the environment: PICOSTEP_BUILD_DEBUG (no optimisation, assertions),
PICOSTEP_BUILD_SYMBOLS (names of functions, for profilers), PICOSTEP_BUILD_SANITIZE (ASan and UBSan),
PICOSTEP_BUILD_FUZZ (the same and libFuzzer's coverage, with CC=clang), PICOSTEP_BUILD_TRACE (line coverage),
PICOSTEP_BUILD_ANNOTATE (Cython's HTML beside the sources).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import Cython
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def _on(name: str) -> bool:
    return os.environ.get(f"PICOSTEP_BUILD_{name}") == "1"


DEBUG, FUZZ, TRACE, ANNOTATE = _on("DEBUG"), _on("FUZZ"), _on("TRACE"), _on("ANNOTATE")
SANITIZE = FUZZ or _on("SANITIZE")

cflags: list[str] = []
ldflags: list[str] = []
macros: list[tuple[str, str | None]] = []
if sys.platform != "win32":
    cflags += ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g0"]
    # Inline, objects of more than 224 bytes are zeroed by "rep stos": 25 ns a step slower than the C library.
    cflags += ["-fno-builtin-memset"]
    named = DEBUG or SANITIZE or _on("SYMBOLS") or sys.platform == "darwin"
    ldflags += [] if named else ["-Wl,-s"]
    if sys.platform.startswith("linux"):
        ldflags += ["-pthread"]
if SANITIZE:
    checks = "-fsanitize=address,undefined" + (",fuzzer-no-link" if FUZZ else "")
    cflags += ["-O1", "-g", checks, "-fno-omit-frame-pointer"]
    ldflags += [checks]
if TRACE:  # coverage.py's plugins need its C tracer, not sys.monitoring
    macros += [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]


def _extension(name: str, *more: str) -> Extension:
    return Extension(
        f"picostep.{name}",
        [f"ext/picostep/{name}.pyx", *more],
        depends=[source.replace(".c", ".h") for source in more],  # what Cython cannot see
        include_dirs=["ext/picostep"],
        libraries=["bcrypt"] if sys.platform == "win32" else [],
        extra_compile_args=cflags,
        extra_link_args=ldflags,
        define_macros=macros,
    )


@contextmanager
def _made_by(stamp: Path, *how: object) -> Iterator[bool]:
    """
    Tell whether what is there was made in another way, so that its age says nothing.

    Args:
        stamp: The file that says how it was made; there is none while it is made, or after that failed.

        how: Whatever changes the result, beside the sources.
    """
    wanted = repr(how)
    other = not stamp.exists() or stamp.read_text() != wanted
    stamp.unlink(missing_ok=True)
    yield other
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(wanted)


class _BuildExt(build_ext):
    """Compiles what is older than its sources, and everything after a change of switches or compiler."""

    def run(self) -> None:
        environment = [os.environ.get(name) for name in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS")]
        how = cflags, ldflags, macros, environment, sys.version, self.build_lib
        with _made_by(Path(self.build_temp, "compiled.txt"), *how) as other:
            self.force = self.force or other
            super().run()


directives = {"language_level": "3", "freethreading_compatible": True, "linetrace": TRACE}
with _made_by(Path("build", "cython.txt"), directives, ANNOTATE, Cython.__version__) as other:
    modules = cythonize(
        [
            _extension("_cost"),
            _extension("_ring"),
            _extension("_api"),
            _extension("_payload"),
            _extension("_keeper", "ext/picostep/keeper.c"),
        ],
        include_path=["ext"],
        force=other,
        annotate=ANNOTATE,
        compiler_directives=directives,
    )

setup(ext_modules=modules, cmdclass={"build_ext": _BuildExt})
