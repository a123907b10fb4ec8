"""Sends runs, steps and tool calls as traces to any receiver of OTLP over HTTP."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Protocol

from picostep import __version__
from picostep.errors import ConfigError
from picostep.export.payload import encode_each
from picostep.sinks import Refused, RetryLater, Undelivered, spans_json
from picostep.sinks.http import HEADERS, Client, checked_url, judge
from picostep.sinks.spans import span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from picostep.config import Destination
    from picostep.export.payload import Record
    from picostep.sinks.spans import Span, Value

__all__ = ["OtlpSink"]

_NEVER = frozenset({400, 413, 422})
_OTHER_FORM = 415
_MOST_BYTES = 4_000_000  # of spans in a request: receivers take 4 MiB and more; a single span may be larger
_SCOPE = ("picostep", __version__)


class _Form(Protocol):
    """What the modules `spans_json` and `spans_protobuf` have in common."""

    @property
    def CONTENT_TYPE(self) -> str: ...

    def encode_span(self, made: Span) -> bytes: ...

    def request(
        self, encoded: Iterable[bytes], resource: Mapping[str, Value], scope: tuple[str, str]
    ) -> bytes: ...

    def rejected_spans(self, body: bytes) -> int: ...


class OtlpSink:
    """
    Posts spans as OTLP/JSON, or as protobuf where that is asked for or nothing else is taken.

    Feedback has no place in a trace and is left out. Headers and the URL are in no exception, log line or
    repr.

    Args:
        url: Whole endpoint.

        destination: With the rows of `picostep.otelenv.plain()`.

    Raises:
        ConfigError: The URL, the file of certificates or the protocol cannot be used.
    """

    def __init__(self, url: str, destination: Destination) -> None:
        rows = destination.otlp
        options = {row[0]: row[1] for row in rows}
        self._url = checked_url(url, "sink otlp")
        self._headers = {**HEADERS, **{row[1]: row[2] for row in rows if row[0] == "header"}}
        self._resource: dict[str, Value] = {
            "service.name": "unknown_service",
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": _SCOPE[0],
            "telemetry.sdk.version": _SCOPE[1],
            **{row[1]: row[2] for row in rows if row[0] == "resource"},
        }
        self._content = options.get("content") != "off"
        self._gzip = options.get("compression") == "gzip"
        self._form: _Form = spans_json
        if options.get("protocol") == "http/protobuf":
            protobuf = _protobuf()
            if protobuf is None:
                raise ConfigError("sink otlp: http/protobuf needs opentelemetry-proto: picostep[otlp]")
            self._form = protobuf
        timeout = options.get("timeout")
        self._client = Client(float(timeout) if timeout else None, options.get("certificate"))

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        """
        Post the spans of the records in their order.

        Returns:
            What could not be encoded; and as many as the receiver said it has refused.

        Raises:
            RetryLater: No answer, or one that may change: 408, 429 and 5xx with their Retry-After, and all
                others. `delivered` counts what earlier requests of the same call have brought over.

            Rejected: 400, 413 or 422, likewise.
        """
        try:
            return self._deliver(records)
        except _TakesProtobuf as said:
            self._form = said.form
            return self._deliver(records)

    def close(self) -> None:
        self._client.close()

    def _deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        not_taken: dict[int, str] = {}
        for indices, spans in self._requests(records, not_taken):
            try:
                rejected = self._post(spans)
            except Undelivered as said:
                said.delivered = indices[0]
                said.unencodable = {index: why for index, why in not_taken.items() if index < indices[0]}
                raise
            if rejected:
                why = Refused("partial success", known=rejected == len(indices))
                not_taken.update(dict.fromkeys(indices[-rejected:], why))
        return not_taken

    def _requests(
        self, records: Sequence[Record], unencodable: dict[int, str]
    ) -> Iterator[tuple[list[int], list[bytes]]]:
        """Yield the indices of the records and the encoded spans of each request."""
        indices: list[int] = []
        spans: list[bytes] = []
        size = 0
        for index, encoded in encode_each(records, self._encode, unencodable).items():
            if not encoded:
                continue
            if spans and size + len(encoded) > _MOST_BYTES:
                yield indices, spans
                indices, spans, size = [], [], 0
            indices.append(index)
            spans.append(encoded)
            size += len(encoded)
        if spans:
            yield indices, spans

    def _encode(self, record: Record) -> bytes:
        """Return the span of a record; b"" for a feedback."""
        return b"" if record["kind"] == "feedback" else self._form.encode_span(span(record, self._content))

    def _post(self, spans: Sequence[bytes]) -> int:
        """Return how many of the spans were refused, by an answer that says that the others were taken."""
        body = self._form.request(spans, self._resource, _SCOPE)
        headers = {**self._headers, "Content-Type": self._form.CONTENT_TYPE}
        if self._gzip:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, 1, mtime=0)
        answer = self._client.post(self._url, headers, body)
        if answer.status == _OTHER_FORM and self._form is spans_json:
            protobuf = _protobuf()
            if protobuf is None:
                raise RetryLater("http 415, and protobuf needs picostep[otlp]")
            raise _TakesProtobuf(protobuf)
        judge(answer, _NEVER)
        try:
            rejected = self._form.rejected_spans(answer.body)
        except Exception:  # no answer of OTLP, but the status is one
            return 0
        return min(max(rejected, 0), len(spans))


class _TakesProtobuf(Exception):
    """The receiver does not take JSON."""

    def __init__(self, form: _Form) -> None:
        super().__init__()
        self.form = form


def _protobuf() -> _Form | None:
    """Return that form, or None where its library is not installed."""
    try:
        from picostep.sinks import spans_protobuf
    except ImportError:
        return None
    return spans_protobuf
