"""A receiver of OTLP over HTTP, whatever the signal: headers, compression, JSON or protobuf."""

from __future__ import annotations

import gzip
import logging
from typing import TYPE_CHECKING

from picostep import __version__
from picostep.errors import ConfigError
from picostep.sinks import RetryLater
from picostep.sinks.http import HEADERS, Client, judge

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from picostep.sinks.http import Reply

__all__ = ["MOST_BYTES", "SCOPE", "Receiver", "TakesProtobuf"]

MOST_BYTES = 4_000_000  # in a request before compression: receivers take 4 MiB and more
SCOPE = ("picostep", __version__)

_JSON, _PROTOBUF = "application/json", "application/x-protobuf"
_NEVER = frozenset({400, 413, 422})
_UNREAD = frozenset({400, 422})  # what a receiver may say that takes gzip for a broken body
_OTHER_FORM = 415

log = logging.getLogger(__name__)


class TakesProtobuf(Exception):
    """The receiver does not take JSON: to be encoded and posted again."""


class Receiver:
    """
    Where requests are posted. Headers and the URL are in no exception, log line or repr.

    Attributes:
        protobuf: Whether bodies must be protobuf instead of JSON.

        resource: Attributes of what sends.

    Args:
        url: Whole endpoint, which was checked.

        rows: From `picostep.settings.otel.otlp_rows()` or `rows_for()`.

        name: Whose it is, for messages.

        prefer_protobuf: Begin with protobuf where the rows leave that open, and its library is there.

    Raises:
        ConfigError: The file of certificates or the protocol cannot be used.
    """

    def __init__(
        self, url: str, rows: Iterable[Sequence[str]], name: str, *, prefer_protobuf: bool = False
    ) -> None:
        rows = list(rows)
        options = {row[0]: row[1] for row in rows}
        self._url = url
        self._headers = {**HEADERS, **{row[1]: row[2] for row in rows if row[0] == "header"}}
        self._name = name
        self._gzip = options.get("compression") == "gzip"
        self._unpacks = False  # whether the receiver has taken something compressed
        protocol = options.get("protocol")
        if ("protocol", "http/protobuf", "shared") in map(tuple, rows) and not _has_protobuf():
            log.warning("%s: sends JSON, as http/protobuf needs opentelemetry-proto: picostep[otlp]", name)
            protocol = None
        if protocol == "http/protobuf" and not _has_protobuf():
            raise ConfigError(f"{name}: http/protobuf needs opentelemetry-proto: picostep[otlp]")
        self.protobuf = protocol == "http/protobuf" or (
            protocol is None and prefer_protobuf and _has_protobuf()
        )
        self.resource: dict[str, str] = {
            "service.name": "unknown_service",
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": SCOPE[0],
            "telemetry.sdk.version": SCOPE[1],
            **{row[1]: row[2] for row in rows if row[0] == "resource"},
        }
        timeout = options.get("timeout")
        self._client = Client(float(timeout) if timeout else None, options.get("certificate"))

    def post(self, body: bytes) -> bytes:
        """
        Post a body in the form that `protobuf` says, compressed if that was asked for.

        A receiver that refuses what is compressed, and takes the same as it is, gets no more of it.

        Returns:
            The body of the answer, which was 2xx.

        Raises:
            TakesProtobuf: 415 to JSON; `protobuf` is True from now on.

            RetryLater: No answer, or one that may change: 408, 429 and 5xx with their Retry-After, and all
                others.

            Rejected: 400, 413 or 422.
        """
        reply = self._reply(body, packed=self._gzip)
        if self._gzip and (reply.status == _OTHER_FORM or (reply.status in _UNREAD and not self._unpacks)):
            plain = self._reply(body, packed=False)
            if 200 <= plain.status < 300:
                self._gzip = False
                log.warning("%s: http %d to gzip: sends uncompressed", self._name, reply.status)
            if plain.status != _OTHER_FORM:
                reply = plain
        elif self._gzip and 200 <= reply.status < 300:
            self._unpacks = True
        if reply.status == _OTHER_FORM and not self.protobuf:
            if not _has_protobuf():
                raise RetryLater("http 415, and protobuf needs picostep[otlp]")
            self.protobuf = True
            raise TakesProtobuf
        judge(reply, _NEVER)
        return reply.body

    def _reply(self, body: bytes, *, packed: bool) -> Reply:
        headers = {**self._headers, "Content-Type": _PROTOBUF if self.protobuf else _JSON}
        if packed:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, 1, mtime=0)
        return self._client.post(self._url, headers, body)

    def close(self) -> None:
        self._client.close()


def _has_protobuf() -> bool:
    try:
        import opentelemetry.proto.common.v1.common_pb2  # noqa: F401
    except ImportError:
        return False
    return True
