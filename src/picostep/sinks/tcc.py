"""Sends records to The Context Company's ingest over one keep-alive connection."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from picostep.errors import ConfigError
from picostep.payload import encode, encode_each, encode_priced
from picostep.settings.urls import checked_key, endpoint
from picostep.sinks import Undelivered
from picostep.sinks.http import HEADERS, Client, judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
                reply = self._client.post(url, self._headers, body)
                judge(reply, _NEVER | _NO_FEEDBACK if url == self._feedback_url else _NEVER)
            except Undelivered as said:
                said.delivered = first
                said.unencodable = {index: why for index, why in unencodable.items() if index < first}
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


def _body(encoded: list[bytes]) -> bytes:
    if len(encoded) == 1:
        return encoded[0]
    return b'{"type":"batch","items":[' + b",".join(encoded) + b"]}"
