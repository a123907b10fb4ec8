"""The HTTP client of the sinks: one request at a time over a keep-alive connection, and what answers mean."""

from __future__ import annotations

import errno
import http.client
import io
import logging
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from os import environ
from os.path import isdir
from socket import inet_aton
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3 import connection, exceptions

from picostep.errors import ConfigError
from picostep.sinks import Rejected, RetryLater

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from _typeshed import WriteableBuffer

__all__ = ["HEADERS", "Client", "Reply", "TooLarge", "judge"]

HEADERS = {"Accept-Encoding": "identity", "User-Agent": "picostep"}

_CONNECT_TIMEOUT = 5.0  # seconds
_READ_TIMEOUT = 10.0
_LONGEST_ANSWER = 64 * 1024  # bytes that are read of a response

_TOO_LARGE = 413
_BUSY = frozenset({408, 429, *range(500, 600)})

# The first that fits.
_FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.NameResolutionError, "host not found"),
    (exceptions.NewConnectionError, "connect failed"),
    (exceptions.ConnectTimeoutError, "connect timeout"),
    (exceptions.ReadTimeoutError, "read timeout"),
    (exceptions.SSLError, "tls failed"),
    (exceptions.ProxyError, "proxy failed"),
    (Exception, "connection lost"),
)


class TooLarge(Rejected):
    """Raised for a 413: less may be taken."""


class Reply(NamedTuple):
    """
    What a server answered.

    Attributes:
        after: Seconds by Retry-After, or None.

        body: As it came; b"" unless all of it was read.
    """

    status: int
    after: float | None
    body: bytes


class Client:
    """
    POSTs bodies. Redirects are not followed, certificates always checked.

    Args:
        timeout: Longest wait for a connection, and then for the whole answer, in seconds; None: 5 and 10.

        authorities: Name of a file of certificates in PEM that are trusted instead of others; None: those
            that REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names, a file or a directory, else the system's.

    Raises:
        ConfigError: That file cannot be used.
    """

    def __init__(self, timeout: float | None = None, authorities: str | None = None) -> None:
        self._timeout = urllib3.Timeout(connect=timeout or _CONNECT_TIMEOUT, read=timeout or _READ_TIMEOUT)
        self._authorities = authorities
        self._managers: dict[tuple[str | None, str | None], urllib3.PoolManager] = {}
        if authorities is not None:
            _check_authorities(authorities)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Return the answer, whatever its status; raises RetryLater when there is none."""
        failure = None
        try:
            with _urllib3_muted():
                manager = self._manager(url)
        except ValueError:  # also urllib3's, for another scheme than it knows
            failure = "the proxy's URL cannot be used"
        if failure is not None:  # as below
            raise RetryLater(failure)
        try:
            with _urllib3_muted():
                response = manager.request(
                    "POST",
                    url,
                    body=body,
                    headers=headers,
                    timeout=self._timeout,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                )
                received = _finish(response)
        except (exceptions.HTTPError, OSError) as error:
            failure = _describe(error)
        # Raised out here: the exception above names the URL, and would be the context of this one.
        if failure is not None:
            raise RetryLater(failure)
        return Reply(response.status, _retry_after(response.headers.getlist("Retry-After")), received)

    def close(self) -> None:
        for manager in self._managers.values():
            manager.clear()

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy, authorities = _proxy_for(url), self._authorities or _trusted_by_environment()
        if (proxy, authorities) not in self._managers:
            self._managers[proxy, authorities] = _new_manager(proxy, authorities)
        return self._managers[proxy, authorities]


def judge(reply: Reply, never: frozenset[int]) -> None:
    """Return for a 2xx; raises Rejected for a status of `never` (413: TooLarge), RetryLater for others."""
    if 200 <= reply.status < 300:
        return
    if reply.status in never:
        raise (TooLarge if reply.status == _TOO_LARGE else Rejected)(f"http {reply.status}")
    raise RetryLater(f"http {reply.status}", reply.after if reply.status in _BUSY else None)


def _finish(response: urllib3.BaseHTTPResponse) -> bytes:
    """Return the body, and keep the connection; where it is too long or too slow, close that, return b""."""
    received = b""
    try:
        while len(received) <= _LONGEST_ANSWER:
            part = response.read1(_LONGEST_ANSWER, decode_content=False)
            if not part:
                response.release_conn()
                return received
            received += part
    except (exceptions.HTTPError, OSError):
        pass  # the status line was there, and it counts
    response.close()
    return b""


def _retry_after(headers: Iterable[str]) -> float | None:
    """Return the seconds that Retry-After headers ask for, at most 300; None if that cannot be read."""
    # Proxies join headers with commas, which dates have, too: what stands before theirs is not needed.
    asked = [_seconds(part.strip()) for header in headers for part in header.split(",")]
    return max((seconds for seconds in asked if seconds is not None), default=None)


def _seconds(text: str) -> float | None:
    """Return the seconds that a number says, or that are left until a date."""
    if text.isascii() and text.isdigit():
        return min(float(text), RetryLater.LONGEST)
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=timezone.utc)
        left = (date - datetime.now(timezone.utc)).total_seconds()
    except Exception:  # by the version of Python, its readers of dates raise this and that for a strange one
        return None
    return min(max(0.0, left), RetryLater.LONGEST)


def _describe(error: Exception) -> str:
    """Say what went wrong, without host or URL."""
    text = next(text for kind, text in _FAILURES if isinstance(error, kind))
    detail = _detail(error)
    return f"{text}: {detail}" if detail else text


def _detail(error: BaseException) -> str | None:
    """The system's or OpenSSL's name of the first cause ("ECONNREFUSED", "CERTIFICATE_VERIFY_FAILED")."""
    cause: object = error
    while isinstance(cause, BaseException):
        reason = getattr(cause, "reason", None)
        if isinstance(reason, str):
            return reason
        if isinstance(cause, OSError) and cause.errno is not None:
            return errno.errorcode.get(cause.errno)
        cause = cause.__cause__ or next((arg for arg in cause.args if isinstance(arg, BaseException)), None)
    return None


def _check_authorities(path: str) -> None:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:  # what is not PEM raises one, too
        reason = errno.errorcode.get(error.errno or 0) if not isinstance(error, ssl.SSLError) else "not PEM"
        raise ConfigError(f"the file of certificates {path!r} cannot be used: {reason}") from None


def _trusted_by_environment() -> str | None:
    """Return the file or directory of certificates that requests would trust; None for the system's."""
    return environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE") or None


def _proxy_for(url: str) -> str | None:
    """Return the URL of the proxy that the environment names for a URL; never one for this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_loopback(host) or _is_direct(host, parts.port):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _is_direct(host: str, port: int | None) -> bool:
    """
    Return whether NO_PROXY or the system exempts a host from proxies.

    That is read as requests reads it, which the SDK of The Context Company sends with; other programs read
    networks and ports in it otherwise, or not at all.
    """
    given = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    names = [name for name in given.replace(" ", "").split(",") if name]
    address = _ipv4(host)
    if address is not None:
        named = any(name == host or _is_network_of(address, name) for name in names)
    else:
        forms = (host, f"{host}:{port}") if port else (host,)
        bare = [name.lstrip(".") for name in names]
        named = any(form == name or form.endswith(f".{name}") for name in bare for form in forms)
    if named:
        return True
    try:
        return bool(proxy_bypass(host))
    except (TypeError, OSError):  # of macOS and Windows, where the system's settings count, too
        return False


def _ipv4(text: str) -> int | None:
    try:
        return int.from_bytes(inet_aton(text), "big")
    except OSError:
        return None


def _is_network_of(address: int, name: str) -> bool:
    """Return whether a name is `ADDRESS/BITS` of IPv4, with 1 to 32 bits, and an address is in that."""
    first, _, bits = name.partition("/")
    network = _ipv4(first)
    try:
        count = int(bits)
    except ValueError:
        return False
    return network is not None and 1 <= count <= 32 and (network ^ address) >> (32 - count) == 0


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _new_manager(proxy: str | None, authorities: str | None) -> urllib3.PoolManager:
    options: dict[str, Any] = {"maxsize": 1, "cert_reqs": "CERT_REQUIRED"}
    if authorities is not None:
        options["ca_cert_dir" if isdir(authorities) else "ca_certs"] = authorities
    if proxy is None:
        manager = urllib3.PoolManager(**options)
    else:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        headers = None
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers = urllib3.make_headers(proxy_basic_auth=login)
        manager = urllib3.ProxyManager(parts.geturl(), proxy_headers=headers, **options)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return manager


# --- answers within a deadline: urllib3 and http.client have one for each read only -------------------------


class _InTime(io.RawIOBase):
    """What a socket receives within its timeout from now: that holds for all of it, not for each part."""

    def __init__(self, sock: socket.socket) -> None:
        timeout = sock.gettimeout()
        assert timeout is not None  # each `Client` has one
        self._raw = sock.makefile("rb", buffering=0)
        self._socket = sock
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
        try:
            return self._raw.readinto(buffer)
        finally:
            self._socket.settimeout(self._timeout)  # the next request is sent within it

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_InTime(sock))


class _Connection(connection.HTTPConnection):
    response_class = _Response


class _TlsConnection(connection.HTTPSConnection):
    response_class = _Response


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


@contextmanager
def _urllib3_muted() -> Iterator[None]:
    """
    Keep urllib3 from logging URLs while this thread uses it; other users of the library are not affected.
    """
    this_thread = threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != this_thread

    loggers = [
        logging.getLogger(f"urllib3.{name}") for name in ("connection", "connectionpool", "poolmanager")
    ]
    for logger in loggers:
        logger.addFilter(from_elsewhere)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(from_elsewhere)
