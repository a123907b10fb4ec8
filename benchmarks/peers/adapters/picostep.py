"""picostep: the chain, delivered to the ingest by its exporter, as a process of its own or as a thread."""

from __future__ import annotations

import tempfile
from pathlib import Path

import picostep
from peers.adapters import Adapter
from picostep import runtime
from texts import Texts, chain


class Process(Adapter):
    """As by default. A ring holds 16 MiB, so a burst of half of that sheds nothing."""

    burst_steps = 1000
    exporter = "process"
    was_shed = 0

    def __init__(self, url: str) -> None:
        shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.directory = tempfile.TemporaryDirectory(
            prefix="picostep-peers-", dir=shm, ignore_cleanup_errors=True
        )
        picostep.configure(
            api_key="key",
            to="tcc",
            tcc_url=f"{url}/v1/custom",
            dir=self.directory.name,
            spool="off",
            exporter=self.exporter,
        )
        self.run = picostep.run()

    def step(self, texts: Texts) -> None:
        chain(self.run.step(), texts)

    def flush(self) -> None:
        assert picostep.flush(60)

    def shed(self) -> int:
        before, self.was_shed = self.was_shed, picostep.stats()["shed"]
        return int(self.was_shed - before)

    def elsewhere(self) -> int:
        """What the ring holds."""
        return sum(ring.head - ring.tail for ring in runtime._rings.values())

    def helpers(self) -> list[int]:
        return [ring["exporter_pid"] for ring in picostep.stats()["rings"] if ring.get("exporter_pid")]

    def close(self) -> None:
        picostep.shutdown(10)
        self.directory.cleanup()


class Thread(Process):
    """The exporter in the host, as the exporters of all peers are: same process, same GIL, same core."""

    exporter = "thread"
