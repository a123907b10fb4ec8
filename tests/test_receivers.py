"""Sink `otlp` against collectors that others have written; each test needs the package of one."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from support import Ingest, free_port, wait_until
from test_metrics_published import parsed, published, pushed, same_by_otlp
from test_otlp import FEEDBACK, FULL, received, sink, span, spans, spans_protobuf, step

ROTEL = find_spec("rotel")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def by_id(found: list[Span]) -> list[Span]:
    return sorted(found, key=lambda each: each.span_id)


@pytest.fixture
def collector(ingest: Ingest, tmp_path: Path) -> Iterator[str]:
    """A rotel that passes on to `ingest` what it gets; yields where it listens."""
    if ROTEL is None or ROTEL.origin is None:
        pytest.skip("needs rotel")
    port = free_port()
    command = [
        str(Path(ROTEL.origin).with_name("rotel-agent")),
        *("start", "--disable-batching"),
        *("--otlp-http-endpoint", f"127.0.0.1:{port}"),
        *("--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}"),
        *("--exporter", "otlp", "--otlp-exporter-protocol", "http"),
        *("--otlp-exporter-endpoint", ingest.url),
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={})
    try:
        wait_until(lambda: listens(port), 20.0, (tmp_path / "log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("protocol", ["http/json", "http/protobuf"])
def test_rotel_passes_on_what_was_recorded(
    collector: str, ingest: Ingest, protocol: str, compression: str
) -> None:
    here = sink(collector, protocol=protocol, compression=compression)
    records = [*FULL, FEEDBACK, step("large", prompt="ä" * 1_000_000), step("odd", prompt="\0\ud800")]
    assert here.deliver(records) == {}
    wait_until(lambda: len(spans(*ingest.requests)) >= len(records) - 1, 20.0, "spans")
    expected = [
        ScopeSpans.FromString(spans_protobuf.encode_span(span(record))).spans[0]
        for record in records
        if record is not FEEDBACK
    ]
    assert by_id(spans(*ingest.requests)) == by_id(expected)  # it may pass on two requests in any order
    (resource, *_) = received(ingest.requests[0]).resource_spans
    assert {item.key for item in resource.resource.attributes} >= {"service.name", "telemetry.sdk.name"}


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_rotel_passes_on_what_was_counted(collector: str, ingest: Ingest, compression: str) -> None:
    with published(f"otlp:{collector}", OTEL_EXPORTER_OTLP_METRICS_COMPRESSION=compression) as publisher:
        publisher.aggregator.add([*FULL, FEEDBACK, step("odd", model_used='\0\ud800"')])
        text = publisher.text().decode()

    (request,) = ingest.wait_for(1)
    assert request.path == "/v1/metrics"
    same_by_otlp(parsed(text), pushed(request))
