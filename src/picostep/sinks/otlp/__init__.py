"""Sends runs, steps and tool calls as traces to any receiver of OTLP over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from picostep.payload import encode_each
from picostep.settings.otel import rows_for
from picostep.settings.urls import endpoint
from picostep.sinks import Refused, Undelivered
from picostep.sinks.otlp import json
from picostep.sinks.otlp.http import MOST_BYTES, SCOPE, Receiver, TakesProtobuf
from picostep.sinks.otlp.spans import span
from picostep.sinks.sizes import Sizes, shed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from picostep.record import Record
    from picostep.settings.destination import Destination
    from picostep.sinks.otlp.spans import Span, Value

__all__ = ["OtlpSink"]


class _Form(Protocol):
    """What the modules `json` and `protobuf` have in common."""

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

        destination: With the rows of `picostep.settings.otel.rows_of()`.

    Raises:
        ConfigError: The URL, the file of certificates or the protocol cannot be used.
    """

    def __init__(self, url: str, destination: Destination) -> None:
        rows = rows_for(destination.otlp, f"otlp:{url}")
        self._receiver = Receiver(endpoint(url, "the URL of sink otlp"), rows, "sink otlp")
        self._content = ("content", "off") not in rows
        self._form = self._chosen_form()
        self._sizes = Sizes("sink otlp")

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        """
        Post the spans of the records in their order.

        Returns:
            What could not be encoded; and as many as the receiver said it has refused.

        Raises:
            RetryLater: No answer, or one that may change: 408, 429 and 5xx with their Retry-After, and all
                others. `delivered` counts what earlier requests of the same call have brought over.

            Rejected: 400, 422, or 413 also without long texts; likewise.
        """
        try:
            return self._deliver(records)
        except TakesProtobuf:
            self._form = self._chosen_form()
            return self._deliver(records)

    def close(self) -> None:
        self._receiver.close()

    def _chosen_form(self) -> _Form:
        if not self._receiver.protobuf:
            return json
        from picostep.sinks.otlp import protobuf

        return protobuf

    def _deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        not_taken: dict[int, str] = {}
        for indices, spans in self._requests(records, not_taken):
            try:
                if len(indices) == 1:
                    rejected = self._sizes.send_one(self._forms(records[indices[0]], spans[0]), self._post)
                else:
                    rejected = self._sizes.send_several(self._request(spans), self._post)
            except Undelivered as said:
                said.delivered = indices[0]
                said.unencodable = {index: why for index, why in not_taken.items() if index < indices[0]}
                raise
            if rejected:
                rejected = min(rejected, len(indices))
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
            if spans and size + len(encoded) > min(
                MOST_BYTES, self._sizes.most
            ):  # a single span may be larger
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

    def _forms(self, record: Record, encoded: bytes) -> Iterator[bytes]:
        """Yield the request for one span, then those for less of its record where that is too large."""
        yield self._request([encoded])
        lesser = [span(record, self._content, repeat=False)]
        less = shed(record)
        if less is not None:
            lesser.append(span(less, self._content))
        size = len(encoded)
        for made in lesser:
            form = self._form.encode_span(made)
            if len(form) < size:
                yield self._request([form])
                size = len(form)

    def _request(self, spans: Iterable[bytes]) -> bytes:
        return self._form.request(spans, self._receiver.resource, SCOPE)

    def _post(self, body: bytes) -> int:
        """Return how many of the spans were refused, by an answer that says that the others were taken."""
        answer = self._receiver.post(body)
        try:
            rejected = self._form.rejected_spans(answer)
        except Exception:  # no answer of OTLP, but the status is one
            return 0
        return max(rejected, 0)
