"""
The loopback server that all peers deliver to, as a process: it keeps what is posted and says what it was.

It is the ingest of the tests (tests/support.py). While steps are timed it stores bodies and nothing else;
they are read when the driver asks. See lines.py for the protocol; `port` and `take` are the commands.
"""

from __future__ import annotations

import json
import time
from typing import Any

from peers import lines, wire
from peers.records import Record, audit
from support import Ingest, Reply, Request
from texts import Texts

DEADLINE = 10.0  # seconds for what a peer's flush said was handed over

# What LangSmith's and MLflow's servers say that they can do, and what Logfire's says of a token.
ANSWERS = {
    "/info": json.dumps(
        {
            "version": "0.10",
            "instance_flags": {"zstd_compression_enabled": True},
            "batch_ingest_config": {
                "use_multipart_endpoint": True,
                "scale_up_qsize_trigger": 1000,
                "scale_up_nthreads_limit": 16,
                "scale_down_nempty_trigger": 4,
                "size_limit": 100,
                "size_limit_bytes": 20_971_520,
            },
        }
    ).encode(),
    "/version": b"3.17.2",
    "/v1/info": b'{"project_name": "benchmark", "project_url": "http://127.0.0.1/"}',
}
MLFLOW_TRACES = "/api/3.0/mlflow/traces"


def answer(request: Request) -> Reply:
    if request.path == MLFLOW_TRACES:  # it gives back the trace, and says that spans are taken as OTLP
        sent = request.json()
        sent["trace"]["trace_info"].setdefault("tags", {})["mlflow.trace.spansLocation"] = "TRACKING_STORE"
        return Reply(body=json.dumps(sent).encode())
    return Reply(body=ANSWERS.get(request.path, b"{}"))


class Server:
    def __init__(self, ingest: Ingest) -> None:
        self.ingest = ingest
        self.readers = wire.readers()

    def port(self) -> int:
        return self.ingest.port

    def take(self, size: str, steps: int) -> dict[str, Any]:
        """Return what arrived since the last call, as soon as there are so many steps, or at the deadline."""
        requests = sent = 0
        records: list[Record] = []
        deadline = time.monotonic() + DEADLINE
        while True:
            for request in self.ingest.take():
                requests += 1
                sent += len(request.body)
                if request.method == "POST" and request.path in self.readers:
                    body = wire.decompressed(request.body, request.headers.get("content-encoding"))
                    records += self.readers[request.path](body)
            found = audit(records, Texts.of(size, "ascii"))
            if found["steps"] >= steps or time.monotonic() > deadline:
                return {**found, "requests": requests, "bytes": sent}
            time.sleep(0.02)


def main() -> None:
    with Ingest() as ingest:
        ingest.default = answer
        server = Server(ingest)
        lines.serve({"port": server.port, "take": server.take})


if __name__ == "__main__":
    main()
