"""Metrics pushed to a receiver of OTLP over HTTP, now and then and once at the end."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson

from picostep.metrics.text import decimal
from picostep.sinks import Undelivered
from picostep.sinks.otlp.http import MOST_BYTES, SCOPE, Receiver, TakesProtobuf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from picostep.metrics.aggregate import Snapshot
    from picostep.metrics.families import Family, Point

__all__ = ["Pusher", "requests"]

_CUMULATIVE = 2  # AggregationTemporality
_MOST = 2**63 - 1

# Labels as attributes, by the GenAI conventions where they have one.
_ATTRIBUTES = {
    "model_requested": "gen_ai.request.model",
    "model_used": "gen_ai.response.model",
    "provider": "gen_ai.provider.name",
    "finish_reason": "picostep.finish_reason",
    "status": "picostep.status",
    "kind": "picostep.token.kind",
    "type": "gen_ai.token.type",
    "reason": "picostep.reason",
}

log = logging.getLogger(__name__)


def requests(
    families: Iterable[Family], snapshot: Snapshot, resource: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield the bodies of as many requests as it takes, in the JSON form of OTLP."""
    metrics: list[dict[str, Any]] = []
    size = 0
    for family in families:
        metric = _metric(family, snapshot)
        own_size = len(orjson.dumps(metric))
        if metrics and size + own_size > MOST_BYTES:
            yield _request(metrics, resource)
            metrics, size = [], 0
        metrics.append(metric)
        size += own_size
    yield _request(metrics, resource)


class Pusher:
    """
    Posts what `collect` returns, in a thread of its own. A push that fails is superseded by the next.

    Args:
        receiver: Is closed at the end.

        every: Seconds between pushes.

        collect: Returns all families and the snapshot that they are from.
    """

    def __init__(
        self, receiver: Receiver, every: float, collect: Callable[[], tuple[Iterable[Family], Snapshot]]
    ) -> None:
        self._receiver = receiver
        # Who else pushes sums of the same service, here or elsewhere, must not be taken for this one.
        self._resource = {"service.instance.id": str(uuid4()), **receiver.resource}
        self._every = every
        self._collect = collect
        self._trouble = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="picostep-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Push once more, and end."""
        self._stopping.set()
        self._thread.join()
        self._receiver.close()

    def _run(self) -> None:
        while not self._stopping.wait(self._every):
            self._push()
        self._push()

    def _push(self) -> None:
        trouble = ""
        try:
            families, snapshot = self._collect()
            for request in requests(families, snapshot, self._resource):
                self._post(request)
        except Undelivered as said:
            trouble = said.reason
        except Exception as error:  # whatever it is, the next push may do better
            trouble = f"failed: {type(error).__name__}"
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("metrics: %s", trouble or "delivered again")

    def _post(self, request: Mapping[str, Any]) -> None:
        try:
            self._receiver.post(self._encode(request))
        except TakesProtobuf:
            self._receiver.post(self._encode(request))

    def _encode(self, request: Mapping[str, Any]) -> bytes:
        if not self._receiver.protobuf:
            return orjson.dumps(request)
        from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        return bytes(ParseDict(dict(request), ExportMetricsServiceRequest()).SerializeToString())


def _request(metrics: Sequence[dict[str, Any]], resource: Mapping[str, str]) -> dict[str, Any]:
    scope = {"name": SCOPE[0], "version": SCOPE[1]}
    return {
        "resourceMetrics": [
            {
                "resource": {"attributes": _texts(resource)},
                "scopeMetrics": [{"scope": scope, "metrics": metrics}],
            }
        ]
    }


def _metric(family: Family, snapshot: Snapshot) -> dict[str, Any]:
    times = {"startTimeUnixNano": str(snapshot.start_ns), "timeUnixNano": str(snapshot.at_ns)}
    points = [{**times, **_point(family, point)} for point in family.points]
    data: dict[str, Any] = {"dataPoints": points}
    if family.kind != "gauge":
        data["aggregationTemporality"] = _CUMULATIVE
    if family.kind == "counter":
        data["isMonotonic"] = True
    field = "sum" if family.kind == "counter" else family.kind
    return {"name": family.otlp, "unit": family.unit, "description": family.help, field: data}


def _point(family: Family, point: Point) -> dict[str, Any]:
    labels, value = point
    attributes = {_ATTRIBUTES[name]: label for name, label in labels.items() if label}
    if family.otlp.startswith("gen_ai."):
        attributes["gen_ai.operation.name"] = "chat"
        if labels["status"] == "error":
            attributes["error.type"] = "_OTHER"  # what the conventions have where no class of errors is known
    made: dict[str, Any] = {"attributes": _texts(attributes)}
    if not isinstance(value, int):
        made["count"] = str(value.count)
        made["sum"] = _number(value.sum, family.decimals)
        made["bucketCounts"] = [str(count) for count in value.counts]
        made["explicitBounds"] = [_number(bound, family.decimals) for bound in value.bounds]
    elif family.decimals:
        made["asDouble"] = _number(value, family.decimals)
    else:
        made["asInt"] = str(min(value, _MOST))
    return made


def _number(value: int, decimals: int) -> float:
    """Return the double that is nearest."""
    return float(decimal(value, decimals))


def _texts(attributes: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
