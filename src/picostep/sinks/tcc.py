"""Sends records to The Context Company's ingest over one keep-alive connection."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from picostep.errors import ConfigError
from picostep.payload import encode, encode_each, encode_priced
from picostep.settings.urls import checked_key, endpoint
from picostep.sinks import Undelivered
from picostep.sinks.http import HEADERS, Client, judge
from picostep.sinks.sizes import Sizes, shed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from picostep.record import Record
    from picostep.settings.destination import Destination

__all__ = ["TccSink"]

_NEVER = frozenset({400, 413, 422})
_NO_FEEDBACK = frozenset({404, 405, 410})  # a receiver that knows runs and steps only


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
        if not destination.api_key:
            raise ConfigError("sink tcc needs an API key: set TCC_API_KEY or pass api_key")
        self._headers = {
            **HEADERS,
            "Authorization": f"Bearer {checked_key(destination.api_key, 'api_key')}",
            "Content-Type": "application/json",
        }
        self._url = endpoint(destination.url, "the URL of sink tcc")
        self._feedback_url = endpoint(destination.feedback_url, "the URL for feedback of sink tcc")
        self._client = Client()
        self._sizes = Sizes("sink tcc")
        self._encode = encode_priced if destination.send_computed_cost else encode

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        """
        Post the records in their order.

        Raises:
            RetryLater: No answer, or one that may change: 408, 429 and 5xx with their Retry-After, and all
                others. `delivered` counts what earlier requests of the same call have brought over.

            Rejected: 400, 422, or 413 also without long texts; for feedback also 404, 405 or 410, so that a
                receiver that takes none does not hold up the steps. Likewise.
        """
        unencodable: dict[int, str] = {}
        for url, indices, encoded in self._requests(records, unencodable):
            send = partial(self._post, url)
            try:
                if len(indices) == 1:
                    self._sizes.send_one(self._forms(records[indices[0]], encoded[0]), send)
                else:
                    self._sizes.send_several(_batch(encoded), send)
            except Undelivered as said:
                first = indices[0]
                said.delivered = first
                said.unencodable = {index: why for index, why in unencodable.items() if index < first}
                raise
        return unencodable

    def close(self) -> None:
        self._client.close()

    def _post(self, url: str, body: bytes) -> None:
        reply = self._client.post(url, self._headers, body)
        judge(reply, _NEVER | _NO_FEEDBACK if url == self._feedback_url else _NEVER)

    def _requests(
        self, records: Sequence[Record], unencodable: dict[int, str]
    ) -> Iterator[tuple[str, list[int], list[bytes]]]:
        """Yield URL, indices of the records and their JSON of each request."""
        encoded = encode_each(records, self._encode, unencodable)
        for is_feedback, group in groupby(encoded, lambda index: records[index]["kind"] == "feedback"):
            if is_feedback:
                yield from ((self._feedback_url, [index], [encoded[index]]) for index in group)
            else:
                yield from self._batches(group, encoded)

    def _batches(
        self, group: Iterable[int], encoded: Mapping[int, bytes]
    ) -> Iterator[tuple[str, list[int], list[bytes]]]:
        indices: list[int] = []
        size = 0
        for index in group:
            if indices and size + len(encoded[index]) > self._sizes.most:
                yield self._url, indices, [encoded[each] for each in indices]
                indices, size = [], 0
            indices.append(index)
            size += len(encoded[index])
        yield self._url, indices, [encoded[each] for each in indices]

    def _forms(self, record: Record, encoded: bytes) -> Iterator[bytes]:
        """Yield the JSON of a record, then what is sent where that is too large."""
        yield encoded
        less = shed(record)
        if less is not None:
            yield self._encode(less)


def _batch(encoded: list[bytes]) -> bytes:
    return b'{"type":"batch","items":[' + b",".join(encoded) + b"]}"
