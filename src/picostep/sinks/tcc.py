"""Sends records to The Context Company's ingest over one keep-alive connection."""

from __future__ import annotations

import errno
import logging
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from itertools import groupby
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3 import exceptions

from picostep.errors import ConfigError
from picostep.export.payload import encode, encode_each, encode_priced
from picostep.sinks import Rejected, RetryLater, Undelivered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from picostep.config import Destination
    from picostep.export.payload import Record

__all__ = ["TccSink"]

_TIMEOUT = urllib3.Timeout(connect=5.0, read=10.0)
_LONGEST_ANSWER = 64 * 1024  # bytes that are read of a response to keep its connection
_ANSWER_DEADLINE = 10.0  # seconds for the same

_NEVER = frozenset({400, 413, 422})
_NO_FEEDBACK = frozenset({404, 405, 410})  # a receiver that knows runs and steps only
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


class TccSink:
    """
    Posts steps, runs and tool calls as one batch, and feedback one by one.

    A 2xx alone is success: redirects are not followed, certificates always checked. The key and the URLs are
    in no exception, log line or repr.

    Args:
        destination: With key and both URLs.

    Raises:
        ConfigError: The key or a URL is missing or cannot be used.
    """

    def __init__(self, destination: Destination) -> None:
        self._client = _Client(_checked_key(destination.api_key))
        self._url = _checked_url(destination.url)
        self._feedback_url = _checked_url(destination.feedback_url)
        self._encode = encode_priced if destination.send_computed_cost else encode

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        """
        Post the records in their order.

        Raises:
            RetryLater: No answer, or one that may change: 408, 429 and 5xx with their Retry-After, and all
                others. `delivered` counts what earlier requests of the same call have brought over.

            Rejected: 400, 413 or 422; for feedback also 404, 405 or 410, so that a receiver that takes none
                does not hold up the steps. Likewise.
        """
        unencodable: dict[int, str] = {}
        for first, url, body in self._requests(records, unencodable):
            try:
                self._client.post(url, body, _NEVER | _NO_FEEDBACK if url == self._feedback_url else _NEVER)
            except Undelivered as answer:
                answer.delivered = first
                answer.unencodable = {index: why for index, why in unencodable.items() if index < first}
                raise
        return unencodable

    def close(self) -> None:
        self._client.close()

    def _requests(
        self, records: Sequence[Record], unencodable: dict[int, str]
    ) -> Iterator[tuple[int, str, bytes]]:
        """Yield index of the first record, URL and body of each request."""
        encoded = encode_each(records, self._encode, unencodable)
        for is_feedback, group in groupby(encoded, lambda index: records[index]["kind"] == "feedback"):
            indices = list(group)
            if is_feedback:
                yield from ((index, self._feedback_url, encoded[index]) for index in indices)
            else:
                yield indices[0], self._url, _body([encoded[index] for index in indices])


class _Client:
    """POSTs JSON with a bearer key, one request at a time."""

    def __init__(self, key: str) -> None:
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "picostep",
        }
        self._managers: dict[str | None, urllib3.PoolManager] = {}

    def post(self, url: str, body: bytes, never: frozenset[int]) -> None:
        """Return on 2xx; raises Rejected for a status of `never`, RetryLater for the others."""
        failure = None
        try:
            with _urllib3_muted():
                response = self._manager(url).request(
                    "POST",
                    url,
                    body=body,
                    headers=self._headers,
                    timeout=_TIMEOUT,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                )
                _finish(response)
        except (exceptions.HTTPError, OSError) as error:
            failure = _describe(error)
        # Raised out here: the exception above names the URL, and would be the context of this one.
        if failure is not None:
            raise RetryLater(failure)
        _judge(response, never)

    def close(self) -> None:
        for manager in self._managers.values():
            manager.clear()

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy_for(url)
        if proxy not in self._managers:
            self._managers[proxy] = _new_manager(proxy)
        return self._managers[proxy]


def _body(encoded: list[bytes]) -> bytes:
    if len(encoded) == 1:
        return encoded[0]
    return b'{"type":"batch","items":[' + b",".join(encoded) + b"]}"


def _finish(response: urllib3.BaseHTTPResponse) -> None:
    """
    Read the body, which means nothing to us, as far as it takes to keep the connection; else close that.
    """
    received = 0
    deadline = time.monotonic() + _ANSWER_DEADLINE
    try:
        while received <= _LONGEST_ANSWER and time.monotonic() < deadline:
            part = response.read1(_LONGEST_ANSWER, decode_content=False)
            if not part:
                response.release_conn()
                return
            received += len(part)
    except (exceptions.HTTPError, OSError):
        pass  # the status line was there, and it counts
    response.close()


def _judge(response: urllib3.BaseHTTPResponse, never: frozenset[int]) -> None:
    status = response.status
    if 200 <= status < 300:
        return
    if status in never:
        raise Rejected(f"http {status}")
    after = _retry_after(response.headers.get("Retry-After", "")) if status in _BUSY else None
    raise RetryLater(f"http {status}", after)


def _retry_after(text: str) -> float | None:
    """Return the seconds of a Retry-After header, which are a number or a date; None if neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), RetryLater.LONGEST)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError):  # TypeError: Python 3.10 with some malformed dates
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


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


def _checked_key(key: str | None) -> str:
    if not key:
        raise ConfigError("sink tcc needs an API key: set TCC_API_KEY or pass api_key")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            "the API key (TCC_API_KEY or api_key) holds characters that an HTTP header cannot carry, "
            "such as a line break"
        )
    return key


def _checked_url(url: str | None) -> str:
    try:
        parts = urllib3.util.parse_url(url or "")
    except exceptions.LocationParseError:
        parts = urllib3.util.Url()
    if url is None or parts.scheme not in ("http", "https") or not parts.host:
        raise ConfigError("sink tcc needs http(s) URLs for records and for feedback")
    return url


def _proxy_for(url: str) -> str | None:
    """Return the URL of the proxy that the environment names for a URL; never one for this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_loopback(host) or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _new_manager(proxy: str | None) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(maxsize=1, cert_reqs="CERT_REQUIRED")
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    headers = None
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=login)
    return urllib3.ProxyManager(parts.geturl(), proxy_headers=headers, maxsize=1, cert_reqs="CERT_REQUIRED")


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
