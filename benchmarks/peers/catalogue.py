"""The peers: what each is called, what is installed and imported for it, and which adapter records by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = "."  # a requirement that begins so: this checkout


@dataclass(frozen=True)
class Peer:
    key: str
    title: str
    adapter: str
    """MODULE:CLASS in `peers.adapters`."""
    environment: str
    requirements: tuple[str, ...]
    """The first is the peer itself; pinned to the newest release when the adapter was written."""
    imports: str
    """What its adapter has to import of it; empty where there is nothing."""
    delivers: bool = True
    """Whether its steps go to the ingest; if not, they are checked in its process."""
    checked: bool = True
    """Whether each step can be counted and compared; of the floor only the last copy is."""


_CONTEXTCOMPANY = ("contextcompany", ("contextcompany==2.0.0",), "import contextcompany")
_PICOSTEP = ("picostep", (HERE,), "import picostep")

PEERS = (
    Peer("picostep", "picostep", "picostep:Process", *_PICOSTEP),
    Peer("picostep-thread", "picostep, exporter as a thread", "picostep:Thread", *_PICOSTEP),
    Peer(
        "contextcompany-stubbed",
        "contextcompany, network stubbed",
        "contextcompany:Stubbed",
        *_CONTEXTCOMPANY,
        delivers=False,
    ),
    Peer("contextcompany", "contextcompany, loopback", "contextcompany:Loopback", *_CONTEXTCOMPANY),
    Peer(
        "opentelemetry",
        "OpenTelemetry SDK",
        "opentelemetry:BatchProcessor",
        "opentelemetry",
        ("opentelemetry-sdk==1.45.2", "opentelemetry-exporter-otlp-proto-http==1.45.2"),
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import BatchSpanProcessor\n"
        "from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter",
    ),
    Peer(
        "langsmith",
        "LangSmith",
        "langsmith:Runs",
        "langsmith",
        ("langsmith==0.15.1",),
        "from langsmith import Client\nfrom langsmith.run_trees import RunTree",
    ),
    Peer(
        "langfuse",
        "Langfuse",
        "langfuse:Generations",
        "langfuse",
        ("langfuse==5.0.4",),
        "from langfuse import Langfuse",
    ),
    Peer("logfire", "Logfire", "logfire:Spans", "logfire", ("logfire==5.4.0",), "import logfire"),
    Peer(
        "ddtrace",
        "ddtrace, LLM Observability",
        "ddtrace:LlmObs",
        "ddtrace",
        ("ddtrace==4.16.0",),
        "from ddtrace.llmobs import LLMObs",
    ),
    Peer("mlflow", "MLflow tracing", "mlflow:Traces", "mlflow", ("mlflow-tracing==3.17.2",), "import mlflow"),
    Peer("sentry", "Sentry", "sentry:Spans", "sentry", ("sentry-sdk==2.75.0",), "import sentry_sdk"),
    Peer(
        "dataclass",
        "dataclass on a SimpleQueue",
        "plain:Dataclass",
        "dataclass",
        (),
        "",
        delivers=False,
    ),
    Peer(
        "orjson",
        "dict, orjson, SimpleQueue",
        "plain:Orjson",
        "orjson",
        ("orjson==3.13.0",),
        "import orjson",
        delivers=False,
    ),
    Peer(
        "floor",
        "floor",
        "plain:Floor",
        "floor",
        ("cython==3.3.1", "setuptools==84.2.1"),
        "",
        delivers=False,
        checked=False,
    ),
)

INGEST = ("ingest", ("opentelemetry-proto==1.45.2", "zstandard==0.25.0"))
