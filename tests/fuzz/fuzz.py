"""
Fuzz one target: `python fuzz.py TARGET [option of libFuzzer]…`; `nox -s fuzz` builds what it needs.

Some inputs are read as libFuzzer made them. The others are mutated once more by the target, which knows the
format; their checksum says how, so each does the same every time. An input that fails is written to the
working directory as `crash-<digest>`; give its path as an option to run it again.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["picostep.exporter"]):
    from targets import TARGETS

from support import ring_directory


def main() -> None:
    name, *options = sys.argv[1:]
    with ring_directory() as directory, tempfile.TemporaryDirectory() as corpus:
        target = TARGETS[name](directory)
        seeds = target.seeds()
        for number, seed in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(seed)

        # Not a custom mutator: libFuzzer does not find one when it is preloaded, as it is beside ASan.
        def run(data: bytes) -> None:
            random = Random(zlib.crc32(data))
            choice = random.random()
            if choice < 0.2:  # libFuzzer forgets seeds that cover nothing of their own
                data = random.choice(seeds)
            if choice < 0.6:
                data = target.mutate(data, random)
            target.run(data)

        args = [sys.argv[0], "-max_len=8192", "-timeout=20", "-rss_limit_mb=2048", *options]
        if not any(Path(option).is_file() for option in options):
            args.append(corpus)
        atheris.Setup(args, run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
