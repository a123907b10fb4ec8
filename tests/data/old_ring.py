"""
Makes `ring-2.xz`, the ring of a host that records in version 2 of the format and is killed.

Run it by a Python that has picostep of commit 574d21a, with the file's name as its argument.

What it records is written once more in `tests/test_ring_versions.py`, as it must be read.
"""

import lzma
import os
import signal
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

import picostep

FIRST, LAST = "2026-11-27T20:00:00.123456789Z", "2026-11-27T20:00:01.5Z"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record() -> None:
    times = {"start_time": FIRST, "end_time": LAST}
    picostep.send_run(
        run_id="run 深",
        session_id="session",
        conversational=True,
        prompt="é",
        system_prompt="\U0001f600" * 3,
        full_input=[{"role": "user", "content": "é"}],
        response="深",
        full_output="out",
        metadata={"b": [1, 2]},
        status_code=7,
        status_message="slow",
        traceparent=PARENT,
        **times,
    )
    picostep.send_step(
        "run 深",
        step_id="step",
        prompt=["深", {"a": 1}],
        response="r" * 100,
        tool_definitions={"t": []},
        model_requested="asked",
        model_used="used",
        provider="provider",
        service_tier="batch",
        prompt_uncached=1,
        prompt_cached=2,
        completion=3,
        cache_write=4,
        cache_write_1h=0,
        reasoning=3,
        cost=Decimal("0.10"),
        finish_reason="stop",
        status_code=2,
        status_message="failed",
        traceparent=PARENT,
        **times,
    )
    picostep.send_step(
        "run 深", step_id="few", prompt="", response="\ud800", prompt_cached=9, cost=0.25, **times
    )
    picostep.send_tool_call("run 深", tool_call_id="call", name="tool", args={"x": "é"}, result="", **times)
    picostep.run("with feedback").feedback("thumbs_down", "why")
    small = picostep.run("small", "talk", start_time=FIRST, traceparent=PARENT).prompt("p", {"s": 1})
    small.status(0, "so far").metadata(k="v")
    large = picostep.run(start_time=FIRST).prompt("深" * 1000)
    print(large.run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        host = subprocess.run(
            [sys.executable, __file__, "--record"],
            env={
                "PICOSTEP_DIR": directory,
                "PICOSTEP_TO": "stdout",
                "PICOSTEP_EXPORTER": "off",
                "PICOSTEP_RING_BYTES": str(1 << 18),
            },
            stdout=subprocess.PIPE,
        )
        assert host.returncode == -signal.SIGKILL
        (ring,) = Path(directory).rglob("*.ring")
        Path(sys.argv[1]).write_bytes(lzma.compress(ring.read_bytes()))
        print("the id of the large run:", host.stdout.decode())


if __name__ == "__main__":
    record() if sys.argv[1] == "--record" else main()
