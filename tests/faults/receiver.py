"""
The ingest that the fault tests believe: a process of its own that is never faulted.

Run as `python receiver.py CONTROL_FD`. It says yes to every request, after it has written down what came in
it: batches of The Context Company's form, or spans as OTLP/JSON. Faults are put in front of it, by `proxy`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from workload import digest


class Arrival(NamedTuple):
    """One record that has arrived."""

    step_id: str
    digest: str
    connection: int
    request: int
    """Number of the request it came in, counted over all connections."""
    age: float
    """Seconds since its end."""


def arrivals(items: list[dict[str, Any]], connection: int, request: int) -> list[Arrival]:
    """Reduce a batch to what the oracle compares; what is no step gets an id that no ledger has."""
    now = time.time()
    return [
        Arrival(item["step_id"], digest(item), connection, request, now - _ended(item))
        if "step_id" in item
        else Arrival(f"not a step but a {item.get('type')}", "", connection, request, 0.0)
        for item in items
    ]


def _ended(item: Mapping[str, Any]) -> float:
    end = item["end_time"]
    if isinstance(end, str):
        end = datetime.fromisoformat(end.replace("Z", "+00:00")).timestamp()
    return float(end)


def items_of(body: bytes) -> list[dict[str, Any]]:
    """The objects in a body, whether it is one, a batch, or spans."""
    found = json.loads(body)
    if "resourceSpans" in found:
        return steps_of(found)
    return list(found["items"]) if found.get("type") == "batch" else [found]


# What a ledger's digest is made of, and the attribute of a span that has it.
ATTRIBUTES = {
    "step_id": "picostep.step_id",
    "run_id": "picostep.run_id",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "model_used": "gen_ai.response.model",
    "prompt": "input.value",
    "response": "output.value",
    "tool_definitions": "gen_ai.tool.definitions",
}


def steps_of(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the spans of an OTLP/JSON request were recorded as, as far as `digest` asks."""
    return [
        _step_of(span)
        for resource in request["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def _step_of(span: Mapping[str, Any]) -> dict[str, Any]:
    values = {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}
    step = {field: values[name] for field, name in ATTRIBUTES.items() if name in values}
    return {"type": span["name"], "end_time": int(span["endTimeUnixNano"]) / 1e9, **step}


class Receiver:
    """The process, seen from a test. Any thread may ask it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._control = Connection(ours.detach())
        self._asking = threading.Lock()
        self.port: int = self._control.recv()
        self.url = f"http://127.0.0.1:{self.port}"

    def take(self) -> list[Arrival]:
        """Return what has arrived since the last call, in order."""
        return [Arrival(*fields) for fields in self._ask("take")]

    def keys(self) -> set[str]:
        """Return all Authorization headers seen."""
        return set(self._ask("keys"))

    def count(self) -> int:
        """Return how many records have arrived in all."""
        return int(self._ask("count"))

    def stop(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _ask(self, what: str) -> Any:
        with self._asking:
            self._control.send(what)
            return self._control.recv()


# --- inside the process -----------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._lock = threading.Lock()
        self._arrived: list[tuple[Any, ...]] = []
        self._keys: set[str] = set()
        self._connections = self._requests = self._records = 0

    def connect(self) -> int:
        with self._lock:
            self._connections += 1
            return self._connections

    def receive(self, body: bytes, headers: Mapping[str, str], connection: int) -> None:
        items = items_of(body)
        with self._lock:
            self._requests += 1
            number = self._requests
            self._records += len(items)
            self._keys.add(headers.get("Authorization", ""))
        reduced = arrivals(items, connection, number)
        with self._lock:
            self._arrived += map(tuple, reduced)

    def answer(self, question: str) -> Any:
        with self._lock:
            if question == "take":
                taken, self._arrived = self._arrived, []
                return taken
            return self._records if question == "count" else list(self._keys)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.number = self.server.connect()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # its sender was killed: not a request
            self.close_connection = True
            return
        self.server.receive(body, self.headers, self.number)
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main(control_fd: int) -> None:
    server, control = _Server(), Connection(control_fd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    control.send(server.server_address[1])
    try:
        while True:
            control.send(server.answer(control.recv()))
    except (EOFError, OSError):  # the test is over, or was killed
        return


if __name__ == "__main__":
    main(int(sys.argv[1]))
