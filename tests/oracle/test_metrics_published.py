"""
Metrics as others get them: scraped and pushed, read by the parsers of Prometheus and OpenTelemetry.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE, Metric
from prometheus_client.parser import text_string_to_metric_families

from picostep.errors import ConfigError
from picostep.exporter.loop import Exporter
from picostep.exporter.stages import preparation
from picostep.metrics import otlp, server
from picostep.metrics.aggregate import MOST_LABELS, Aggregator
from picostep.metrics.families import families
from picostep.metrics.histogram import LOWEST, RELATIVE_ERROR
from picostep.metrics.publish import Publisher
from picostep.metrics.text import decimal
from picostep.record import Record
from picostep.ringdir import open_dir
from picostep.settings.destination import Destination
from picostep.sinks import RetryLater
from picostep.sinks.jsonl import JsonlSink
from picostep.sinks.otlp import http as otlp_http
from support import Ingest, Reply, Request, clean_environment, free_port, run_python, wait_until
from timed import START, exact, step

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings are private there")

Key = tuple[str, frozenset[tuple[str, str]]]
LABELS = ("model_requested", "model_used", "provider", "finish_reason", "status")

# By the conventions, in seconds.
DURATION = "0.01 0.02 0.04 0.08 0.16 0.32 0.64 1.28 2.56 5.12 10.24 20.48 40.96 81.92"
FIRST_TOKEN = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10"
OUTPUT_TOKEN = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5"
TOKENS = "1 4 16 64 256 1024 4096 16384 65536 262144 1048576 4194304 16777216 67108864"


@contextmanager
def published(*targets: str, **environ: str) -> Iterator[Publisher]:
    publisher = Publisher(targets, environ)
    try:
        yield publisher
    finally:
        publisher.stop()


def get(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())


def parsed(text: str) -> dict[Key, Decimal]:
    """Values by name and labels, which Prometheus' parser has read; the values themselves are exact."""
    values = [line.rpartition(" ")[2] for line in text.splitlines() if not line.startswith("#")]
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {}
    for value, sample in zip(values, samples, strict=True):
        assert float(value) == sample.value
        found[sample.name, frozenset(sample.labels.items())] = Decimal(value)
    assert len(found) == len(samples)
    return found


def pushed(request: Request) -> dict[str, Metric]:
    metrics = request_of(request).resource_metrics[0].scope_metrics[0].metrics
    found = {metric.name: metric for metric in metrics}
    assert len(found) == len(metrics)
    return found


def request_of(request: Request) -> ExportMetricsServiceRequest:
    """What a request says, as the official library reads it."""
    body = gzip.decompress(request.body) if "content-encoding" in request.headers else request.body
    made = ExportMetricsServiceRequest()
    if request.headers["content-type"] == "application/x-protobuf":
        made.ParseFromString(body)
    else:
        assert request.headers["content-type"] == "application/json"
        json_format.Parse(body, made)
    return made


# --- the whole way: processes, rings, exporter ------------------------------------------------------------

# Records argv[1] random things, seeded by argv[2], never more than its ring holds.
HOST = """
import random, sys, time
from datetime import datetime, timedelta, timezone
from decimal import Decimal
import picostep

count, seed = map(int, sys.argv[1:])
rnd = random.Random(seed)
MODELS = [("gpt-4o", "gpt-4o-2024-08-06"), ("gpt-4o-mini", None), ("claude-sonnet-4-5", "claude-sonnet-4-5"),
          ("own-model", "own-model-7"), (None, None)]

def a_step(run_id):
    now = datetime.now(timezone.utc)
    step = picostep.step(run_id, start_time=now - timedelta(microseconds=int(rnd.lognormvariate(13, 2))))
    step.prompt("p").response("r")
    requested, used = rnd.choice(MODELS)
    step.model(requested=requested, used=used, provider=rnd.choice([None, None, "openai", "acme"]))
    if rnd.random() < 0.9:
        cached, written = rnd.choice([(None, None), (rnd.randrange(9000), rnd.randrange(2000))])
        completion = rnd.randrange(2000)
        step.tokens(rnd.randrange(20_000), cached, completion, cache_write=written,
                    cache_write_1h=written and written // 3, reasoning=rnd.choice([None, 0, completion // 3]))
    if rnd.random() < 0.1:
        step.cost(rnd.choice([0, 0.1, rnd.random(), Decimal("15e-13"), Decimal(rnd.randrange(9**9)) / 7]))
    if rnd.random() < 0.7:
        step.first_token()
    step.finish_reason(rnd.choice([None, "stop", "length", "tool_calls"]))
    step.status(rnd.choice([0, 0, 0, 2, 5]))
    step.end(end_time=now + timedelta(microseconds=int(rnd.lognormvariate(14, 2))))

for number in range(count):
    kind = rnd.random()
    if kind < 0.94:
        a_step(f"r{seed}")
    elif kind < 0.97:
        picostep.send_tool_call(f"r{seed}", name="t", status_code=rnd.choice([0, 2, 3]))
    elif kind < 0.99:
        picostep.send_run(prompt="p", status_code=rnd.choice([0, 2]))
    else:
        picostep.submit_feedback(f"r{seed}", score="thumbs_up")
    if number % 2000 == 0:
        assert picostep.flush(60)
assert picostep.flush(60)
"""


class Kept:
    """A sink that keeps of each record what metrics are made of: times to the nanosecond, above all."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        fields = ("kind", "start_ns", "end_ns", "first_token_ns", "status_code", "completion_tokens")
        self.records += [{key: each[key] for key in fields if key in each} for each in records]
        return {}

    def close(self) -> None:
        pass


@contextmanager
def exporting(base: Path, publisher: Publisher, sinks: Sequence[Any]) -> Iterator[Exporter]:
    """An exporter of `external`, as `picostep export` has one."""
    directory = open_dir(f"{base}/picostep-{os.getuid()}", "external", create=True)
    stop = threading.Event()
    prepare = preparation(Destination(("kept",)), publisher.aggregator.add)
    exporter = Exporter([directory], sinks, stop=stop, prepare=prepare)
    publisher.watch(exporter.counters)
    lock = directory.try_lock()
    thread = threading.Thread(target=exporter.run)
    thread.start()
    try:
        yield exporter
    finally:
        stop.set()
        thread.join()
        assert lock is not None
        os.close(lock)
        directory.close()


def record(base: Path, processes: int, records: int) -> None:
    """Have processes record until all of it is delivered."""
    environment = clean_environment(PICOSTEP_DIR=str(base), PICOSTEP_EXPORTER="external")
    running = [
        subprocess.Popen([sys.executable, "-c", HOST, str(records), str(seed)], env=environment)
        for seed in range(processes)
    ]
    try:
        assert [process.wait(100) for process in running] == [0] * processes
    finally:
        for process in running:
            process.kill()
            process.wait()


STATUS = {0: "ok", 2: "error"}


def sums_of(lines: Sequence[dict[str, Any]]) -> dict[Key, Any]:
    """What the lines of a jsonl sink add up to: everything that has no histogram."""
    sums: Counter[Key] = Counter()
    tokens: defaultdict[Key, list[int]] = defaultdict(list)
    for line in lines:
        status = STATUS.get(line.get("status_code", 0), "other")
        if line["type"] == "feedback":
            sums["picostep_feedback_total", frozenset()] += 1
        elif line["type"] in ("run", "tool_call"):
            sums[f"picostep_{line['type']}s_total", frozenset({("status", status)})] += 1
        else:
            texts = {(name, line[name]) for name in LABELS if line.get(name)}
            labels = frozenset({*texts, ("status", status)})
            get = line.get
            cost = Decimal(get("total_cost", 0)).quantize(Decimal("1e-12"))
            prompt = [get(f"{kind}_tokens") for kind in ("prompt_uncached", "prompt_cached", "cache_write")]
            sums["picostep_steps_total", labels] += 1
            for kind in ("prompt_uncached", "prompt_cached", "cache_write", "completion"):
                sums["picostep_tokens_total", labels | {("kind", kind)}] += get(f"{kind}_tokens", 0)
            sums["picostep_reasoning_tokens_total", labels] += get("reasoning_tokens", 0)
            sums["picostep_cache_write_1h_tokens_total", labels] += get("cache_write_1h_tokens", 0)
            sums["picostep_unpriced_steps_total", labels] += "total_cost" not in line
            sums["picostep_cost_usd_total", labels] += cost  # type: ignore[assignment]
            if prompt != [None] * 3:
                tokens["picostep_step_tokens", labels | {("type", "input")}].append(sum(filter(None, prompt)))
            if "completion_tokens" in line:
                tokens["picostep_step_tokens", labels | {("type", "output")}].append(
                    line["completion_tokens"]
                )
    return {**sums, **histograms(tokens, TOKENS, 0)}


def histograms(values: Mapping[Key, list[int]], bounds: str, decimals: int) -> dict[Key, Decimal]:
    """What Prometheus has for values that are counted by name and labels."""
    found = {}
    for (name, labels), each in values.items():
        found[f"{name}_count", labels] = Decimal(len(each))
        found[f"{name}_sum", labels] = Decimal(sum(each)).scaleb(-decimals)
        found[f"{name}_bucket", labels | {("le", "+Inf")}] = Decimal(len(each))
        for bound in bounds.split():
            most = Decimal(bound).scaleb(decimals)
            found[f"{name}_bucket", labels | {("le", bound)}] = Decimal(sum(value <= most for value in each))
    return found


def times_of(records: Sequence[Record]) -> dict[str, list[int]]:
    times: dict[str, list[int]] = {"duration": [], "first_token": [], "output_token": []}
    for each in records:
        if each["kind"] == "step":
            times["duration"].append(each["end_ns"] - each["start_ns"])
            if "first_token_ns" in each and each["status_code"] != 2:
                times["first_token"].append(each["first_token_ns"] - each["start_ns"])
                if each.get("completion_tokens", 0) > 1:
                    rest = each["end_ns"] - each["first_token_ns"]
                    times["output_token"].append(max(rest, 0) // (each["completion_tokens"] - 1))
    return times


def buckets_of(found: Mapping[Key, Decimal], name: str) -> dict[str, Decimal]:
    """A histogram, summed over its labels."""
    sums: Counter[str] = Counter()
    for (whole, labels), value in found.items():
        if whole.startswith(f"{name}_"):
            sums[dict(labels).get("le", whole.removeprefix(f"{name}_"))] += value  # type: ignore[assignment]
    return dict(sums)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_hundred_thousand_records_of_four_processes(
    ring_base: Path, tmp_path: Path, ingest: Ingest
) -> None:
    """What is scraped and pushed is what follows from the records that the sinks got."""
    each, port = 25_000, free_port()
    kept, path = Kept(), tmp_path / "out.jsonl"
    with published(str(port), f"otlp:{ingest.url}", OTEL_METRIC_EXPORT_INTERVAL="500") as publisher:
        with exporting(ring_base, publisher, [kept, JsonlSink(str(path))]):
            record(ring_base, 4, each)
        snapshot = publisher.aggregator.snapshot()
        text = wait_until(
            lambda: (found := get(port)) and f"delivered_records_total {4 * each}\n" in found and found
        )
    last = pushed(ingest.requests[-1])

    lines = [json.loads(line, parse_float=Decimal) for line in path.read_text().splitlines()]
    assert len(lines) == len(kept.records) == 4 * each
    found = parsed(text)
    right = sums_of(lines)
    names = {name for name, _ in right}
    assert {key: value for key, value in found.items() if key[0] in names} == right

    times, total = times_of(kept.records), snapshot.total()
    for name, family, bounds in (
        ("duration", "picostep_step_duration_seconds", DURATION),
        ("first_token", "picostep_time_to_first_token_seconds", FIRST_TOKEN),
        ("output_token", "picostep_time_per_output_token_seconds", OUTPUT_TOKEN),
    ):
        right = histograms({(family, frozenset()): times[name]}, bounds, 9)
        assert len(times[name]) > each
        assert buckets_of(found, family) == buckets_of(right, family)
        for q in (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0):
            value = max(exact(times[name], q), LOWEST)
            assert abs(getattr(total, name).quantile(q) - value) <= value * RELATIVE_ERROR * (1 + 1e-9)

    same_by_otlp(found, last)
    assert found["picostep_accepted_records_total", frozenset()] == 4 * each
    assert found["picostep_in_ring_records", frozenset()] == 0


OTLP_LABELS = {
    "model_requested": "gen_ai.request.model",
    "model_used": "gen_ai.response.model",
    "provider": "gen_ai.provider.name",
    "finish_reason": "picostep.finish_reason",
    "status": "picostep.status",
    "kind": "picostep.token.kind",
    "type": "gen_ai.token.type",
    "reason": "picostep.reason",
}
GEN_AI = {
    "picostep_step_duration_seconds": ("gen_ai.client.operation.duration", "s"),
    "picostep_time_to_first_token_seconds": ("gen_ai.server.time_to_first_token", "s"),
    "picostep_time_per_output_token_seconds": ("gen_ai.server.time_per_output_token", "s"),
    "picostep_step_tokens": ("gen_ai.client.token.usage", "{token}"),
}


def same_by_otlp(found: Mapping[Key, Decimal], metrics: Mapping[str, Metric]) -> None:
    """Compare what was scraped with what was pushed: each number is in both, and no others are."""
    numbers = {}
    for prometheus, (name, unit) in GEN_AI.items():
        assert (metrics[name].unit, metrics[name].WhichOneof("data")) == (unit, "histogram")
        data = metrics[name].histogram
        assert data.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
        for point in data.data_points:
            labels = labels_of(point, name)
            numbers[f"{prometheus}_sum", labels] = point.sum
            numbers[f"{prometheus}_count", labels] = point.count
            seen = 0
            for bound, count in zip((*point.explicit_bounds, math.inf), point.bucket_counts, strict=True):
                seen += count
                numbers[f"{prometheus}_bucket", labels | {("le", bound)}] = seen
    for name, metric in metrics.items():
        if metric.WhichOneof("data") in ("sum", "gauge"):
            data = metric.sum if metric.HasField("sum") else metric.gauge
            suffix = "_total" if metric.HasField("sum") else ""
            unit = "_usd" if name == "picostep.cost" else ""
            for point in data.data_points:
                value = getattr(point, point.WhichOneof("value"))
                numbers[f"{name.replace('.', '_')}{unit}{suffix}", labels_of(point, name)] = value
            if suffix:
                assert data.is_monotonic
                assert data.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    scraped = {
        (name, frozenset((key, float(text) if key == "le" else text) for key, text in labels)): float(value)
        for (name, labels), value in found.items()
    }
    assert numbers == scraped


def labels_of(point: Any, name: str) -> frozenset[tuple[str, Any]]:
    assert 0 < point.start_time_unix_nano <= point.time_unix_nano <= time.time_ns()
    attributes = {each.key: each.value.string_value for each in point.attributes}
    if name.startswith("gen_ai."):
        assert attributes.pop("gen_ai.operation.name") == "chat"
        assert attributes.pop("error.type", None) == (
            "_OTHER" if attributes["picostep.status"] == "error" else None
        )
    back = {attribute: label for label, attribute in OTLP_LABELS.items()}
    return frozenset((back[key], text) for key, text in attributes.items())


class Moody(Kept):
    """Takes records at the third attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        self.attempts += 1
        if self.attempts < 3:
            raise RetryLater("not yet", after=0.5)
        return super().deliver(records)


def test_records_that_are_offered_again_are_counted_once(ring_base: Path) -> None:
    sink, port = Moody(), free_port()
    with published(str(port)) as publisher, exporting(ring_base, publisher, [sink]):
        record(ring_base, 1, 50)
        found = publisher.aggregator.snapshot()
        counted = [each["kind"] for each in sink.records].count("step")

    assert sink.attempts >= 3
    assert len(sink.records) == 50
    assert found.total().count == counted


@pytest.mark.slow
def test_counters_outlive_the_processes_that_they_are_of(ring_base: Path) -> None:
    port = free_port()
    with published(str(port)) as publisher:
        with exporting(ring_base, publisher, [Kept()]):
            record(ring_base, 2, 30)
            wait_until(lambda: "picostep_rings 0\n" in get(port))
            record(ring_base, 1, 40)
            while_it_works = parsed(publisher.text().decode())
        after = parsed(publisher.text().decode())

    for found in (while_it_works, after):
        assert found["picostep_accepted_records_total", frozenset()] == 100
        assert found["picostep_delivered_records_total", frozenset()] == 100
        assert found["picostep_in_spool_records", frozenset()] == 0


# --- the text -----------------------------------------------------------------------------------------------


@given(st.integers(0), st.integers(0, 15))
def test_numbers_are_exact(value: int, decimals: int) -> None:
    written = decimal(value, decimals)

    assert Fraction(written) == Fraction(value, 10**decimals)
    assert not re.search(r"e|\.\d*0$|\.$", written)


HOSTILE = [
    'a"b\\c',
    "a\nb",
    "a\x00b\x1b[31m",
    "{}=,",
    "lone \ud800",
    "m" * 1_000_000,
    "\\",
    '\\"',
    "\r\n# TYPE x y",
]


@pytest.mark.parametrize("protocol", ["http/json", "http/protobuf"])
def test_hostile_texts(ingest: Ingest, protocol: str) -> None:
    with published(f"otlp:{ingest.url}", OTEL_EXPORTER_OTLP_PROTOCOL=protocol) as publisher:
        for text in HOSTILE:
            publisher.aggregator.add([step(model_used=text, model_requested=text, finish_reason=text)])
        found = parsed(publisher.text().decode())

    named = {dict(labels)["model_used"] for name, labels in found if name == "picostep_steps_total"}
    assert {text for text in HOSTILE if text.isprintable() and len(text) < 100} <= named
    assert len(named) == len(HOSTILE)
    assert not any(re.search("[\x00-\x1f\ud800-\udfff]", text) or len(text) > 121 for text in named)
    same_by_otlp(found, pushed(ingest.requests[-1]))


@pytest.mark.slow
def test_ten_thousand_models(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "MOST_BYTES", 500_000)
    with published(f"otlp:{ingest.url}", OTEL_EXPORTER_OTLP_COMPRESSION="gzip") as publisher:
        publisher.aggregator.add(
            [
                step(model_used=f"m{n}", prompt_cached_tokens=n, completion_tokens=n, first_token_ns=START)
                for n in range(10_000)
            ]
        )
        text = publisher.text().decode()

    found = parsed(text)
    assert len(text) < 2_500_000
    assert sum(value for (name, _), value in found.items() if name == "picostep_steps_total") == 10_000
    assert found["picostep_overflowed_steps_total", frozenset()] == 10_000 - MOST_LABELS
    metrics: dict[str, Metric] = {}
    for request in ingest.requests:  # as many as it takes
        assert len(gzip.decompress(request.body)) < 500_000
        assert not metrics.keys() & pushed(request).keys()
        metrics |= pushed(request)
    assert len(ingest.requests) > 1
    same_by_otlp(found, metrics)


def test_every_family_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    told = re.findall(
        r"^\| `(picostep_\w+)` \| `([\w.]+)` \| (counter|gauge|histogram)\b", page, re.MULTILINE
    )

    found = families(Aggregator().snapshot(), {})
    assert sorted((each.name, each.otlp, each.kind) for each in found) == sorted(told)


# --- scrapers -----------------------------------------------------------------------------------------------


def answer(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        parts = []
        with suppress(ConnectionResetError):  # it did not want to hear the rest
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"501"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n", b"431"),
    ],
)
def test_requests(request_: bytes, status: bytes) -> None:
    port = free_port()
    with published(str(port)):
        found = answer(port, request_)
    # Nothing but a number of the protocol before the headers, where the request named none.
    assert status in found.partition(b"\r\n")[0] or b"Error code: " + status in found


def scrapes() -> int:
    """How many threads serve a scraper."""
    return sum("process_request" in thread.name for thread in threading.enumerate())


@pytest.mark.slow
def test_scrapers_that_hang_keep_nobody_waiting_for_long(
    ring_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LONGEST", 2.0)
    port, sink = free_port(), Kept()
    with published(str(port)) as publisher, exporting(ring_base, publisher, [sink]), ExitStack() as open_ones:
        for number in range(40):
            silent = open_ones.enter_context(socket.create_connection(("127.0.0.1", port)))
            silent.sendall((b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nx: ")[number % 3])
        wait_until(lambda: scrapes() == 16)
        record(ring_base, 1, 100)
        assert scrapes() <= 16
        assert len(sink.records) == 100

        def scraped() -> str:
            with suppress(OSError):
                return get(port)
            return ""

        assert "picostep_delivered_records_total 100\n" in wait_until(scraped, 20)
        wait_until(lambda: not scrapes(), 20)


def test_scraping_all_the_time_is_not_counting_all_the_time() -> None:
    calls = 0

    def collect() -> bytes:
        nonlocal calls
        calls += 1
        return b"x 1\n"

    port = free_port()
    here = server.Server(port, collect)
    start = time.monotonic()
    for _ in range(100):
        assert get(port) == "x 1\n"
    took = time.monotonic() - start
    here.stop()

    assert calls <= took / 0.25 + 1


# --- receivers ----------------------------------------------------------------------------------------------


def test_what_variables_say_of_metrics_wins(ingest: Ingest) -> None:
    with published(
        f"otlp:{ingest.url}/own/path",
        OTEL_EXPORTER_OTLP_HEADERS="x-key=general",
        OTEL_EXPORTER_OTLP_METRICS_HEADERS="x-key=metrics",
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="nonsense of another signal",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_SERVICE_NAME="shop",
        OTEL_RESOURCE_ATTRIBUTES="service.instance.id=7",
    ):
        pass

    (request,) = ingest.requests
    assert (request.path, request.headers["x-key"]) == ("/own/path", "metrics")
    resource = resource_of(request)
    assert resource["service.name"] == "shop"
    assert resource["service.instance.id"] == "7"


def resource_of(request: Request) -> dict[str, str]:
    attributes = request_of(request).resource_metrics[0].resource.attributes
    return {each.key: each.value.string_value for each in attributes}


def test_each_exporter_is_an_instance_of_its_own(ingest: Ingest) -> None:
    for _ in range(2):
        with published(f"otlp:{ingest.url}"):
            pass

    first, second = map(resource_of, ingest.requests)
    assert first.pop("service.instance.id") != second.pop("service.instance.id")
    assert first == second


def test_a_receiver_of_protobuf_only_gets_that(ingest: Ingest) -> None:
    ingest.default = lambda request: Reply(
        200 if request.headers["content-type"] == "application/x-protobuf" else 415
    )
    asked = {"OTEL_METRIC_EXPORT_INTERVAL": "50", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}
    with published(f"otlp:{ingest.url}", **asked) as publisher:
        publisher.aggregator.add([step(model_used="m")])
        requests = ingest.wait_for(4)

    assert [request.path for request in requests] == ["/v1/metrics"] * 4
    assert pushed(requests[-1])["picostep.steps"].sum.data_points[0].as_int == 1
    kinds = [request.headers["content-type"].rpartition("/")[2] for request in requests]
    assert kinds == ["json", "x-protobuf", "x-protobuf", "x-protobuf"]


@pytest.mark.parametrize("installed", [True, False])
def test_without_a_protocol_it_is_protobuf_where_that_is_installed(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr(otlp_http, "_has_protobuf", lambda: installed)
    with published(f"otlp:{ingest.url}") as publisher:
        publisher.aggregator.add([step()])

    (request,) = ingest.requests
    assert request.headers["content-type"] == f"application/{'x-protobuf' if installed else 'json'}"
    assert pushed(request)["picostep.steps"].sum.data_points[0].as_int == 1


def test_pushes_that_fail_are_superseded(ingest: Ingest, caplog: pytest.LogCaptureFixture) -> None:
    """The log tells only what is new."""
    caplog.set_level(logging.INFO, "picostep")
    failing = [Reply(503), Reply(503), Reply(drop=True), Reply(400), Reply(400, body=b"x"), Reply(), Reply()]
    ingest.script(*failing)
    with published(f"otlp:{ingest.url}", OTEL_METRIC_EXPORT_INTERVAL="20") as publisher:
        publisher.aggregator.add([step()] * 3)
        ingest.wait_for(len(failing))

    messages = [each.message for each in caplog.records if each.name == "picostep.metrics.otlp"]
    assert messages == [
        "metrics: http 503",
        "metrics: connection lost",
        "metrics: http 400",
        "metrics: delivered again",
    ]
    assert pushed(ingest.requests[-1])["picostep.steps"].sum.data_points[0].as_int == 3


@pytest.mark.slow
def test_a_receiver_that_is_dead_or_hangs_holds_up_no_record(ring_base: Path, ingest: Ingest) -> None:
    ingest.default = Reply(hang=threading.Event())
    sink = Kept()
    targets = (f"otlp:{ingest.url}", f"otlp:http://127.0.0.1:{free_port()}")
    with (
        published(*targets, OTEL_METRIC_EXPORT_INTERVAL="20", OTEL_EXPORTER_OTLP_TIMEOUT="1000") as publisher,
        exporting(ring_base, publisher, [sink]),
    ):
        ingest.wait_for(1)
        record(ring_base, 2, 500)
        start = time.monotonic()

    assert len(sink.records) == 1000
    assert time.monotonic() - start < 60


# --- targets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("0", "port from 1 to 65535"),
        ("65536", "port from 1 to 65535"),
        ("9" * 10_000, "port from 1 to 65535"),
        ("-1", "port from 1 to 65535"),
        ("", "port from 1 to 65535"),
        ("\u0661", "port from 1 to 65535"),
        ("127.0.0.1:9464", "port from 1 to 65535"),
        ("otlp:", "http://host"),
        ("otlp:localhost:4318", "http://host"),
        ("otlp:http://u:hunter2@h", "without user name"),
        ("otlp:http://h?key=hunter2", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_targets_that_are_none(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        Publisher([target], {})
    assert "hunter2" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("interval", ["0", "-5", "1.5", "86400001", "soon"])
def test_intervals_that_are_none(interval: str) -> None:
    with pytest.raises(ConfigError, match="OTEL_METRIC_EXPORT_INTERVAL must be a number of milliseconds"):
        Publisher(["otlp:http://h"], {"OTEL_METRIC_EXPORT_INTERVAL": interval})


def test_a_port_in_use_leaves_nothing_open() -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ConfigError, match="Address already in use"),
    ):
        Publisher([str(port), str(other.getsockname()[1])], {})
    with published(str(port)):
        assert get(port)


# --- the command --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_export(ring_base: Path, tmp_path: Path, ingest: Ingest) -> None:
    port, path = free_port(), tmp_path / "out.jsonl"
    command = ["export", "--to", f"jsonl:{path}", "--metrics", str(port), "--metrics", f"otlp:{ingest.url}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "picostep", *command],
        env=clean_environment(PICOSTEP_DIR=str(ring_base), XDG_STATE_HOME=str(tmp_path)),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while "serving" not in process.stderr.readline():
            pass
        record(ring_base, 2, 500)
        text = wait_until(
            lambda: (found := get(port)) and "delivered_records_total 1000\n" in found and found
        )
        wait_until(lambda: "picostep_rings 0\n" in get(port))
        text = get(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=100)

    assert process.returncode == 0
    found = parsed(text)
    right = sums_of([json.loads(line, parse_float=Decimal) for line in path.read_text().splitlines()])
    names = {name for name, _ in right}
    assert {key: value for key, value in found.items() if key[0] in names} == right
    (last,) = ingest.requests  # a minute had not passed
    same_by_otlp(found, pushed(last))


@pytest.mark.slow
def test_once(ring_base: Path, tmp_path: Path, ingest: Ingest) -> None:
    """What is there is counted, and pushed before the command ends."""
    run_python(
        "import os, picostep; picostep.step('r').prompt('p').response('q').end(); os._exit(0)",
        {"PICOSTEP_DIR": str(ring_base), "PICOSTEP_EXPORTER": "external"},
    )
    subprocess.run(
        [
            *(sys.executable, "-m", "picostep", "export", "--once"),
            *("--to", f"jsonl:{tmp_path / 'out'}", "--metrics", f"otlp:{ingest.url}"),
        ],
        env=clean_environment(PICOSTEP_DIR=str(ring_base), XDG_STATE_HOME=str(tmp_path)),
        timeout=100,
        check=True,
    )

    (request,) = ingest.requests
    assert pushed(request)["picostep.steps"].sum.data_points[0].as_int == 1
    assert pushed(request)["picostep.delivered_records"].sum.data_points[0].as_int == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "options", "message"),
    [
        ("ddsketch", ("--metrics", "9464"), "--metrics needs the extra: pip install 'picostep[metrics]'"),
        (
            "opentelemetry",
            ("--metrics", "otlp:http://127.0.0.1:1"),
            "needs opentelemetry-proto: picostep[otlp]",
        ),
    ],
)
def test_without_the_extra(ring_base: Path, missing: str, options: tuple[str, ...], message: str) -> None:
    code = "import sys; sys.modules[sys.argv.pop(1)] = None; from picostep.cli import main; main()"
    environment = {"PICOSTEP_DIR": str(ring_base), "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf"}
    done = run_python(code, environment, args=(missing, "export", *options), check=False)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_metrics_nothing_of_them_is_loaded(ring_base: Path, tmp_path: Path) -> None:
    code = (
        "import sys, picostep.cli.commands\n"
        "sys.argv[1:] = ['export', '--once', '--to', 'jsonl:' + sys.argv[1]]\n"
        "try: picostep.cli.main()\n"
        "except SystemExit: print(*[name for name in sys.modules if 'metrics' in name or 'ddsketch' in name])"
    )
    environment = {"PICOSTEP_DIR": str(ring_base), "XDG_STATE_HOME": str(tmp_path)}
    assert run_python(code, environment, args=(str(tmp_path / "out"),)).stdout == "\n"
