"""A power cut: what was promised to be on disk is there when the machine comes back, and undamaged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from oracle import Host, end, environment, exporter_pids, times
from test_disk import READERS

Start = Callable[..., Host]
IMAGE_BYTES = 48 << 20

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mkfs.ext4"),
    reason="needs root, and ext4 on a loop device",
)


class Disk:
    """
    An ext4 file system in a file in shared memory, which so has only what was written back or synced.

    Attributes:
        path: Where it is mounted.
    """

    def __init__(self, place: Path) -> None:
        self.path = place / "disk"
        self._image, self._copy = place / "image", place / "copy"
        self._mounted: list[Path] = []
        with self._image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True)
        self._mount(self._image, self.path)

    def cut(self) -> None:
        """Keep what the disk has at this moment; who writes to it must have been stopped."""
        shutil.copyfile(self._image, self._copy)

    @contextmanager
    def after(self) -> Iterator[Path]:
        """Mount what the cut has left, as the machine does when it comes back."""
        path = self.path.with_name("after")
        self._mount(self._copy, path)
        try:
            yield path
        finally:
            self._unmount(path)

    def close(self) -> None:
        for path in reversed(self._mounted):
            self._unmount(path)

    def _mount(self, image: Path, path: Path) -> None:
        path.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-o", "loop", str(image), str(path)], capture_output=True)
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr.decode().strip()}")
        self._mounted.append(path)

    def _unmount(self, path: Path) -> None:
        subprocess.run(["umount", str(path)], check=True)
        self._mounted.remove(path)


@pytest.fixture
def disk() -> Iterator[Callable[[], Disk]]:
    """Makes disks; they, and what uses them, are gone after the test."""
    place = Path(tempfile.mkdtemp(prefix="picostep-test-", dir="/dev/shm"))
    disks: list[Disk] = []

    def make() -> Disk:
        (place / str(len(disks))).mkdir()
        disks.append(Disk(place / str(len(disks))))
        return disks[-1]

    yield make
    for made in disks:
        made.close()
    shutil.rmtree(place)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sink", ["jsonl", pytest.param("store", marks=pytest.mark.slow)])
def test_power_cut(ring_base: Path, disk: Callable[[], Disk], start_host: Start, sink: str) -> None:
    """What `stats()` says is delivered to a file or a store is there after a cut at a random moment."""
    random, kept, promised = Random(os.urandom(8).hex()), 0, 0
    cuts = times(1, 50)
    for number in range(cuts):
        made, base = disk(), ring_base / str(number)
        env = environment(base, "http://127.0.0.1:9", PICOSTEP_TO=f"{sink}:{made.path}/out")
        host = start_host(env, "paced", random.randrange(1 << 30), "small", 300, 3000, 0)
        host.wait_for_level("delivered", 50)
        time.sleep(random.uniform(0.0, 0.5))
        # First what was promised, then the cut: what is written between the two only adds to it.
        told = host.written.levels["delivered"]
        (pid,) = exporter_pids(base)
        os.kill(pid, signal.SIGSTOP)
        made.cut()
        ledger = host.kill()
        end(pid)
        with made.after() as path:
            found = READERS[sink](path / "out")
        missing = set(ledger.order[:told]) - found.keys()
        assert not missing, f"{len(missing)} of {told} steps were not on the disk"
        assert all(ledger.intended.get(step_id) == was for step_id, was in found.items())
        promised += told
        kept += len(found)
    print(f"\n{cuts} power cuts, {sink}: {promised} steps promised to be on disk, 0 lost; {kept} found")
