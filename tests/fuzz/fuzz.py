"""
Fuzz one target: `python fuzz.py TARGET [option of libFuzzer]…`; `nox -s fuzz` builds what it needs.

Half of the mutations are the target's own, which know the format; the rest are libFuzzer's. An input that
fails is written to the working directory as `crash-<digest>`; give its path as an option to run it again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["picostep.export"]):
    from targets import TARGETS

from support import ring_directory


def main() -> None:
    name, *options = sys.argv[1:]
    with ring_directory() as directory, tempfile.TemporaryDirectory() as corpus:
        target = TARGETS[name](directory)
        for number, seed in enumerate(target.seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)

        def mutate(data: bytes, max_size: int, seed: int) -> bytes:
            random = Random(seed)
            if random.random() < 0.5:
                return bytes(atheris.Mutate(data, max_size))
            return target.mutate(bytes(data), random)[:max_size]

        args = [sys.argv[0], "-max_len=8192", "-timeout=20", "-rss_limit_mb=2048", *options]
        if not any(Path(option).is_file() for option in options):
            args.append(corpus)
        atheris.Setup(args, target.run, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
