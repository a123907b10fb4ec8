"""The Cython modules of the benchmarks, compiled when they are needed first."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def compiled(name: str, *depends: Path) -> Any:
    """Compile a Cython module into build/ unless it is newer than its source and `depends`; import it."""
    if name in sys.modules:
        return sys.modules[name]
    built = HERE / "build"
    target = built / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = [HERE / f"{name}.pyx", *depends]
    if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        from Cython.Build import cythonize
        from setuptools import Distribution, Extension

        modules = cythonize(
            [Extension(name, [str(sources[0])], extra_compile_args=["-O3"])],
            include_path=[str(HERE.parent / "ext")],
            build_dir=str(built),
            force=True,
            quiet=True,
        )
        command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        command.build_lib = command.build_temp = str(built)
        command.ensure_finalized()
        command.run()
    spec = importlib.util.spec_from_file_location(name, target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def cost_loop() -> Any:
    """Loops in C over what `end()` and the exporter do with a price."""
    return compiled("cost_loop", HERE.parent / "ext" / "picostep" / "_cost.pxd")
