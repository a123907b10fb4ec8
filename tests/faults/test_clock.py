"""Clocks that are set while steps are recorded and delivered: neither durations nor pauses follow them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from oracle import environment, sample, times
from proxy import passing, status
from scenario import Scenario
from support import Ingest, run_python, wait_until

Stage = Callable[..., Scenario]

YEARS = 10 * 365 * 86_400


# Stands between a process and the clocks of the system: the wall clock is off by what a shared file says.
SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset;

__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) abort();
    offset = page;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, id, now);
    if (!failed && offset && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


class Clock:
    """The wall clock of the processes that get `env`; no other process sees it."""

    def __init__(self, place: Path) -> None:
        self._offset = place / "offset"
        self.set(0)
        source, library = place / "shim.c", place / "shim.so"
        source.write_text(SHIM)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
        self.env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._offset)}

    def set(self, seconds: int) -> None:
        """Set it, relative to the real time."""
        fd = os.open(self._offset, os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, struct.pack("=q", seconds), 0)
        os.close(fd)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("needs a C compiler and LD_PRELOAD")
    return Clock(tmp_path)


def wait_for_requests(scenario: Scenario, count: int) -> None:
    wait_until(lambda: len(scenario.proxy.requests) >= count, 20.0, f"{count} requests")


@pytest.mark.slow
def test_exporter_pauses_by_the_monotonic_clock(stage: Stage, clock: Clock) -> None:
    """A clock set by years, forth and back, neither ends nor prolongs a Retry-After of a second."""
    scenario = stage(**clock.env)
    host = scenario.host("paced", 1, "small", 100, 3000, 30)
    host.wait_for_promise()
    scenario.wait_for_delivery(host)
    for by in times((-YEARS,), (YEARS, -YEARS)):
        before = len(scenario.proxy.requests)
        scenario.proxy.set(status(503, "Retry-After: 1"))
        wait_until(lambda: any(ring["last_error"] == "http 503" for ring in sample(scenario.ring_base)), 20.0)
        clock.set(by)
        wait_for_requests(scenario, before + 2)
        first, second = scenario.proxy.requests[before : before + 2]
        assert 1.0 <= second - first <= times(30.0, 2.0), by
        scenario.proxy.set(passing)
        scenario.wait_for_delivery(host)
        (log,) = scenario.ring_base.glob("*/*/exporter.log")
        year = datetime.fromtimestamp(time.time() + by).year
        assert log.read_text().splitlines()[-1].startswith(str(year)), "the exporter's clock was not set"
    host.process.terminate()
    assert scenario.expect(host.finish(40.0)).report["flushed"]
    scenario.check()


SET = """
import os, struct, sys, time
import picostep
offset = os.open(sys.argv[1], os.O_WRONLY)
years = 10 * 365 * 86400
for number, by in enumerate((0, years, -years)):
    run = picostep.run(f"{number}")
    run.prompt("p")
    step = run.step().prompt("p").response("r")
    os.pwrite(offset, struct.pack("=q", by), 0)
    time.sleep(1.2)  # the wall clock is looked at once a second
    step.end()
    run.end()
assert picostep.flush(20.0), picostep.stats()
"""


@pytest.mark.slow
def test_durations_of_a_host_whose_clock_is_set(ring_base: Path, ingest: Ingest, clock: Clock) -> None:
    """No duration is negative or long, though the clock went back by years in the middle of it."""
    run_python(SET, {**environment(ring_base, ingest.url), **clock.env}, args=(clock.env["CLOCK_OFFSET"],))
    items = ingest.wait_for_items(6)
    for item in items:
        start, end = (datetime.fromisoformat(item[name].rstrip("Z")) for name in ("start_time", "end_time"))
        assert 1.0 <= (end - start).total_seconds() <= 60.0, item
    years = {item["end_time"][:4] for item in items}
    assert len(years) >= 3, f"the clock was not set: {years}"
