"""Sink `otlp` against receivers that others have written; each test needs the command or package of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import urllib3
from google.protobuf import json_format
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from picostep._ring import JSONText
from picostep.settings.destination import Destination
from picostep.sinks import Rejected
from picostep.sinks.otlp import OtlpSink
from picostep.sinks.otlp import protobuf as spans_protobuf
from support import Ingest, free_port, run_python, wait_until
from test_metrics_published import parsed, published, pushed, same_by_otlp
from test_otlp import (
    FEEDBACK,
    FULL,
    TIMES,
    balanced,
    received,
    run,
    sink,
    span,
    spans,
    step,
    tool_call,
)

ROTEL = find_spec("rotel")
STARTS_IN = 120.0  # seconds that MLflow and Phoenix may take for their imports and databases
STORES_IN = 30.0  # both may answer before they have stored


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def serving(
    command: list[str], port: int, place: Path, env: Mapping[str, str], within: float
) -> Iterator[str]:
    """Run a server in a directory of its own; yields its URL as soon as it listens."""
    log = place / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=place,
            env={**env, "HOME": str(place)},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_until(lambda: listens(port) or process.poll() is not None, within, command[0])
        assert process.poll() is None, log.read_text(errors="replace")
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):  # and its children, of which MLflow has some
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def get(url: str, **query: str) -> Any:
    """Return the JSON of an answer; None for 404."""
    answer = urllib3.request("GET", url, fields=query, timeout=20, retries=False)
    assert answer.status in (200, 404), answer.data
    return answer.json() if answer.status == 200 else None


# --- rotel --------------------------------------------------------------------------------------------------


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
    with serving(command, port, tmp_path, {}, 20.0) as url:
        yield url


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


# --- receivers that are asked what they have ----------------------------------------------------------------


class Told(NamedTuple):
    """What a receiver has, or should have, of a run, step or tool call."""

    parent: str | None
    """"run", "nobody", or None for a root."""
    status: str
    message: str
    model: str | None
    tokens: dict[str, int]
    cost: float | None
    said: list[tuple[str, str]]
    """Roles and texts, of the prompt or arguments and then of the response or result."""


class Receiver(NamedTuple):
    url: str
    headers: dict[str, str]
    spans: Callable[[str, str], dict[str, Told]]
    """Of a URL and a trace, by the ids that were given; the root's is "run"."""


def own_id(attributes: Mapping[str, Any]) -> str:
    return str(attributes.get("picostep.step_id", attributes.get("picostep.tool_call_id", "run")))


def parent(span_id: str | None, names: Mapping[str, str]) -> str | None:
    return names.get(span_id, "nobody") if span_id else None


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs the command {name}")
    return found


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    place, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [
        *(program("mlflow"), "server", "--port", str(port), "--workers", "1"),
        *(
            "--backend-store-uri",
            f"sqlite:///{place}/db",
            "--artifacts-destination",
            str(place / "artifacts"),
        ),
    ]
    env = {
        "PATH": os.environ["PATH"],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with serving(command, port, place, env, STARTS_IN) as url:
        yield Receiver(url, {"x-mlflow-experiment-id": "0"}, in_mlflow)


def in_mlflow(url: str, trace: str) -> dict[str, Told]:
    found = get(f"{url}/api/3.0/mlflow/traces/get", trace_id=f"tr-{trace}", allow_partial="true")
    if found is None:
        return {}
    made = [json_format.ParseDict(each, Span()) for each in found["trace"]["spans"]]
    every = {each.span_id.hex(): {item.key: plain(item.value) for item in each.attributes} for each in made}
    names = {span_id: own_id(attributes) for span_id, attributes in every.items()}
    told = {}
    for each in made:
        values = every[each.span_id.hex()]
        usage = values.get("mlflow.chat.tokenUsage", {})
        told[own_id(values)] = Told(
            parent(each.parent_span_id.hex(), names),
            {0: "UNSET", 1: "OK", 2: "ERROR"}[each.status.code],
            each.status.message,
            values.get("mlflow.llm.model"),
            {
                name: usage[key]
                for name, key in (
                    ("prompt", "input_tokens"),
                    ("cached", "cache_read_input_tokens"),
                    ("completion", "output_tokens"),
                )
                if key in usage
            },
            values.get("mlflow.llm.cost", {}).get("total_cost"),
            [
                *(("system", part["content"]) for part in values.get("gen_ai.system_instructions", ())),
                *messages(values.get("gen_ai.input.messages")),
                *messages(values.get("gen_ai.output.messages")),
                *(
                    (side, json.dumps(values[key]) if isinstance(values[key], dict) else values[key])
                    for side, key in (("args", "mlflow.spanInputs"), ("result", "mlflow.spanOutputs"))
                    if key in values and "picostep.tool_call_id" in values
                ),
            ],
        )
    return told


def plain(value: AnyValue) -> Any:
    """The Python value of one of OTLP's."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {each.key: plain(each.value) for each in value.kvlist_value.values}
    return getattr(value, kind) if kind else None


def messages(found: list[dict[str, Any]] | None) -> list[tuple[str, str]]:
    return [(each["role"], "".join(part["content"] for part in each["parts"])) for each in found or ()]


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    place, port = tmp_path_factory.mktemp("phoenix"), free_port()
    env = {
        "PATH": os.environ["PATH"],
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_WORKING_DIR": str(place),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
        "PHOENIX_ENABLE_MCP_SERVER": "false",
    }
    with serving([program("phoenix"), "serve"], port, place, env, STARTS_IN) as url:
        yield Receiver(url, {}, in_phoenix)


def in_phoenix(url: str, trace: str) -> dict[str, Told]:
    answer = get(f"{url}/v1/projects/default/spans", trace_id=trace, limit="100")
    found = answer["data"] if answer else []  # there is no project before there is a span
    names = {each["context"]["span_id"]: own_id(each["attributes"]) for each in found}
    told = {}
    for each in found:
        values = each["attributes"]
        said = []
        for side in ("input", "output"):
            number = 0
            while (role := values.get(f"llm.{side}_messages.{number}.message.role")) is not None:
                said.append((role, values.get(f"llm.{side}_messages.{number}.message.content", "")))
                number += 1
        if "picostep.tool_call_id" in values:
            said = [
                (side, values[key])
                for side, key in (("args", "input.value"), ("result", "output.value"))
                if key in values
            ]
        told[own_id(values)] = Told(
            parent(each["parent_id"], names),
            each["status_code"],
            each["status_message"],
            values.get("llm.model_name"),
            {
                name: values[key]
                for name, key in (
                    ("prompt", "llm.token_count.prompt"),
                    ("cached", "llm.token_count.prompt_details.cache_read"),
                    ("completion", "llm.token_count.completion"),
                )
                if key in values
            },
            values.get("llm.cost.total"),
            said,
        )
    return told


@pytest.fixture(params=["mlflow", "phoenix"])
def receiver(request: pytest.FixtureRequest) -> Receiver:
    found: Receiver = request.getfixturevalue(request.param)
    return found


def wait_for(there: Receiver, run_id: str, count: int) -> dict[str, Told]:
    trace = run_id.replace("-", "")

    def all_there() -> dict[str, Told]:
        found = there.spans(there.url, trace)
        return found if len(found) >= count else {}

    return wait_until(all_there, STORES_IN, f"{count} spans")


LARGE = "ä" * 1_000_000

# Records, reads back what a step cost, delivers, and dies; its arguments: the ids of three runs.
HOST = """
import json, os, sys
import picostep

ended, abandoned, never_there = sys.argv[1:]
with picostep.run(ended, session_id="chat-42", conversational=True) as run:
    run.prompt("Wie ist das Wetter in Ørland? \N{SUN WITH FACE}", system_prompt="Be brief.")
    run.metadata(customer="acme", big=12345678901234567890123)

    given = run.step("given")
    given.prompt([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    given.response("Es regnet.").model("gpt-4o", "gpt-4o-2024-08-06").finish_reason("tool_calls")
    given.tokens(prompt_uncached=120, prompt_cached=80, completion=14).cost(0.1)
    given.end()

    call = run.tool_call("get_weather", "call").args({"city": "Ørland"}).result("rain")
    call.end()
    run.tool_call("get_weather", "broken").error("no such city")

    computed = run.step("computed").prompt("and now?").response("It rains.").model("gpt-4o-mini")
    computed.tokens(prompt_uncached=1000, prompt_cached=500, completion=100)
    computed.end()

    run.step("failed").prompt("again").model("gpt-4o").error("529 overloaded")
    run.step("odd").prompt("a\\0b\\ud800c").response("\\0").end()
    run.step("odd messages").prompt([{"role": "user", "content": "x\\0\\ud800"}]).response("y").end()
    run.step("large").prompt("ä" * 1_000_000).response("z").end()
    run.response("Es regnet.")
run.feedback(score="thumbs_up")

left = picostep.run(abandoned).prompt("anyone?")  # ends with its process
left.step("last").prompt("hello").response("world").end()
picostep.step(never_there, "orphan").prompt("hello").response("world").model("gpt-4o").cost(0.25).end()
assert picostep.flush(60), picostep.stats()
print(json.dumps([str(computed.total_cost), picostep.stats()]), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("protocol", ["http/json", "http/protobuf"])
def test_what_was_recorded_is_there(
    receiver: Receiver, protocol: str, ring_base: Path, tmp_path: Path
) -> None:
    """From a host by its exporter; Phoenix takes no JSON, and gets protobuf all the same."""
    ended, abandoned, never_there = (str(uuid.uuid4()) for _ in range(3))
    env = {
        "PICOSTEP_DIR": str(ring_base),
        "PICOSTEP_TO": f"otlp:{receiver.url}",
        "PICOSTEP_SPOOL": str(tmp_path / "spool"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": ",".join("=".join(pair) for pair in receiver.headers.items()),
    }
    done = run_python(HOST, env, timeout=90.0, args=(ended, abandoned, never_there), check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    cost, stats = json.loads(done.stdout)
    assert balanced(stats)
    assert sum(stats["dropped"].values()) == 0

    assert wait_for(receiver, ended, 9) == {
        "run": Told(
            None,
            "OK",
            "",
            None,
            {},
            None,
            [
                ("system", "Be brief."),
                ("user", "Wie ist das Wetter in Ørland? \N{SUN WITH FACE}"),
                ("assistant", "Es regnet."),
            ],
        ),
        "given": Told(
            "run",
            "OK",
            "",
            "gpt-4o-2024-08-06",
            {"prompt": 200, "cached": 80, "completion": 14},
            0.1,
            [("system", "Be brief."), ("user", "Hi"), ("assistant", "Es regnet.")],
        ),
        "call": Told(
            "run", "OK", "", None, {}, None, [("args", json.dumps({"city": "Ørland"})), ("result", "rain")]
        ),
        "broken": Told("run", "ERROR", "no such city", None, {}, None, []),
        "computed": Told(
            "run",
            "OK",
            "",
            "gpt-4o-mini",
            {"prompt": 1500, "cached": 500, "completion": 100},
            float(cost),
            [("user", "and now?"), ("assistant", "It rains.")],
        ),
        "failed": Told("run", "ERROR", "529 overloaded", "gpt-4o", {}, None, [("user", "again")]),
        "odd": Told("run", "OK", "", None, {}, None, [("user", "a\ufffdb\ufffdc"), ("assistant", "\ufffd")]),
        "odd messages": Told(
            "run", "OK", "", None, {}, None, [("user", "x\ufffd\ufffd"), ("assistant", "y")]
        ),
        "large": Told("run", "OK", "", None, {}, None, [("user", LARGE), ("assistant", "z")]),
    }
    assert wait_for(receiver, abandoned, 2) == {
        "run": Told(
            None, "ERROR", "the process ended before the run did", None, {}, None, [("user", "anyone?")]
        ),
        "last": Told("run", "OK", "", None, {}, None, [("user", "hello"), ("assistant", "world")]),
    }
    assert wait_for(receiver, never_there, 1) == {
        "orphan": Told("nobody", "OK", "", "gpt-4o", {}, 0.25, [("user", "hello"), ("assistant", "world")]),
    }


def sink_of(there: Receiver) -> OtlpSink:
    rows = [("header", *pair) for pair in there.headers.items()]
    return OtlpSink(f"{there.url}/v1/traces", Destination(("otlp",), otlp=rows))


BIG, DEEP = "1" + "0" * 25, "[" * 300 + "]" * 300


@pytest.mark.parametrize(
    "text",
    [f'{{"wei":{BIG}}}', '{"cut":"\\ud83d"}', '{"zero":"\\u0000"}', f'{{"deep":{DEEP}}}', DEEP],
    ids=["integer", "surrogate", "NUL", "depth", "list"],
)
def test_no_json_costs_its_span(receiver: Receiver, text: str) -> None:
    """Phoenix answers 200, parses metadata and arguments, and drops a span that it cannot then store."""
    run_id = str(uuid.uuid4())
    records = [
        run(run_id, user_prompt="p", metadata=text if text[0] == "{" else "{}"),
        step(run_id=run_id, prompt=JSONText(text), response=text, tool_definitions=JSONText(f"[{text}]")),
        tool_call(run_id=run_id, tool_name="f", args=JSONText(text), result=text),
    ]
    assert sink_of(receiver).deliver(records) == {}
    trace = run_id.replace("-", "")
    if receiver.spans is in_phoenix:
        assert wait_for(receiver, run_id, 3).keys() == {"run", "s", "t"}
    else:  # its `traces/get` fails for some of them, not what its own pages read
        found = get(f"{receiver.url}/ajax-api/2.0/mlflow/get-trace-artifact", request_id=f"tr-{trace}")
        assert len(found["spans"]) == 3


@pytest.mark.parametrize("at", [0, 2**63 - 1, 2**64], ids=["1970", "2262", "later"])
def test_no_time_is_refused(receiver: Receiver, at: int) -> None:
    """MLflow answers 500 to a time that does not fit into 63 bits: the sink would try again for ever."""
    run_id = str(uuid.uuid4())
    times = {"start_ns": at, "end_ns": at}
    assert sink_of(receiver).deliver([run(run_id, **times), step(run_id=run_id, **times)]) == {}
    assert len(wait_for(receiver, run_id, 2)) == 2


def test_sent_twice_is_there_once(receiver: Receiver) -> None:
    """Also where steps and their run come in requests of their own."""
    run_id = str(uuid.uuid4())
    first, second = (
        step(name, run_id, prompt_uncached_tokens=10, completion_tokens=5, real_total_cost=0.5)
        for name in ("first", "second")
    )
    root = run(run_id, user_prompt="p")
    here = sink_of(receiver)
    for records in ([first], [second], [root], [first, second, root]):
        assert here.deliver(records) == {}
    found = wait_for(receiver, run_id, 3)
    assert {name: told.parent for name, told in found.items()} == {
        "run": None,
        "first": "run",
        "second": "run",
    }
    if receiver.spans is in_mlflow:
        details = mlflow_trace(receiver, run_id)["trace_metadata"]
        assert json.loads(details["mlflow.trace.tokenUsage"]) == {
            "input_tokens": 20,
            "output_tokens": 10,
            "total_tokens": 30,
        }
        assert json.loads(details["mlflow.trace.cost"])["total_cost"] == 1.0


def mlflow_trace(there: Receiver, run_id: str) -> Any:
    found = get(f"{there.url}/api/3.0/mlflow/traces/tr-{run_id.replace('-', '')}")
    return found["trace"]["trace_info"]


def test_mlflow_shows_the_status_of_the_root(mlflow: Receiver) -> None:
    """A run that got over a failed step has not failed; one without its root goes on."""
    recovered, failed, rootless = (str(uuid.uuid4()) for _ in range(3))
    bad = {"status_code": 2, "status_message": "overloaded"}
    records = [
        step(run_id=recovered, **bad),
        run(recovered, user_prompt="p", session_id="chat-42"),
        run(failed, user_prompt="p", **{**TIMES, **bad}),
        step(run_id=rootless),
    ]
    assert sink_of(mlflow).deliver(records) == {}
    assert mlflow_trace(mlflow, recovered)["state"] == "OK"
    assert mlflow_trace(mlflow, recovered)["trace_metadata"]["mlflow.trace.session"] == "chat-42"
    assert mlflow_trace(mlflow, failed)["state"] == "ERROR"
    assert mlflow_trace(mlflow, rootless)["state"] == "IN_PROGRESS"


def test_mlflow_refuses_a_request_for_one_long_session(mlflow: Receiver) -> None:
    """The exporter halves what is refused until that run is alone."""
    run_id = str(uuid.uuid4())
    good, bad = step(run_id=run_id), run(run_id, session_id="x" * 251)
    here = sink_of(mlflow)
    for records in ([good, bad], [bad]):
        with pytest.raises(Rejected, match="http 400"):
            here.deliver(records)
    assert here.deliver([good, {**bad, "session_id": "x" * 250}]) == {}


def test_phoenix_shows_at_the_root_what_failed_below_and_its_own_costs(phoenix: Receiver) -> None:
    run_id = str(uuid.uuid4())
    records = [
        step("bad", run_id, status_code=2),
        step(
            "dear",
            run_id,
            model_used="gpt-4o",
            prompt_uncached_tokens=1000,
            completion_tokens=10,
            real_total_cost=100,
        ),
        run(run_id, user_prompt="p"),
    ]
    assert sink_of(phoenix).deliver(records) == {}
    wait_for(phoenix, run_id, 3)
    found = get(f"{phoenix.url}/v1/projects/default/spans", trace_id=run_id.replace("-", ""))["data"]
    nodes = {own_id(each["attributes"]): each["id"] for each in found}
    fields = "... on Span { statusCode propagatedStatusCode costSummary { total { cost } } }"

    def shown(name: str) -> Any:
        query = {"query": f'{{ node(id: "{nodes[name]}") {{ {fields} }} }}'}
        answer = urllib3.request("POST", f"{phoenix.url}/graphql", json=query, timeout=20, retries=False)
        return answer.json()["data"]["node"]

    assert (shown("run")["statusCode"], shown("run")["propagatedStatusCode"]) == ("OK", "ERROR")
    cost = wait_until(lambda: shown("dear")["costSummary"]["total"]["cost"], STORES_IN, "costs")
    assert 0 < cost < 1  # of its own table, where 100 were recorded
    assert [each["attributes"].get("llm.cost.total") for each in found if each["id"] == nodes["dear"]] == [
        100
    ]
