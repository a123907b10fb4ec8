"""
Fill rings, for an exporter that comes later: `python -m delivery.producer DIR TO RINGS STEPS MODELS SIZE`.

Each ring belongs to a process of its own, which is dead when this ends.
"""

from __future__ import annotations

import os
import sys
import time
import traceback

import picostep
from picostep import runtime
from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts


def record(texts: Texts, steps: int, models: int) -> None:
    run = picostep.run()
    _wait_for_space()
    names = [USED] if models == 1 else [f"model-{number}" for number in range(models)]
    for number in range(steps):
        run.step().prompt(texts.prompt).response(texts.response).model(
            REQUESTED, names[number % models]
        ).tokens(UNCACHED, CACHED, COMPLETION).finish_reason(FINISH).tool_definitions(texts.tools).end()
    stats = picostep.stats()
    assert stats["in_ring"] == steps, stats
    assert stats["shed"] == 0, stats


def _wait_for_space() -> None:
    """A ring gets its space in the background, and until then is a small one."""
    (ring,) = runtime._rings.values()
    deadline = time.monotonic() + 60
    before = -1
    while ring.ready > before:
        assert time.monotonic() < deadline
        before = ring.ready
        time.sleep(0.05)


def main() -> None:
    directory, to, *numbers, size = sys.argv[1:]
    rings, steps, models = map(int, numbers)
    texts = Texts.of(size, "ascii")
    # Bodies are shed from three quarters on, and sizes are rounded down to a power of two.
    ring_bytes = min(1 << 30, max(1 << 20, (texts.nbytes() + 600) * steps * 4))
    picostep.configure(
        dir=directory,
        to=to,
        exporter="off",
        ring_bytes=ring_bytes,
        api_key="key",
        tcc_url=os.environ.get("TCC_URL"),
    )
    children = []
    for _ in range(rings):
        pid = os.fork()
        if pid == 0:
            try:
                record(texts, steps, models)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(pid)
        if len(children) == 8:
            wait(children.pop(0))
    for pid in children:
        wait(pid)


def wait(pid: int) -> None:
    assert os.waitpid(pid, 0)[1] == 0


if __name__ == "__main__":
    main()
