"""Serves metrics to whoever scrapes them, on this machine only."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any

from picostep.errors import ConfigError
from picostep.metrics.text import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Server"]

_HOST = "127.0.0.1"
_MOST_CONNECTIONS = 16  # at a time
_LONGEST = 5.0  # seconds for one scrape
_FRESH = 0.25  # seconds for which a text is served again: scrapers cannot make us busy


class Server:
    """
    Answers `GET /metrics`, in threads of its own: a few at a time, and each for a few seconds at most.

    Args:
        port: Of 127.0.0.1.

        collect: Returns the text.

    Raises:
        ConfigError: The port cannot be used.
    """

    def __init__(self, port: int, collect: Callable[[], bytes]) -> None:
        try:
            self._server = _Listener(port, _Cache(collect))
        except OSError as error:
            raise ConfigError(f"--metrics: port {port} of {_HOST}: {error.strerror}") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="picostep-scrapes", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Cache:
    """Calls a function at most every _FRESH seconds, one caller at a time."""

    def __init__(self, collect: Callable[[], bytes]) -> None:
        self._collect = collect
        self._lock = threading.Lock()
        self._text = b""
        self._until = 0.0

    def __call__(self) -> bytes:
        with self._lock:
            if time.monotonic() >= self._until:
                self._text = self._collect()
                self._until = time.monotonic() + _FRESH
            return self._text


class _Listener(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    block_on_close = False

    def __init__(self, port: int, collect: Callable[[], bytes]) -> None:
        self.collect = collect
        self._since: dict[socket.socket, float] = {}
        super().__init__((_HOST, port), _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self._since) < _MOST_CONNECTIONS  # else it is closed

    def process_request(self, request: Any, client_address: Any) -> None:
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End what takes too long; called twice a second."""
        too_old = time.monotonic() - _LONGEST
        for connection, since in list(self._since.items()):
            if since < too_old:
                with suppress(OSError):  # its thread was faster
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a scraper that went away, or was sent away


class _Handler(BaseHTTPRequestHandler):
    server: _Listener

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        body = self.server.collect()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
