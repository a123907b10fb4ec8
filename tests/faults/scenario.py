"""The room in which all faults are provoked: hosts, an exporter, the proxy, the receiver, and who watches."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from oracle import (
    Host,
    Ledger,
    Oracle,
    check_equation,
    environment,
    exporter_pids,
    rings,
    sample,
    totals,
    wait_for_no_rings,
)
from proxy import Fault, Proxy, passing
from receiver import Receiver
from support import wait_until

LOOK_EVERY = 0.1  # seconds
WEIGH_EVERY = 1.0
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")  # which keeps what is freed for a while
EXPORTER_RSS = (256 if SANITIZED else 128) << 20  # bytes


class Scenario:
    """
    Hosts that deliver to a receiver through a proxy, watched from outside all the time.

    At the end, or sooner, `check()` says whether every promise was kept.

    Args:
        ring_base: Where their rings are.

        refused: Tells by its id which step the receiver never gets to see, however often it is sent.

        settings: Of the hosts, in the environment.
    """

    def __init__(
        self, ring_base: Path, refused: Callable[[str], bool] = lambda _: False, **settings: str
    ) -> None:
        self._refused = refused
        self.ring_base = ring_base
        self.receiver = Receiver()
        self.proxy = Proxy(self.receiver.port)
        self.oracle = Oracle(self.receiver)
        self.env = environment(ring_base, self.proxy.url, **settings)
        self.hosts: list[Host] = []
        self.samples = self.peak_rss = 0
        self._pids: set[int] = set()
        self._told: dict[Host, int] = {}
        self._arrived: dict[Host, int] = {}
        self._weigh_at = 0.0
        self._failure: AssertionError | None = None
        self._over = threading.Event()
        self._closed = False
        self._watcher = threading.Thread(target=self._watch, name="scenario")
        self._watcher.start()

    def host(self, *program: object, held: bool = False, **settings: str) -> Host:
        """Start a program of `workload`."""
        host = Host({**self.env, **settings}, *program, held=held)
        self.hosts.append(host)
        return host

    def expect(self, ledger: Ledger) -> Ledger:
        """Hold a host that has ended, and its report, to what it says."""
        self.oracle.expect(ledger)
        if ledger.report:
            assert not ledger.report["wrong"], ledger.report["wrong"]
            assert ledger.report["samples"] > 10
            assert ledger.intended.keys() == ledger.promised
        return ledger

    def outage(self, fault: Fault, seconds: float, host: Host) -> None:
        """Let a fault last for some time, in which a host goes on recording."""
        before = len(host.written.order)
        self.proxy.set(fault)
        time.sleep(seconds)
        wait_until(lambda: len(host.written.order) > before, 20.0, f"a step during {fault.__name__}")
        self.proxy.set(passing)

    def delivered(self, host: Host) -> int:
        """Return how many of the first steps that a host was promised have arrived."""
        self.oracle.collect()
        order, arrived, count = host.written.order, self.oracle.digests, self._arrived.get(host, 0)
        while count < len(order) and order[count] in arrived:
            count += 1
        self._arrived[host] = count
        return count

    def wait_for_delivery(self, host: Host, timeout: float = 20.0) -> None:
        """Wait until all has arrived that a host was promised up to now."""
        promised = len(host.written.order)
        wait_until(lambda: self.delivered(host) >= promised, timeout, f"{promised} steps")

    def drain(self, host: Host, most: int, timeout: float) -> float:
        """End the fault; return after how many seconds fewer than `most` of a host's steps are under way."""
        self.proxy.set(passing)
        back = time.monotonic()
        wait_until(lambda: len(host.written.order) - self.delivered(host) < most, timeout, "it is drained")
        return time.monotonic() - back

    def check(self, timeout: float = 30.0) -> dict[str, Any]:
        """
        Check that all promises were kept, now that all hosts have ended and the faults are over.

        Args:
            timeout: Seconds within which everything must have arrived.

        Returns:
            What all rings counted.
        """
        for host in self.hosts:
            assert host.process.poll() is not None, "a host still runs"
        if rings(self.ring_base) and not exporter_pids(self.ring_base):  # nobody is left to take them
            self.expect(self.host("adopt", PICOSTEP_EXPORTER="process").finish(20.0))
        refused = set(filter(self._refused, self.oracle.promised))
        self.oracle.promised -= refused
        self.oracle.check_nothing_lost(timeout)
        wait_for_no_rings(self.ring_base, timeout)
        self._stop_watching()
        self.oracle.check_nothing_altered()
        self.oracle.check_repeats()
        counted = totals(self.ring_base)
        assert counted["delivered"] == len(self.oracle.digests), counted
        assert counted["accepted"] == counted["delivered"] + len(refused), counted
        assert counted.get("rejected", 0) == len(refused), counted
        others = ("shed", "shortened", "ring_full", "encode_error", "corrupt", "damaged_rings")
        assert not any(counted.get(name, 0) for name in others), counted
        assert self.samples > 0
        return counted

    def close(self) -> None:
        """End everything that was started, as it is. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._over.set()
        self._watcher.join()
        for host in self.hosts:
            host.close()
        self.proxy.stop()
        self.receiver.stop()

    def _stop_watching(self) -> None:
        self._over.set()
        self._watcher.join()
        if self._failure:
            raise self._failure

    # --- the watcher's thread

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            try:
                self._look()
            except AssertionError as error:
                self._failure = error
                return

    def _look(self) -> None:
        for host in list(self.hosts):
            self._check_told(host)
        rings = sample(self.ring_base)
        for counted in rings:
            check_equation(counted)
            self.samples += 1
        said = sum(counted["delivered"] for counted in rings)
        self.oracle.collect()
        arrived = len(self.oracle.digests)
        assert said <= arrived, f"{said} steps are counted as delivered, and {arrived} have arrived"
        if time.monotonic() < self._weigh_at:
            return
        self._weigh_at = time.monotonic() + WEIGH_EVERY
        for pid in exporter_pids(self.ring_base):
            self.peak_rss = max(self.peak_rss, peak_rss(pid))
            assert self.peak_rss <= EXPORTER_RSS, f"the exporter has {self.peak_rss >> 20} MiB"

    def _check_told(self, host: Host) -> None:
        """Check that what a host was told to be delivered is."""
        before = self._told.get(host, 0)
        told = min(host.written.levels.get("delivered", 0), len(host.written.order))
        if told > before:
            self._told[host] = told
            self.oracle.collect()
            steps = [step for step in host.written.order[before:told] if not self._refused(step)]
            early = steps and set(steps) - self.oracle.digests.keys()
            assert not early, f"{len(early)} of {told} steps are said to be delivered and are not"


def peak_rss(pid: int) -> int:
    """Return the largest memory of a process so far, in bytes; 0 when it is gone."""
    return _memory(pid, "VmHWM:")


def rss(pid: int) -> int:
    """Return the memory of its own that a process has now, in bytes, without what it shares: its ring."""
    return _memory(pid, "RssAnon:")


def _memory(pid: int, field: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) << 10
    return 0
