"""
What metrics cost, in instructions that callgrind counts: `python benchmarks/metrics.py`.

The exporter, for each 3 KB record that it drains; and the host, for each 3 KB step that it records while
`picostep export` drains its ring, without metrics, and with them and somebody who scrapes all the time.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gates import FEW, Count, callgrind, parse

HERE = Path(__file__).parent
MANY = 1300  # as in counted.py, whose ring holds no more
SHARED = "/dev/shm" if os.path.isdir("/dev/shm") else None

DRAIN = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import counted
from picostep.exporter import stages
if sys.argv.pop() == "metrics":
    from picostep.metrics.aggregate import Aggregator
    add, preparation = Aggregator().add, stages.preparation
    stages.preparation = lambda destination: preparation(destination, add)
counted.main()
"""

RECORD = f"""
import os, sys, time; sys.path.insert(0, {str(HERE)!r})
import picostep
from picostep import runtime
from texts import Texts
from workloads import Picostep
turns, directory = int(sys.argv[1]), sys.argv[2]
picostep.configure(to="jsonl:/dev/null", dir=directory, exporter="external", ring_bytes=16 << 20)
ring = runtime._rings[runtime.default_destination()]
while ring.ready < 16 << 20:
    time.sleep(0.05)
Picostep(Texts.of("3KB", "ascii")).steps(turns)
assert picostep.stats()["shed"] == 0
os._exit(0)
"""


def per_turn(code: str, *names: str) -> Count:
    """Count with few turns and with many: the difference, by turn."""
    counts = []
    for turns in (FEW, MANY):
        with tempfile.TemporaryDirectory(dir=SHARED) as directory, ExitStack() as stack:
            if code is RECORD:
                stack.enter_context(exporting(directory, scraped="metrics" in names))
                arguments = [str(turns), directory]
            else:
                arguments = ["drained record, 3 KB", str(turns), directory, *names]
            counts.append(parse(callgrind(["-c", code, *arguments], directory)))
    return Count(*((many - few) / (MANY - FEW) for few, many in zip(*counts, strict=True)))


@contextmanager
def exporting(directory: str, scraped: bool) -> Iterator[None]:
    """`picostep export` beside the host, scraped as fast as it answers or without metrics."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "picostep",
        "export",
        "--dir",
        directory,
        "--to",
        f"jsonl:{directory}/out",
    ]
    process = subprocess.Popen(
        [*command, *(("--metrics", str(port)) if scraped else ())],
        stderr=subprocess.PIPE,
        env=os.environ | {"XDG_STATE_HOME": directory},
    )
    done, scrapes = threading.Event(), 0

    def scrape() -> None:
        nonlocal scrapes
        while not done.is_set():
            with suppress(urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
                scrapes += 1

    thread = threading.Thread(target=scrape)
    try:
        assert process.stderr is not None
        while b"serving" not in process.stderr.readline():
            assert process.poll() is None
        if scraped:
            thread.start()
        yield
        assert bool(scrapes) is scraped
    finally:
        done.set()
        if scraped:
            thread.join()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def main() -> None:
    print(f"{'instructions':34}{'without':>10}{'with':>10}")
    for title, code in (("exporter, of a drained record", DRAIN), ("host, of a step", RECORD)):
        without, with_ = per_turn(code, "none"), per_turn(code, "metrics")
        print(f"{title:34}{without.python:10,.0f}{with_.python:10,.0f}")


if __name__ == "__main__":
    main()
