"""
What the peers send, read back into records.

Each reader takes a body, decompressed, and returns the records in it. Readers of formats that need a
library import it when they are called: the ingest has an environment of its own for that.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from peers.records import Record


def tcc(body: bytes) -> Iterator[Record]:
    """The Context Company's format: one object, or a batch of them; runs are left out."""
    sent = json.loads(body)
    for item in sent["items"] if sent.get("type") == "batch" else [sent]:
        if item.get("type") == "step":
            yield Record(
                item.get("step_id"),
                item.get("prompt"),
                item.get("response"),
                item.get("tool_definitions"),
                item.get("model_requested"),
                item.get("model_used"),
                item.get("prompt_uncached_tokens"),
                item.get("prompt_cached_tokens"),
                item.get("completion_tokens"),
                item.get("finish_reason"),
            )


def otlp(body: bytes) -> Iterator[Record]:
    """OTLP in protobuf, with the attributes of the GenAI conventions, of Langfuse, or of MLflow."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                attributes = {item.key: _value(item.value) for item in span.attributes}
                if attributes.get("logfire.span_type") == "pending_span":
                    continue
                for key, read in _DIALECTS.items():
                    if key in attributes:
                        yield read(span.span_id, attributes)
                        break


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return {item.key: _value(item.value) for item in value.kvlist_value.values}
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def _genai(span_id: Any, attributes: Mapping[str, Any]) -> Record:
    get = attributes.get
    cached = get("gen_ai.usage.cache_read.input_tokens", get("gen_ai.usage.input_tokens.cached"))
    finish = get("gen_ai.response.finish_reasons")
    if isinstance(finish, str) and finish.startswith("["):  # Logfire sends arrays as JSON
        finish = json.loads(finish)
    return Record(
        span_id,
        get("gen_ai.input.messages"),
        get("gen_ai.output.messages"),
        get("gen_ai.tool.definitions"),
        get("gen_ai.request.model"),
        get("gen_ai.response.model"),
        get("gen_ai.usage.input_tokens", 0) - (cached or 0),
        cached,
        get("gen_ai.usage.output_tokens"),
        finish[0] if isinstance(finish, list) else finish,
    )


def _langfuse(span_id: Any, attributes: Mapping[str, Any]) -> Record:
    def get(name: str) -> Any:
        return attributes.get(f"langfuse.observation.{name}")

    usage = json.loads(get("usage_details") or "{}")
    return Record(
        span_id,
        get("input"),
        get("output"),
        _from_json(get("metadata.tools")),
        get("model.name"),
        _from_json(get("metadata.model_used")),
        usage.get("input"),
        usage.get("input_cached_tokens"),
        usage.get("output"),
        _from_json(get("metadata.finish_reason")),
    )


def _from_json(text: Any) -> Any:
    return None if text is None else json.loads(text)


def _mlflow(span_id: Any, attributes: Mapping[str, Any]) -> Record:
    inputs, usage = attributes["mlflow.spanInputs"], attributes.get("mlflow.chat.tokenUsage", {})
    cached = usage.get("cache_read_input_tokens")
    return Record(
        span_id,
        inputs.get("prompt"),
        attributes.get("mlflow.spanOutputs", {}).get("response"),
        inputs.get("tools"),
        attributes.get("mlflow.llm.model"),
        attributes.get("model_used"),
        usage.get("input_tokens", 0) - (cached or 0),
        cached,
        usage.get("output_tokens"),
        attributes.get("finish_reason"),
    )


_DIALECTS: Mapping[str, Callable[[Any, Mapping[str, Any]], Record]] = {
    "gen_ai.input.messages": _genai,
    "langfuse.observation.input": _langfuse,
    "mlflow.spanInputs": _mlflow,
}


def sentry(body: bytes) -> Iterator[Record]:
    """An envelope: spans in its items, with the attributes of the GenAI conventions."""
    at = body.index(b"\n") + 1
    while at < len(body):
        end = body.index(b"\n", at)
        header, start = json.loads(body[at:end]), end + 1
        end = start + header["length"]
        at = end + 1
        if header["type"] == "span":
            for span in json.loads(body[start:end])["items"]:
                attributes = {name: item["value"] for name, item in span.get("attributes", {}).items()}
                if "gen_ai.input.messages" in attributes:
                    yield _genai(span["span_id"], attributes)


def ddtrace(body: bytes) -> Iterator[Record]:
    """Events of LLM Observability, each with its spans."""
    for event in json.loads(body):
        for span in event["spans"]:
            meta, metrics, more = span["meta"], span["metrics"], span["meta"].get("metadata", {})
            cached = metrics.get("cache_read_input_tokens")
            yield Record(
                span["span_id"],
                meta["input"]["messages"][0]["content"],
                meta["output"]["messages"][0]["content"],
                meta["tool_definitions"][0]["description"],
                more.get("model_requested"),
                meta["model_name"],
                metrics.get("input_tokens", 0) - (cached or 0),
                cached,
                metrics.get("output_tokens"),
                more.get("finish_reason"),
            )


class Langsmith:
    """Multipart requests: a run comes in parts, and in two operations that need not share a request."""

    _part = re.compile(
        rb'\r\nContent-Disposition: form-data; name="(post|patch)\.([-0-9a-f]+)(?:\.(\w+))?"\r\n'
        rb"Content-Type: application/json\r\nContent-Length: (\d+)\r\n\r\n"
    )

    def __init__(self) -> None:
        self._runs: dict[bytes, dict[str, Any]] = {}

    def __call__(self, body: bytes) -> Iterator[Record]:
        for part in self._part.finditer(body):
            operation, run_id, name, length = part.groups()
            if (operation, name) in ((b"post", b"inputs"), (b"post", b"extra"), (b"patch", b"outputs")):
                run = self._runs.setdefault(run_id, {})
                run[name.decode()] = json.loads(body[part.end() : part.end() + int(length)])
                if len(run) == 3:
                    yield self._record(run_id, **self._runs.pop(run_id))

    @staticmethod
    def _record(run_id: bytes, inputs: Any, outputs: Any, extra: Any) -> Record:
        usage = outputs.get("usage_metadata", {})
        cached = usage.get("input_token_details", {}).get("cache_read")
        return Record(
            run_id,
            inputs.get("prompt"),
            outputs.get("response"),
            inputs.get("tools"),
            extra.get("metadata", {}).get("ls_model_name"),
            outputs.get("model"),
            usage.get("input_tokens", 0) - (cached or 0),
            cached,
            usage.get("output_tokens"),
            outputs.get("finish_reason"),
        )


def readers() -> dict[str, Callable[[bytes], Iterable[Record]]]:
    """What reads the bodies that are posted to a path."""
    return {
        "/v1/custom": tcc,
        "/v1/traces": otlp,
        "/api/public/otel/v1/traces": otlp,
        "/runs/multipart": Langsmith(),
        "/api/1/envelope/": sentry,
        "/api/v2/llmobs": ddtrace,
    }


def decompressed(body: bytes, encoding: str | None) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "zstd":
        import zstandard

        return bytes(zstandard.ZstdDecompressor().decompressobj().decompress(body))
    if encoding:
        raise ValueError(f"an encoding that no peer used: {encoding}")
    return body
