"""Builds the compiled core; everything static is in pyproject.toml.

Switches, each set to 1 in the environment: PICOSTEP_BUILD_DEBUG (no optimisation, assertions),
PICOSTEP_BUILD_SYMBOLS (names of functions, for profilers), PICOSTEP_BUILD_SANITIZE (ASan and UBSan),
PICOSTEP_BUILD_FUZZ (the same and libFuzzer's coverage, with CC=clang), PICOSTEP_BUILD_TRACE (line coverage),
PICOSTEP_BUILD_ANNOTATE (Cython's HTML beside the sources).
"""

import os
import sys
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup


def _on(name: str) -> bool:
    return os.environ.get(f"PICOSTEP_BUILD_{name}") == "1"


DEBUG, FUZZ, TRACE = _on("DEBUG"), _on("FUZZ"), _on("TRACE")
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
        # `depends` is also what puts the sources into the sdist.
        depends=sorted(glob("ext/picostep/*.p[xy][xdi]") + glob("ext/picostep/*.h")),
        include_dirs=["ext/picostep"],
        libraries=["bcrypt"] if sys.platform == "win32" else [],
        extra_compile_args=cflags,
        extra_link_args=ldflags,
        define_macros=macros,
    )


setup(
    ext_modules=cythonize(
        [
            _extension("_cost"),
            _extension("_ring"),
            _extension("_api"),
            _extension("_payload"),
            _extension("_keeper", "ext/picostep/keeper.c"),
        ],
        include_path=["ext"],
        force=True,  # directives and switches are not part of cythonize's staleness check
        annotate=_on("ANNOTATE"),
        compiler_directives={"language_level": "3", "freethreading_compatible": True, "linetrace": TRACE},
    )
)
