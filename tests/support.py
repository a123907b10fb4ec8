"""What the tests share: a real ingest server, ring directories, deadlines, subprocesses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

OURS = ("TCC_", "PICOSTEP_", "OTEL_")

BUSY = 4
"""Deadlines are those of a quiet machine; as many times as long is waited, in case that others work there."""


def wait_until(predicate: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """Return the first true result of `predicate`; fail when there is none within `timeout` quiet seconds."""
    deadline = time.monotonic() + BUSY * timeout
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise AssertionError(
                f"not within {timeout} s: {what or getattr(predicate, '__name__', predicate)}"
            )
        time.sleep(0.005)


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- an ingest that is real as far as the network goes ----------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    connection: int
    """Number of the TCP connection it came through, from 0."""
    at: float
    """`time.monotonic()` when the body was complete."""

    def json(self) -> Any:
        return json.loads(self.body)

    def items(self) -> list[dict[str, Any]]:
        """The objects in the body, whether it is one or a batch."""
        body = self.json()
        return list(body["items"]) if body.get("type") == "batch" else [body]


@dataclass
class Reply:
    """How to answer one request."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before the answer."""
    hang: threading.Event | None = None
    """Answer when this is set (or the server stops), not before."""
    drop: bool = False
    """Close the connection instead of answering."""


class Ingest:
    """
    A threaded HTTP/1.1 server on 127.0.0.1 that keeps what it is sent.

    Replies come from `script()` first, one per request, then from `default`, which may be a function of the
    request.
    """

    def __init__(self, port: int = 0) -> None:
        self.default: Reply | Callable[[Request], Reply] = Reply()
        self._requests: list[Request] = []
        self._script: deque[Reply] = deque()
        self._changed = threading.Condition()
        self._connections: set[socket.socket] = set()
        self._opened = 0
        self._stopping = threading.Event()
        self._server = _Server(self, port)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="ingest")
        self._thread.start()

    @property
    def requests(self) -> list[Request]:
        """What has arrived so far, in order of arrival."""
        with self._changed:
            return list(self._requests)

    def items(self) -> list[dict[str, Any]]:
        """Everything that has arrived so far, batches taken apart."""
        return [item for request in self.requests for item in request.items()]

    def take(self) -> list[Request]:
        """Return what has arrived, and forget it."""
        with self._changed:
            taken, self._requests = self._requests, []
            return taken

    def script(self, *replies: Reply) -> None:
        """Answer the next requests with these, one each."""
        with self._changed:
            self._script.extend(replies)

    def wait_for(self, count: int, timeout: float = 10.0) -> list[Request]:
        """Return the requests as soon as there are `count`; fail after `timeout` quiet seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, BUSY * timeout):
                raise AssertionError(f"{len(self._requests)} of {count} requests within {timeout} s")
            return list(self._requests)

    def wait_for_items(self, count: int, timeout: float = 10.0) -> list[dict[str, Any]]:
        """Return the items as soon as there are `count`; fail if there are not within `timeout` seconds."""
        wait_until(lambda: len(self.items()) >= count, timeout, f"{count} items")
        return self.items()

    def stop(self) -> None:
        """Close everything and join every thread. A second call does nothing."""
        self._stopping.set()
        self._server.shutdown()
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _open(self, connection: socket.socket) -> int:
        with self._changed:
            self._connections.add(connection)
            self._opened += 1
            return self._opened - 1

    def _close(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.discard(connection)

    def _receive(self, request: Request) -> Reply:
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()
            if self._script:
                return self._script.popleft()
        return self.default(request) if callable(self.default) else self.default

    def _hold(self, reply: Reply) -> bool:
        """Wait as the reply says; False if the server stops meanwhile."""
        if reply.delay:
            self._stopping.wait(reply.delay)
        while reply.hang is not None and not self._stopping.is_set():
            if reply.hang.wait(0.01):
                break
        return not self._stopping.is_set()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close() joins them
    request_queue_size = 128

    def __init__(self, ingest: Ingest, port: int) -> None:
        self.ingest = ingest
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that goes away is no fault of the server
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one segment
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.number = self.server.ingest._open(self.connection)

    def finish(self) -> None:
        self.server.ingest._close(self.connection)
        with suppress(OSError):
            super().finish()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # its sender was killed: not a request
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        assert self.command
        request = Request(self.command, self.path, headers, body, self.number, time.monotonic())
        reply = self.server.ingest._receive(request)
        if not self.server.ingest._hold(reply) or reply.drop:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)
        self.wfile.flush()

    do_POST = do_GET = do_PUT = do_HEAD = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def talkative(answer: bytes, drip: bytes = b"", context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that says the same to everyone, then more and more of `drip`, and hangs up."""
    stop = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = server.accept()
                with connection:
                    answer_one(connection)
            except OSError:
                pass

    def answer_one(connection: socket.socket) -> None:
        connection.settimeout(5)
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True)
        received = connection.recv(65536)
        while received.startswith(b"POST") and not complete(received):
            received += connection.recv(65536)
        connection.sendall(answer)
        while drip and not stop.wait(0.02):
            connection.sendall(drip)
        connection.close()

    def complete(request: bytes) -> bool:
        head, separator, body = request.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
        return bool(separator) and len(body) >= int(length)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        stop.set()
        with socket.create_connection(server.getsockname()):
            pass
        thread.join(10)
        server.close()


# --- directories of rings ---------------------------------------------------------------------------------


@contextmanager
def ring_directory() -> Iterator[Path]:
    """A directory for rings, in shared memory where there is some; ends its exporters and removes it."""
    shared = "/dev/shm" if sys.platform == "linux" and os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="picostep-test-", dir=shared))
    try:
        yield path
    finally:
        kill_exporters(path)
        shutil.rmtree(path, ignore_errors=True)


def exporters(base: Path) -> list[int]:
    """Return the pids of other processes that have a lock file below `base` open (found on Linux only)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):  # it ended, or is not ours
            for descriptor in (process / "fd").iterdir():
                target = os.readlink(descriptor)
                if target.startswith(f"{base}/") and target.endswith("/lock"):
                    found.append(int(process.name))
                    break
    return found


def kill_exporters(base: Path, timeout: float = 10.0) -> None:
    """End the exporters of a directory the hard way, and wait until they are gone."""

    def none_left() -> bool:
        left = exporters(base)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_until(none_left, timeout, f"exporters of {base} gone")


# --- subprocesses -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """How a subprocess ended."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


def clean_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without settings of ours, and with `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, **variables}


def run_python(
    code: str,
    env: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    *,
    args: tuple[str, ...] = (),
    check: bool = True,
) -> Finished:
    """
    Run Python code in a process of its own.

    Its output goes to files, not pipes, so that a process it leaves behind cannot keep this one waiting.

    Args:
        code: What to run.

        env: Added to the environment, from which settings of ours are taken out first.

        timeout: Quiet seconds after which it is killed and the test fails.

        args: `sys.argv[1:]` of the code.

        check: Fail the test, showing what was written to stderr, if the exit code is not 0.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", code, *args],
            env=clean_environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            code_returned = process.wait(BUSY * timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code_returned = None
        seconds = time.monotonic() - start
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    if code_returned is None:
        raise AssertionError(f"still running after {timeout} s; stdout: {stdout}; stderr: {stderr}")
    if check and code_returned != 0:
        raise AssertionError(f"exit code {code_returned}; stdout: {stdout}; stderr: {stderr}")
    return Finished(code_returned, stdout, stderr, seconds)
