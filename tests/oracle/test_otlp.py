"""
Sink `otlp`: real HTTP on loopback, with the official protobuf classes as judge of what is sent.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import signal
import ssl
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from picostep._ring import JSONText
from picostep.errors import ConfigError
from picostep.record import Record
from picostep.settings import otel
from picostep.settings.destination import Destination, resolve_destination
from picostep.settings.table import Settings
from picostep.sinks import Refused, Rejected, RetryLater, open_sink
from picostep.sinks.otlp import OtlpSink
from picostep.sinks.otlp import http as otlp_http
from picostep.sinks.otlp import json as spans_json
from picostep.sinks.otlp import protobuf as spans_protobuf
from picostep.sinks.otlp.spans import span
from support import Ingest, Reply, Request, free_port, run_python, talkative, wait_until

KEY = "KEYcanary-93ab0c"
RUN_ID = "01234567-89ab-4def-8123-456789abcdef"
TRACE_ID = "0123456789ab4def8123456789abcdef"
CERTIFICATE = Path(__file__).parents[1] / "data" / "self_signed.pem"
TIMES = {
    "start_ns": 1_700_000_000_000_000_001,
    "end_ns": 1_700_000_001_000_000_002,
    "status_code": 0,
    "seq": 0,
}


def run(run_id: str = RUN_ID, **fields: Any) -> Record:
    return {"kind": "run", "run_id": run_id, **TIMES, **fields}


def step(step_id: str = "s", run_id: str = RUN_ID, **fields: Any) -> Record:
    return {"kind": "step", "run_id": run_id, "step_id": step_id, **TIMES, **fields}


def tool_call(call_id: str = "t", run_id: str = RUN_ID, **fields: Any) -> Record:
    return {"kind": "tool_call", "run_id": run_id, "tool_call_id": call_id, **TIMES, **fields}


FEEDBACK: Record = {"kind": "feedback", "run_id": RUN_ID, "feedback_id": "f", "score": "thumbs_up", **TIMES}
BAD: Record = {"kind": "step"}

FULL = [
    run(
        user_prompt="What is the weather?",
        system_prompt="Be brief.",
        response="It rains.",
        full_input=JSONText('[{"role":"user"}]'),
        full_output="…",
        session_id="chat-42",
        conversational=True,
        metadata='{"customer":"acme"}\n{"n":12345678901234567890123,"x":NaN}',
        status_code=2,
        status_message="failed",
    ),
    step(
        prompt=JSONText(
            '[{"role":"system","content":"Be brief."},'
            '{"role":"user","content":[{"type":"text","text":"Hi"}]}]'
        ),
        response="It rains.",
        provider="openai",
        model_requested="gpt-4o",
        model_used="gpt-4o-2024-08-06",
        finish_reason="stop",
        prompt_uncached_tokens=120,
        prompt_cached_tokens=80,
        cache_write_tokens=7,
        completion_tokens=14,
        reasoning_tokens=3,
        tool_definitions=JSONText('[{"name":"get_weather"}]'),
        first_token_ns=TIMES["start_ns"] + 250_000_000,
        cost_pico=1_234_567,
        cost_status="computed",
        price_table="table-1",
        shed=True,
    ),
    step("given", real_total_cost=Decimal("0.1"), cost_pico=10**11, status_code=7),
    tool_call(tool_name="get_weather", args=JSONText('{"city":"Oslo"}'), result="rain"),
    tool_call("unnamed"),
]


def sink(url: str, **options: str) -> OtlpSink:
    return OtlpSink(f"{url}/v1/traces", Destination(("otlp",), otlp=options.items()))


def received(request: Request) -> ExportTraceServiceRequest:
    """What a request says, as the official library reads it."""
    body = gzip.decompress(request.body) if "content-encoding" in request.headers else request.body
    if request.headers["content-type"] == "application/x-protobuf":
        return ExportTraceServiceRequest.FromString(body)
    assert request.headers["content-type"] == "application/json"
    return from_json(body)


def from_json(body: bytes) -> ExportTraceServiceRequest:
    """Read OTLP/JSON, whose ids are in hex where the JSON of protobuf has base64."""
    found = json.loads(body, parse_constant=pytest.fail)
    for resource in found["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for each in scope["spans"]:
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in each:
                        each[key] = base64.b64encode(bytes.fromhex(each[key])).decode()
    return json_format.ParseDict(found, ExportTraceServiceRequest())


def spans(*requests: Request) -> list[Span]:
    return [
        each
        for request in requests
        for resource in received(request).resource_spans
        for scope in resource.scope_spans
        for each in scope.spans
    ]


def attributes(found: Span) -> dict[str, Any]:
    values = {}
    for item in found.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        values[item.key] = [each.string_value for each in value.values] if kind == "array_value" else value
    assert len(values) == len(found.attributes)
    return values


def ids(request: Request) -> list[str]:
    return [attributes(each).get("picostep.step_id", each.name) for each in spans(request)]


def both(
    records: list[Record], content: bool = True
) -> tuple[ExportTraceServiceRequest, ExportTraceServiceRequest]:
    """The same records as JSON and as protobuf, read back."""
    made = [span(record, content) for record in records]
    resource = {"service.name": "x", "n": 1, "b": True, "d": 0.5, "l": ["a", "b"]}
    scope = ("picostep", "0")
    return (
        from_json(spans_json.request(map(spans_json.encode_span, made), resource, scope)),
        ExportTraceServiceRequest.FromString(
            spans_protobuf.request(map(spans_protobuf.encode_span, made), resource, scope)
        ),
    )


# --- the mapping --------------------------------------------------------------------------------------------


def test_run() -> None:
    (found,) = both(FULL[:1])[0].resource_spans[0].scope_spans[0].spans
    assert (found.name, found.kind, found.parent_span_id) == ("invoke_agent", Span.SPAN_KIND_INTERNAL, b"")
    assert found.trace_id.hex() == TRACE_ID
    assert (found.start_time_unix_nano, found.end_time_unix_nano) == (TIMES["start_ns"], TIMES["end_ns"])
    assert (found.status.code, found.status.message) == (2, "failed")
    values = attributes(found)
    assert json.loads(values.pop("metadata")) == {
        "run_id": RUN_ID,
        "customer": "acme",
        "n": "12345678901234567890123",
        "x": None,
    }
    assert values == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.conversation.id": "chat-42",
        "gen_ai.system_instructions": '[{"type":"text","content":"Be brief."}]',
        "gen_ai.input.messages": (
            '[{"role":"user","parts":[{"type":"text","content":"What is the weather?"}]}]'
        ),
        "gen_ai.output.messages": (
            '[{"role":"assistant","parts":[{"type":"text","content":"It rains."}],"finish_reason":""}]'
        ),
        "openinference.span.kind": "AGENT",
        "session.id": "chat-42",
        "input.value": "What is the weather?",
        "output.value": "It rains.",
        "error.type": "_OTHER",
        "picostep.run_id": RUN_ID,
        "picostep.conversational": True,
        "picostep.full_input": '[{"role":"user"}]',
        "picostep.full_output": "…",
    }


def test_step() -> None:
    (found,) = both(FULL[1:2])[0].resource_spans[0].scope_spans[0].spans
    assert (found.name, found.kind, found.status.code) == ("chat gpt-4o", Span.SPAN_KIND_CLIENT, 1)
    assert attributes(found) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 207,
        "gen_ai.usage.cache_read.input_tokens": 80,
        "gen_ai.usage.cache_creation.input_tokens": 7,
        "gen_ai.usage.output_tokens": 14,
        "gen_ai.input.messages": (
            '[{"role":"system","parts":[{"type":"text","content":"Be brief."}]},'
            '{"role":"user","parts":[{"type":"text","content":"Hi"}]}]'
        ),
        "gen_ai.output.messages": (
            '[{"role":"assistant","parts":[{"type":"text","content":"It rains."}],"finish_reason":"stop"}]'
        ),
        "gen_ai.tool.definitions": '[{"name":"get_weather"}]',
        "openinference.span.kind": "LLM",
        "llm.model_name": "gpt-4o-2024-08-06",
        "llm.finish_reason": "stop",
        "llm.token_count.prompt": 207,
        "llm.token_count.prompt_details.cache_read": 80,
        "llm.token_count.prompt_details.cache_write": 7,
        "llm.token_count.completion": 14,
        "llm.token_count.completion_details.reasoning": 3,
        "llm.cost.total": 0.000001234567,
        "llm.input_messages.0.message.role": "system",
        "llm.input_messages.0.message.content": "Be brief.",
        "llm.input_messages.1.message.role": "user",
        "llm.input_messages.1.message.content": "Hi",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "It rains.",
        "llm.tools.0.tool.json_schema": '{"name":"get_weather"}',
        "input.value": FULL[1]["prompt"],
        "output.value": "It rains.",
        "metadata": f'{{"run_id":"{RUN_ID}","step_id":"s"}}',
        "mlflow.llm.cost": '{"total_cost":1.234567e-6}',
        "picostep.run_id": RUN_ID,
        "picostep.step_id": "s",
        "picostep.cost_usd": "0.000001234567",
        "picostep.cost_status": "computed",
        "picostep.price_table": "table-1",
        "picostep.shed": True,
    }


def test_cost_as_it_was_given_and_a_status_of_ones_own() -> None:
    (found,) = both(FULL[2:3])[0].resource_spans[0].scope_spans[0].spans
    values = attributes(found)
    assert (values["picostep.cost_usd"], values["llm.cost.total"]) == ("0.1", 0.1)
    assert (found.status.code, values["picostep.status_code"]) == (0, 7)
    assert found.name == "chat"
    assert not any(key.startswith(("gen_ai.usage", "llm.token_count")) for key in values)


def test_tool_call() -> None:
    named, unnamed = both(FULL[3:])[0].resource_spans[0].scope_spans[0].spans
    assert (named.name, named.kind) == ("execute_tool get_weather", Span.SPAN_KIND_INTERNAL)
    assert attributes(named) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "get_weather",
        "gen_ai.tool.call.id": "t",
        "gen_ai.tool.call.arguments": '{"city":"Oslo"}',
        "gen_ai.tool.call.result": "rain",
        "openinference.span.kind": "TOOL",
        "tool.name": "get_weather",
        "input.value": '{"city":"Oslo"}',
        "output.value": "rain",
        "metadata": f'{{"run_id":"{RUN_ID}","tool_call_id":"t"}}',
        "picostep.run_id": RUN_ID,
        "picostep.tool_call_id": "t",
    }
    assert unnamed.name == "execute_tool unknown"


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ({"content": None}, []),
        ({"content": "a"}, [{"type": "text", "content": "a"}]),
        ({"parts": [{"text": "a"}]}, [{"type": "text", "content": "a"}]),
        ({"parts": [{"type": "text", "content": "a"}]}, [{"type": "text", "content": "a"}]),
        ({"content": [{"type": "output_text", "text": "a"}]}, [{"type": "text", "content": "a"}]),
        ({"content": [{"type": "image", "url": "u"}]}, [{"type": "image", "url": "u"}]),
        (
            {"content": [{"type": "text"}, 7]},
            [{"type": "unknown", "content": each} for each in ({"type": "text"}, 7)],
        ),
        (
            {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            [{"type": "tool_call", "id": "c", "name": "f", "arguments": "{}"}],
        ),
        (
            {"content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]},
            [{"type": "tool_call", "id": "c", "name": "f", "arguments": {"a": 1}}],
        ),
        ({"tool_call_id": "c", "content": "x"}, [{"type": "tool_call_response", "id": "c", "response": "x"}]),
        (
            {"content": [{"type": "tool_result", "tool_use_id": "c", "content": "x"}]},
            [{"type": "tool_call_response", "id": "c", "response": "x"}],
        ),
    ],
)
def test_messages_of_providers(message: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    made = span(step(prompt=json.dumps({"role": "user", **message}))).attributes
    assert json.loads(str(made["gen_ai.input.messages"])) == [{"role": "user", "parts": parts}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "{}",
        "[1]",
        '{"role":1}',
        '[{"role":"a"},2]',
        "[" * 2000,
        '{"role":"a","content":' + "[" * 401 + "]" * 401 + "}",
    ],
)
def test_what_is_no_message_is_a_text(text: str) -> None:
    made = span(step(prompt=text, tool_definitions=text)).attributes
    assert json.loads(str(made["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": text}]}
    ]
    assert made["gen_ai.tool.definitions"] == text


def test_every_attribute_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "otlp.md").read_text(encoding="utf-8")
    keys = {re.sub(r"\.\d+\.", ".N.", key) for record in FULL for key in span(record).attributes}
    told = {key for key in keys if f"`{key}`" in page}
    assert {re.sub(r"_messages\.N\.message.*", "", key) for key in keys - told} <= {"llm.input", "llm.output"}


def test_a_uuid_is_the_trace_id_and_all_else_is_hashed() -> None:
    def trace(run_id: str) -> str:
        return span(run(run_id)).trace_id

    assert trace(RUN_ID) == TRACE_ID
    others = [
        trace(each)
        for each in (
            RUN_ID.upper(),
            TRACE_ID,
            str(RUN_ID) + "\n",
            "",
            "r",
            "\ud800",
            "0" * 8 + "-0000-0000-0000-" + "0" * 12,
        )
    ]
    assert len({TRACE_ID, *others}) == len(others) + 1
    assert all(len(each) == 32 and int(each, 16) for each in others)


def test_ids_are_those_of_the_record_and_of_nothing_else() -> None:
    made = [
        span(record)
        for record in (run(), step("x"), tool_call("x"), step("y"), step("x", "other"), run("other"))
    ]
    assert len({each.span_id for each in made}) == len(made)
    assert [each.parent_id for each in made] == ["", *[made[0].span_id] * 3, made[5].span_id, ""]
    again = span(step("x", prompt="later", status_code=2))
    assert (again.trace_id, again.span_id) == (made[1].trace_id, made[1].span_id)


@pytest.mark.parametrize(
    "record",
    [
        step(prompt_uncached_tokens=2**63),
        step(real_total_cost=float("nan")),
        step(real_total_cost=Decimal("1e400")),
        run(status_code=2**64),
        run(metadata="no json"),
        {"kind": "other", "run_id": "r", **TIMES},
        BAD,
    ],
)
def test_damaged_records_harm_no_other(ingest: Ingest, record: Record) -> None:
    assert list(sink(ingest.url).deliver([step("a"), record, step("b")])) == [1]
    assert ids(*ingest.requests) == ["a", "b"]


def test_times_beyond_what_receivers_hold() -> None:
    made = both([step(start_ns=-5, end_ns=2**64)])[0].resource_spans[0].scope_spans[0].spans[0]
    assert (made.start_time_unix_nano, made.end_time_unix_nano) == (0, 2**63 - 1)


def test_json_is_as_receivers_want_it(ingest: Ingest) -> None:
    sink(ingest.url).deliver(FULL)
    (request,) = ingest.requests
    (resource,) = request.json()["resourceSpans"]
    (scope,) = resource["scopeSpans"]
    found = scope["spans"][1]
    assert (found["traceId"], len(found["spanId"]), len(found["parentSpanId"])) == (TRACE_ID, 16, 16)
    assert found["startTimeUnixNano"] == str(TIMES["start_ns"])
    assert {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "207"}} in found["attributes"]
    assert "parentSpanId" not in scope["spans"][0]
    assert scope["scope"]["name"] == "picostep"


def test_json_and_protobuf_say_the_same() -> None:
    for content in (True, False):
        one, other = both(FULL, content)
        assert one == other
        assert len(one.resource_spans[0].scope_spans[0].spans) == len(FULL)


# What Phoenix parses as JSON, to keep what it finds. (Of definitions of tools it keeps the text.)
PARSED = {"metadata", "gen_ai.tool.call.arguments"}


def stored(text: str) -> Any:
    """What becomes of the text in a receiver that does that: it stores JSON by orjson, in PostgreSQL."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    kept = orjson.dumps({"tool": {"parameters": found}})
    assert not re.search(rb"(?<!\\)(\\\\)*\\u0000", kept)  # the escape of NUL, and not of a backslash
    return found


def printed(text: str) -> None:
    """It is also parsed, and what is found encoded."""
    try:
        found = json.loads(text)
    except ValueError:
        return
    json.dumps(found, ensure_ascii=False).encode()


texts = st.text(st.characters(), max_size=20)
any_text = st.one_of(
    texts,
    texts.map(JSONText),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["role", "content", "type", "text", "parts", "tool_calls", "function", "id"])
                | texts,
                inner,
                max_size=4,
            ),
        ),
        max_leaves=8,
    ).map(json.dumps),
)


@given(
    st.lists(
        st.one_of(
            st.builds(
                run,
                texts,
                user_prompt=any_text,
                system_prompt=texts,
                response=any_text,
                session_id=texts,
                status_message=texts,
                metadata=st.dictionaries(texts, any_text, max_size=2).map(json.dumps),
            ),
            st.builds(
                step,
                texts,
                texts,
                prompt=any_text,
                response=any_text,
                model_used=texts,
                finish_reason=texts,
                tool_definitions=any_text,
                completion_tokens=st.integers(0, 2**53),
                real_total_cost=st.floats(0, 1e300),
            ),
            st.builds(tool_call, texts, texts, tool_name=texts, args=any_text, result=any_text),
        ),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_any_text_is_sent_alike(records: list[Record], content: bool) -> None:
    one, other = both(records, content)
    assert one == other
    found = one.resource_spans[0].scope_spans[0].spans
    assert len(found) == len(records)
    for record, each in zip(records, found, strict=True):
        values = attributes(each)
        for key in ("gen_ai.input.messages", "gen_ai.output.messages", "metadata"):
            if key in values:
                json.loads(values[key], parse_constant=pytest.fail)
        if content and "prompt" in record:
            expected = (
                str(record["prompt"]).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            )
            assert values["input.value"] == expected.replace("\0", "\ufffd")
        for key in PARSED & values.keys():
            stored(values[key])
        if "gen_ai.tool.definitions" in values:
            printed(values["gen_ai.tool.definitions"])


def test_a_long_text_goes_out_once() -> None:
    """Three times what a receiver takes once might be refused for its size."""
    text = json.dumps([{"role": "user", "content": "x" * 1_000_000}])
    made = [
        run(user_prompt=text, response=text),
        step(prompt=text, response=text, tool_definitions=text),
        tool_call(args=text, result=text),
    ]
    for record, names in zip(
        made,
        (
            {"gen_ai.input.messages", "gen_ai.output.messages"},
            {"gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.definitions"},
            {"gen_ai.tool.call.arguments", "gen_ai.tool.call.result"},
        ),
        strict=True,
    ):
        found = span(record).attributes
        assert {key for key, value in found.items() if len(str(value)) > 1_000_000} == names
        assert not any(key.startswith(("input", "output", "llm.")) for key in found)


@pytest.mark.parametrize("protocol", ["http/json", "http/protobuf"])
def test_surrogates_and_nul_cost_no_other_span(ingest: Ingest, protocol: str) -> None:
    odd = "a\0\ud800b\U0001f600\ud83d\ude00"
    records = [
        step("good"),
        step(odd, model_used=odd, prompt=odd, status_message=odd),
        run(odd, metadata="{}"),
    ]
    assert sink(ingest.url, protocol=protocol).deliver(records) == {}
    _, found, root = spans(*ingest.requests)
    expected = "a\ufffd\ufffdb\U0001f600\U0001f600"
    assert (found.name, found.status.message) == (f"chat {expected}", expected)
    values = attributes(found)
    assert (values["input.value"], values["picostep.step_id"]) == (expected, expected)
    assert values["llm.input_messages.0.message.content"] == expected
    assert json.loads(attributes(root)["metadata"]) == {"run_id": expected}


BIG = "12345678901234567890123"
DEEP = "[" * 300 + "]" * 300


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f'{{"n":{2**63 - 1}, "u":"\\u00e4"}}', {"n": 2**63 - 1, "u": "ä"}),
        (f'{{"n":{BIG},"m":-{BIG}}}', {"n": BIG, "m": f"-{BIG}"}),
        ('{"a":"\\ud800","\\ud800":"\\ud83d\\ude00"}', {"a": "\ufffd", "\ufffd": "😀"}),
        ('{"a\\u0000":"b\\u0000"}', {"a\ufffd": "b\ufffd"}),
        (DEEP, DEEP),
        ("[" * 253 + "]" * 253, "[" * 253 + "]" * 253),
        ("[" * 2000, "[" * 2000),
    ],
    ids=["as it is", "integers", "surrogates", "NUL", "deep", "a little too deep", "too deep to read"],
)
def test_json_that_receivers_parse_can_be_stored(value: str, expected: Any) -> None:
    """Phoenix answers 200 and drops the span otherwise."""
    found = span(tool_call(args=JSONText(value))).attributes
    assert found["input.value"] == value
    assert stored(str(found["gen_ai.tool.call.arguments"])) == expected


def test_metadata_that_is_too_deep_is_a_text() -> None:
    made = span(run(metadata=f'{{"deep":{DEEP},"n":1}}')).attributes
    assert stored(str(made["metadata"])) == {"run_id": RUN_ID, "deep": DEEP, "n": 1}


def test_messages_with_escapes_of_surrogates_are_messages() -> None:
    """As a host writes those of an object."""
    made = span(step(prompt=JSONText('[{"role":"user","content":"a\\ud800\\u0000"}]'))).attributes
    assert json.loads(str(made["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": "a\ufffd\ufffd"}]}
    ]
    definitions = span(step(tool_definitions=JSONText('[{"name":"\\ud800"}]'))).attributes
    assert stored(str(definitions["gen_ai.tool.definitions"])) == [{"name": "\ufffd"}]


def test_content_off() -> None:
    secret = "TEXTcanary"
    fields = {"session_id": secret, "metadata": json.dumps({secret: secret})}
    fields |= dict.fromkeys(("user_prompt", "system_prompt", "response", "full_input", "full_output"), secret)
    records = [
        run(**fields),
        step(
            prompt=secret,
            response=secret,
            tool_definitions=f'["{secret}"]',
            completion_tokens=3,
            cost_pico=5,
            model_used="m",
        ),
        tool_call(args=secret, result=secret, tool_name="n"),
    ]
    shown, hidden = both(records)[0], both(records, content=False)[0]
    assert str(shown).count(secret) > 15
    assert secret not in str(hidden)
    values = attributes(hidden.resource_spans[0].scope_spans[0].spans[1])
    assert (values["gen_ai.usage.output_tokens"], values["picostep.cost_usd"]) == (3, "5E-12")
    assert values["gen_ai.response.model"] == "m"


# --- over HTTP ----------------------------------------------------------------------------------------------


def test_one_request_with_headers_and_resource(ingest: Ingest) -> None:
    rows = [("header", "x-key", KEY), ("resource", "service.name", "web"), ("resource", "zone", "ä")]
    OtlpSink(f"{ingest.url}/v1/traces", Destination(("otlp",), otlp=rows)).deliver(FULL)
    (request,) = ingest.requests
    assert (request.method, request.path) == ("POST", "/v1/traces")
    assert request.headers["x-key"] == KEY
    assert request.headers["content-type"] == "application/json"
    assert "content-encoding" not in request.headers
    (resource,) = received(request).resource_spans
    found = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert (found["service.name"], found["zone"], found["telemetry.sdk.name"]) == ("web", "ä", "picostep")


@pytest.mark.parametrize("protocol", ["http/json", "http/protobuf"])
def test_gzip(ingest: Ingest, protocol: str) -> None:
    sink(ingest.url, compression="gzip", protocol=protocol).deliver(FULL)
    sink(ingest.url, protocol=protocol).deliver(FULL)
    one, other = ingest.requests
    assert one.headers["content-encoding"] == "gzip"
    assert len(one.body) < len(other.body)
    assert received(one) == received(other)


def test_feedback_is_settled_and_not_sent(ingest: Ingest) -> None:
    assert sink(ingest.url).deliver([FEEDBACK]) == {}
    assert ingest.requests == []
    assert sink(ingest.url).deliver([FEEDBACK, step("a"), FEEDBACK, step("b")]) == {}
    assert ids(*ingest.requests) == ["a", "b"]


@pytest.mark.slow
def test_requests_stay_below_what_receivers_take(ingest: Ingest) -> None:
    records = [step(str(number), prompt="\n" * 400_000) for number in range(4)] + [step("small")]
    assert sink(ingest.url).deliver(records) == {}
    assert [name for request in ingest.requests for name in ids(request)] == ["0", "1", "2", "3", "small"]
    assert all(len(request.body) < 4 << 20 or len(ids(request)) == 1 for request in ingest.requests)
    ingest.take()
    ingest.script(Reply(), Reply(status=400))
    with pytest.raises(Rejected) as raised:
        sink(ingest.url).deliver([FEEDBACK, *records[:2], BAD])
    assert (raised.value.delivered, raised.value.unencodable) == (2, {})


@pytest.mark.parametrize("protocol", ["http/json", "http/protobuf"])
@pytest.mark.parametrize(
    ("told", "named"), [(0, []), (1, [4]), (2, [2, 4]), (3, [1, 2, 4]), (99, [1, 2, 4]), (-1, [])]
)
def test_partial_success(ingest: Ingest, protocol: str, told: int, named: list[int]) -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = told
    answer.partial_success.error_message = "says something"
    body = (
        json_format.MessageToJson(answer).encode() if protocol == "http/json" else answer.SerializeToString()
    )
    ingest.default = Reply(body=body)
    found = sink(ingest.url, protocol=protocol).deliver([FEEDBACK, step("a"), step("b"), BAD, step("c")])
    assert found.pop(3) == "KeyError"  # type: ignore[attr-defined]
    assert sorted(found) == named
    for why in found.values():
        assert isinstance(why, Refused)
        assert (why, why.known) == ("partial success", len(named) == 3)
    assert len(ingest.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"garbage",
        b"\xff" * 100,
        b'{"partialSuccess":{}}',
        b'{"partialSuccess":{"rejectedSpans":"x"}}',
        b"[" * 5000,
        b"x" * 1_000_000,
    ],
)
@pytest.mark.parametrize("protocol", ["http/json", "http/protobuf"])
def test_an_answer_need_not_be_one(ingest: Ingest, protocol: str, body: bytes) -> None:
    ingest.default = Reply(body=body)
    assert sink(ingest.url, protocol=protocol).deliver([step()]) == {}


@pytest.mark.parametrize("status", [400, 413, 422])
def test_rejected(ingest: Ingest, status: int) -> None:
    ingest.default = Reply(status=status)
    with pytest.raises(Rejected, match=rf"^http {status}$"):
        sink(ingest.url).deliver([step()])


@pytest.mark.parametrize(
    ("status", "after"),
    [(429, 7.0), (502, 7.0), (503, 7.0), (504, 7.0), (401, None), (403, None), (404, None), (307, None)],
)
def test_later(ingest: Ingest, status: int, after: float | None) -> None:
    ingest.default = Reply(status=status, headers={"Retry-After": "7", "Location": f"{ingest.url}/other"})
    with pytest.raises(RetryLater, match=rf"^http {status}$") as raised:
        sink(ingest.url).deliver([step()])
    assert raised.value.after == after
    assert len(ingest.requests) == 1


def test_no_answer(ingest: Ingest) -> None:
    ingest.script(Reply(drop=True))
    with pytest.raises(RetryLater, match="connection lost"):
        sink(ingest.url).deliver([step()])
    with talkative(b"rubbish\r\n\r\n") as url, pytest.raises(RetryLater, match="connection lost"):
        sink(url).deliver([step()])
    with pytest.raises(RetryLater, match="ECONNREFUSED"):
        sink(f"http://127.0.0.1:{free_port()}").deliver([step()])


def protobuf_only(request: Request) -> Reply:
    return Reply(status=200 if request.headers["content-type"] == "application/x-protobuf" else 415)


def test_a_receiver_of_protobuf_only_gets_that(ingest: Ingest) -> None:
    ingest.default = protobuf_only
    here = sink(ingest.url)
    assert here.deliver(FULL) == {}
    assert here.deliver([step("x")]) == {}
    refused, taken, next_one = ingest.requests
    assert received(refused) == received(taken)
    assert ids(next_one) == ["x"]
    ingest.default = Reply(status=415)
    with pytest.raises(RetryLater, match=r"^http 415$"):
        here.deliver([step()])


def without(*refused: str, status: int = 415) -> Callable[[Request], Reply]:
    """A receiver that refuses what is compressed, or JSON."""

    def reply(request: Request) -> Reply:
        said = {request.headers["content-type"], request.headers.get("content-encoding", "")}
        return Reply(status=status if said & set(refused) else 200)

    return reply


@pytest.mark.parametrize("protocol", ["http/json", "http/protobuf"])
@pytest.mark.parametrize("status", [415, 400, 422])
def test_a_receiver_that_reads_nothing_compressed(ingest: Ingest, protocol: str, status: int) -> None:
    """It is asked once; some say that the body is broken."""
    ingest.default = without("gzip", status=status)
    here = sink(ingest.url, compression="gzip", protocol=protocol)
    for name in ("a", "b"):
        assert here.deliver([step(name)]) == {}
    assert ["content-encoding" in each.headers for each in ingest.requests] == [True, False, False]
    assert [ids(each) for each in ingest.requests[1:]] == [["a"], ["b"]]


def test_what_is_compressed_and_json(ingest: Ingest) -> None:
    """Which of the two is refused is found out, and only that is left."""
    for refused, left in [
        (("application/json",), ("application/x-protobuf", "gzip")),
        (("application/json", "gzip"), ("application/x-protobuf", None)),
        (("gzip",), ("application/json", None)),
    ]:
        ingest.take()
        ingest.default = without(*refused)
        here = sink(ingest.url, compression="gzip")
        for name in ("a", "b"):
            assert here.deliver([step(name)]) == {}
        first, second = [each for each in ingest.take() if without(*refused)(each).status == 200]
        assert [ids(first), ids(second)] == [["a"], ["b"]]
        for each in (first, second):
            assert (each.headers["content-type"], each.headers.get("content-encoding")) == left


@pytest.mark.parametrize("status", [400, 422])
def test_a_bad_record_is_no_reason_to_stop_compressing(ingest: Ingest, status: int) -> None:
    here = sink(ingest.url, compression="gzip")
    ingest.default = Reply(status=status)
    with pytest.raises(Rejected, match=rf"^http {status}$"):
        here.deliver([step("bad")])
    ingest.default = Reply()
    assert here.deliver([step("good")]) == {}
    assert ingest.take()[-1].headers["content-encoding"] == "gzip"
    ingest.default = Reply(status=status)
    with pytest.raises(Rejected):
        here.deliver([step("bad")])
    assert len(ingest.requests) == 1  # that it can read what is compressed is known now


# --- too large ----------------------------------------------------------------------------------------------


def takes(limit: int) -> Callable[[Request], Reply]:
    return lambda request: Reply(status=413 if len(request.body) > limit else 200)


COUNTED = {"prompt_uncached_tokens": 7, "completion_tokens": 5, "cost_pico": 10**9}


@pytest.mark.parametrize("protocol", ["http/json", "http/protobuf"])
@pytest.mark.parametrize(
    ("characters", "limit", "texts"),
    [(350_000, 1 << 20, 1), (350_000, 4 << 20, 3), (200_000, 256 << 10, 1), (900_000, 256 << 10, 0)],
)
def test_what_is_left_of_a_record_that_is_too_large(
    ingest: Ingest, protocol: str, characters: int, limit: int, texts: int
) -> None:
    """First repeated texts go, then all: never counts, times and cost."""
    ingest.default = takes(limit)
    here = sink(ingest.url, protocol=protocol)
    text = "p" * characters
    assert here.deliver([step(prompt=text, response="r", **COUNTED)]) == {}
    (taken,) = spans(ingest.requests[-1])
    found = attributes(taken)
    assert sum(text in str(value) for value in found.values()) == texts
    assert found.get("picostep.shed", False) is (texts == 0)
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (7, 5)
    assert Decimal(found["picostep.cost_usd"]) == Decimal("0.001")
    assert (taken.start_time_unix_nano, taken.end_time_unix_nano) == (TIMES["start_ns"], TIMES["end_ns"])
    assert "r" in json.loads(found["gen_ai.output.messages"])[0]["parts"][0]["content"]


@pytest.mark.parametrize("kind", ["run", "tool_call"])
def test_runs_and_tool_calls_that_are_too_large(ingest: Ingest, kind: str) -> None:
    ingest.default = takes(256 << 10)
    long = "x" * 300_000
    record = (
        run(user_prompt=long, full_output=long, metadata=json.dumps({"a": long}), session_id="s")
        if kind == "run"
        else tool_call(tool_name="n", args=long, result=long)
    )
    assert sink(ingest.url).deliver([record]) == {}
    (taken,) = spans(ingest.requests[-1])
    found = attributes(taken)
    assert found["picostep.shed"] is True
    assert long not in str(found)
    assert found["session.id" if kind == "run" else "gen_ai.tool.name"] == ("s" if kind == "run" else "n")


def test_the_form_that_was_too_large_is_not_tried_again(ingest: Ingest) -> None:
    ingest.default = takes(256 << 10)
    here = sink(ingest.url)
    for name in ("a", "b", "c"):
        assert here.deliver([step(name, prompt="p" * 200_000)]) == {}
    assert [len(each.body) > 256 << 10 for each in ingest.requests] == [True, False, False, False]
    ingest.take()
    for name in ("d", "e"):
        assert here.deliver([step(name, prompt="p" * 500_000)]) == {}
    assert [len(each.body) > 256 << 10 for each in ingest.requests] == [True, False, False]
    assert attributes(spans(ingest.requests[-1])[0])["picostep.shed"] is True


def test_protobuf_that_is_not_installed(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_http, "_has_protobuf", lambda: False)
    ingest.default = protobuf_only
    with pytest.raises(RetryLater, match=r"^http 415, .*picostep\[otlp\]$"):
        sink(ingest.url).deliver([step()])
    with pytest.raises(ConfigError, match=r"picostep\[otlp\]"):
        sink(ingest.url, protocol="http/protobuf")


def test_protobuf_that_only_a_shared_variable_asks_for(
    ingest: Ingest, clean_env: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be there for an SDK elsewhere: without its library, JSON goes out."""
    clean_env.setattr(otlp_http, "_has_protobuf", lambda: False)
    clean_env.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    here = resolve_destination(Settings.resolve(to=f"otlp:{ingest.url}"))
    assert open_sink(here.to[0], here).deliver([step()]) == {}
    assert ingest.requests[0].headers["content-type"] == "application/json"
    assert "picostep[otlp]" in caplog.text
    own = resolve_destination(Settings.resolve(to=f"otlp:{ingest.url}", otlp_protocol="http/protobuf"))
    with pytest.raises(ConfigError, match=r"picostep\[otlp\]"):
        open_sink(own.to[0], own)


def test_timeout(ingest: Ingest) -> None:
    ingest.script(Reply(delay=5))
    with pytest.raises(RetryLater, match=r"^read timeout$"):
        sink(ingest.url, timeout="0.1").deliver([step()])


def test_certificate(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with talkative(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", context=context) as url:
        secure = url.replace("http://", "https://")
        assert sink(secure, certificate=str(CERTIFICATE)).deliver([step()]) == {}
        with pytest.raises(RetryLater, match="CERTIFICATE_VERIFY_FAILED"):
            sink(secure).deliver([step()])
    (tmp_path / "no.pem").write_text("nothing")
    for name in ("no.pem", "missing.pem"):
        with pytest.raises(ConfigError, match=name):
            sink("https://localhost", certificate=str(tmp_path / name))


# --- settings -----------------------------------------------------------------------------------------------


@pytest.fixture
def environment(clean_env: pytest.MonkeyPatch) -> Callable[..., tuple[tuple[str, ...], ...]]:
    """What a destination has of these variables, named without their prefix."""

    def rows(**variables: str) -> tuple[tuple[str, ...], ...]:
        for name, value in variables.items():
            clean_env.setenv(name if name.startswith("OTEL") else f"OTEL_EXPORTER_OTLP_{name}", value)
        return resolve_destination(Settings.resolve(to="otlp:http://h:4318")).otlp

    return rows


Rows = Callable[..., tuple[tuple[str, ...], ...]]


def test_nothing_set(environment: Rows, clean_env: pytest.MonkeyPatch) -> None:
    assert environment() == ()
    assert environment(HEADERS="", TIMEOUT="", COMPRESSION="none") == ()
    clean_env.setenv("PICOSTEP_OTLP_CONTENT", "off")
    assert environment() == (("content", "off"),)
    assert resolve_destination(Settings.resolve(to="otlp:http://h", otlp_content=True)).otlp == ()
    assert resolve_destination(Settings.resolve(to="stdout")).otlp == ()


def test_everything_set(environment: Rows) -> None:
    found = environment(
        PROTOCOL="http/protobuf",
        COMPRESSION="gzip",
        TIMEOUT="2500",
        CERTIFICATE="/a/../b.pem",
        HEADERS="X-Key=a%2Cb=c, y = 2 ,",
        OTEL_RESOURCE_ATTRIBUTES="zone=a,service.name=x",
        OTEL_SERVICE_NAME="web",
    )
    assert found == (
        ("protocol", "http/protobuf", "shared"),
        ("compression", "gzip"),
        ("timeout", "2.5"),
        ("certificate", "/b.pem"),
        ("header", "x-key", "a,b=c"),
        ("header", "y", "2"),
        ("resource", "zone", "a"),
        ("resource", "service.name", "web"),
    )


def test_variables_for_traces_win(environment: Rows) -> None:
    found = environment(HEADERS="a=1,b=2", TRACES_HEADERS="c=3", TIMEOUT="1000", TRACES_TIMEOUT="2000")
    assert found == (("timeout", "2.0"), ("header", "c", "3"))


@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("PROTOCOL", "grpc", ()),
        ("PROTOCOL", "http", ()),
        ("COMPRESSION", "deflate", ()),
        ("TIMEOUT", "0", ()),
        ("TIMEOUT", "-1", ()),
        ("TIMEOUT", "nan", ()),
        ("TIMEOUT", "10s", ()),
        ("TIMEOUT", "300001", ()),
        ("HEADERS", "a", ()),
        ("HEADERS", "a,x=1", (("header", "x", "1"),)),
        ("HEADERS", f"x={KEY}%0d%0ay: z", ()),
        ("HEADERS", f"x={KEY}%E2%82%AC", ()),
        ("HEADERS", f"x={KEY},{KEY}", (("header", "x", KEY),)),
        ("HEADERS", f"a b={KEY}", ()),
        ("HEADERS", f"content-type={KEY},y=2", (("header", "y", "2"),)),
        ("OTEL_RESOURCE_ATTRIBUTES", "a", ()),
        ("OTEL_RESOURCE_ATTRIBUTES", "a,zone=b,=c", (("resource", "zone", "b"),)),
    ],
)
def test_a_shared_variable_that_is_no_use_is_ignored(
    environment: Rows,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
    left: tuple[tuple[str, ...], ...],
) -> None:
    """It may be meant for the SDK of OpenTelemetry in the same process, which is said to be fine with it."""
    monkeypatch.setattr(otel, "_said", set())
    assert environment(**{name: value}) == left
    assert environment(**{name: value}) == left
    lines = [each.getMessage() for each in caplog.records]
    assert lines
    assert len(set(lines)) == len(lines)
    for line in lines:
        assert line.startswith("ignored: ")
        assert name in line
        assert KEY not in line


def test_what_another_variable_says_counts_then(environment: Rows) -> None:
    assert environment(TRACES_PROTOCOL="grpc", PROTOCOL="http/protobuf")[0][:2] == (
        "protocol",
        "http/protobuf",
    )
    assert environment(TRACES_PROTOCOL="http/json")[0][:2] == ("protocol", "http/json")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("10", 10), ("2.5", 2.5), ("999", 300), ("1000", 1), ("10000", 10), ("300000", 300), ("0.5", 0.5)],
)
def test_a_timeout_in_seconds_or_milliseconds(environment: Rows, given: str, seconds: float) -> None:
    """The SDK for Python has seconds, the specification milliseconds."""
    ((name, found),) = environment(TIMEOUT=given)
    assert (name, float(found)) == ("timeout", seconds)


OURS_WIN = {
    "PICOSTEP_OTLP_HEADERS": "x-own=a%2Cb",
    "PICOSTEP_OTLP_PROTOCOL": "http/json",
    "PICOSTEP_OTLP_TIMEOUT": "7",
    "PICOSTEP_OTLP_CERTIFICATE": "/own.pem",
    "PICOSTEP_OTLP_COMPRESSION": "none",
}
SHARED = {
    "OTEL_EXPORTER_OTLP_HEADERS": f"x-vendor={KEY}",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "2000",
    "OTEL_EXPORTER_OTLP_CERTIFICATE": "/shared.pem",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    "OTEL_SERVICE_NAME": "web",
}


@pytest.mark.parametrize("in_code", [False, True])
def test_own_settings_win_over_shared_ones(clean_env: pytest.MonkeyPatch, in_code: bool) -> None:
    for name, value in {**SHARED, **({} if in_code else OURS_WIN)}.items():
        clean_env.setenv(name, value)
    given = {name.removeprefix("PICOSTEP_").lower(): value for name, value in OURS_WIN.items()}
    settings = Settings.resolve(to="otlp:http://h", **(given if in_code else {}))
    assert set(resolve_destination(settings).otlp) == {
        ("protocol", "http/json"),
        ("timeout", "7.0"),
        ("certificate", "/own.pem"),
        ("header", "x-own", "a,b"),
        ("resource", "service.name", "web"),
    }


def test_settings_for_each_sink(clean_env: pytest.MonkeyPatch) -> None:
    """Each receives its own headers, and nobody those of another."""
    with Ingest() as first, Ingest() as second, Ingest() as third:
        variables = {
            "OTEL_EXPORTER_OTLP_HEADERS": "x=shared",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "PICOSTEP_TO": f"otlp:{first.url},stdout,otlp:{second.url},otlp:{third.url}",
            "PICOSTEP_OTLP_HEADERS": "2:x=b%2C2,2:y=2,3:none",
            "PICOSTEP_OTLP_PROTOCOL": "http/json,2:http/protobuf",
            "PICOSTEP_OTLP_COMPRESSION": "3:gzip",
        }
        for name, value in variables.items():
            clean_env.setenv(name, value)
        here = Destination.from_dict(resolve_destination(Settings.resolve()).as_dict())
        for spec in here.to:
            if spec != "stdout":
                open_sink(spec, here).deliver([step()])
        sent = [each.take()[0].headers for each in (first, second, third)]
    assert [found.get("x") for found in sent] == ["shared", "b,2", None]
    assert [found.get("y") for found in sent] == [None, "2", None]
    assert [found["content-type"] for found in sent] == [
        "application/json",
        "application/x-protobuf",
        "application/json",
    ]
    assert [found.get("content-encoding") for found in sent] == [None, None, "gzip"]


def test_a_header_of_one_sink_is_no_change_for_another(clean_env: pytest.MonkeyPatch) -> None:
    """What waits in its spool stays its own."""

    def fingerprints(headers: str) -> list[str]:
        clean_env.setenv("PICOSTEP_OTLP_HEADERS", headers)
        here = resolve_destination(Settings.resolve(to=["otlp:http://a", "otlp:http://b"]))
        return [here.sink_fingerprint(spec) for spec in here.to]

    before, after = fingerprints("x=1,2:x=2"), fingerprints("x=1,2:x=3")
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROTOCOL", "grpc"),
        ("PROTOCOL", "2:"),
        ("COMPRESSION", "deflate"),
        ("TIMEOUT", "0"),
        ("TIMEOUT", "301"),
        ("TIMEOUT", "2:1"),
        ("HEADERS", KEY),
        ("HEADERS", f"2:x={KEY}"),
        ("HEADERS", f"x={KEY}%0a"),
        ("HEADERS", f"host={KEY}"),
    ],
)
def test_an_own_setting_that_is_no_use_is_refused(
    clean_env: pytest.MonkeyPatch, name: str, value: str
) -> None:
    clean_env.setenv(f"PICOSTEP_OTLP_{name}", value)
    with pytest.raises(ConfigError, match=f"PICOSTEP_OTLP_{name}|sink otlp number 2, but") as raised:
        resolve_destination(Settings.resolve(to="otlp:http://h"))
    assert KEY not in str(raised.value)


def test_own_headers_are_shown_nowhere(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("PICOSTEP_OTLP_HEADERS", f"x={KEY}")
    for settings in (
        Settings.resolve(to="otlp:http://h"),
        Settings.resolve(to="otlp:http://h", otlp_headers=f"x={KEY}"),
    ):
        here = resolve_destination(settings)
        assert ("header", "x", KEY) in here.otlp
        assert KEY not in repr(settings) + repr(settings.as_dict()) + repr(settings.limits) + repr(here)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://h", "http://h/v1/traces"),
        ("https://h:4318/", "https://h:4318/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ("http://h/otlp/v1/traces", "http://h/otlp/v1/traces"),
        ("http://h/own/", "http://h/own/"),
    ],
)
def test_endpoint(given: str, expected: str) -> None:
    assert Settings.resolve(to=f"otlp:{given}").to == (f"otlp:{expected}",)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "h:4318",
        "grpc://h",
        "http://",
        f"http://u:{KEY}@h",
        f"http://h?k={KEY}",
        f"http://h/#{KEY}",
        "http://h\n/x",
    ],
)
def test_no_endpoint(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^to: sink otlp must be http://host") as raised:
        Settings.resolve(to=f"otlp:{given}")
    assert KEY not in str(raised.value)


def test_a_destination_hides_headers_and_tells_them_apart() -> None:
    spec = "otlp:http://h/v1/traces"

    def with_rows(*rows: tuple[str, ...]) -> Destination:
        return Destination((spec,), otlp=rows)

    one, other = with_rows(("header", "x", KEY)), with_rows(("header", "x", "other"))
    packed = with_rows(("header", "x", KEY), ("compression", "gzip"))
    assert KEY not in repr(one) + one.fingerprint + repr(OtlpSink("http://h", one))
    assert len({one.fingerprint, other.fingerprint, packed.fingerprint, with_rows().fingerprint}) == 4
    assert one.sink_fingerprint(spec) == packed.sink_fingerprint(spec) != other.sink_fingerprint(spec)
    assert Destination.from_dict(one.as_dict()) == one


# --- with the exporter --------------------------------------------------------------------------------------

STEPS = """
import os, sys, json, picostep
run = picostep.run(session_id="TEXTcanary")
run.prompt("TEXTcanary")
for number in range(int(sys.argv[1])):
    run.step(f"s{number}").prompt(f"prompt {number}").response("r").end()
"""
DELIVERED = (
    STEPS
    + """
run.end()
assert picostep.flush(20)
print(json.dumps(picostep.stats()))
"""
)


def balanced(stats: dict[str, Any]) -> bool:
    dropped = sum(stats["dropped"].values())
    return bool(stats["accepted"] == stats["delivered"] + stats["in_ring"] + stats["in_spool"] + dropped)


def test_one_bad_span_costs_no_other(otlp_host: dict[str, str], ingest: Ingest, tmp_path: Path) -> None:
    """The receiver refuses whole batches for the sake of one span."""
    ingest.default = lambda request: Reply(status=400 if b"prompt 13" in request.body else 200)
    stats = json.loads(run_python(DELIVERED, otlp_host, args=("40",)).stdout)
    assert (stats["accepted"], stats["delivered"], stats["dropped"]["rejected"]) == (41, 40, 1)
    assert balanced(stats)
    taken = {name for each in ingest.requests if b"prompt 13" not in each.body for name in ids(each)}
    assert taken == {f"s{number}" for number in range(40)} - {"s13"} | {"invoke_agent"}
    (letters,) = tmp_path.rglob("dead-letters.jsonl")
    assert [json.loads(line)["record"]["step_id"] for line in letters.read_text().splitlines()] == ["s13"]


def test_too_large_is_halved(otlp_host: dict[str, str], ingest: Ingest) -> None:
    ingest.default = lambda request: Reply(status=413 if len(ids(request)) > 5 else 200)
    stats = json.loads(run_python(DELIVERED, otlp_host, args=("40",)).stdout)
    assert (stats["delivered"], balanced(stats)) == (41, True)
    assert {name for each in ingest.requests for name in ids(each)} == {
        "invoke_agent",
        *(f"s{number}" for number in range(40)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("limit", [256 << 10, 1 << 20])
def test_too_large_alone_loses_texts_and_nothing_else(
    otlp_host: dict[str, str], ingest: Ingest, limit: int
) -> None:
    ingest.default = takes(limit)
    code = """
import json, picostep
for number in range(30):
    run = picostep.run(f"r{number}").prompt("q").response("a")
    step = run.step(f"s{number}").prompt("p" * 40_000 * number).response("r")
    step.tokens(prompt_uncached=number, completion=1).end()
    run.end()
assert picostep.flush(30)
print(json.dumps(picostep.stats()))
"""
    stats = json.loads(run_python(code, otlp_host, timeout=60).stdout)
    assert (stats["delivered"], sum(stats["dropped"].values())) == (60, 0)
    taken = spans(*(each for each in ingest.requests if len(each.body) <= limit))
    counts = {
        found["picostep.step_id"]: found["gen_ai.usage.input_tokens"]
        for found in map(attributes, taken)
        if "picostep.step_id" in found
    }
    assert counts == {f"s{number}": number for number in range(30)}


def test_partial_success_is_counted(otlp_host: dict[str, str], ingest: Ingest, tmp_path: Path) -> None:
    """Each answer says that one span was refused, not which: no dead letter but where it was alone."""
    ingest.default = Reply(body=b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"prompt 3"}}')
    otlp_host |= {"PICOSTEP_BATCH_RECORDS": "4"}
    stats = json.loads(run_python(DELIVERED, otlp_host, args=("39",)).stdout)
    requests = ingest.requests
    assert stats["dropped"]["rejected"] == len(requests) < 40
    assert (stats["delivered"], balanced(stats)) == (40 - len(requests), True)
    alone = [ids(each)[0] for each in requests if len(ids(each)) == 1]
    letters = [
        json.loads(line)["record"] for path in tmp_path.rglob("dead-letters.jsonl") for line in path.open()
    ]
    assert [letter.get("step_id", "invoke_agent") for letter in letters] == alone


@pytest.mark.parametrize(
    "shared",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_RESOURCE_ATTRIBUTES": "no pairs"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "10"},
    ],
    ids=str,
)
def test_what_a_service_sets_for_its_own_sdk_stops_nothing(
    otlp_host: dict[str, str], ingest: Ingest, shared: dict[str, str]
) -> None:
    ingest.default = Reply(delay=0.2)
    stats = json.loads(run_python(DELIVERED, otlp_host | shared, args=("3",)).stdout)
    assert (stats["delivered"], balanced(stats)) == (4, True)


def test_a_run_whose_host_is_killed_is_the_parent_of_its_steps(
    otlp_host: dict[str, str], ingest: Ingest
) -> None:
    """Steps come in batches of their own; the exporter sends the run when its process is gone."""
    code = (
        STEPS
        + """
assert picostep.flush(20)
os.kill(os.getpid(), 9)
"""
    )
    done = run_python(code, otlp_host | {"PICOSTEP_BATCH_RECORDS": "3"}, args=("7",), check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: "invoke_agent" in [each.name for each in spans(*ingest.requests)], 20, "the run")
    found = spans(*ingest.requests)
    (root,) = [each for each in found if each.name == "invoke_agent"]
    steps = [each for each in found if each.name == "chat"]
    assert len(ingest.requests) > 1
    assert {attributes(each)["picostep.step_id"] for each in steps} == {f"s{number}" for number in range(7)}
    assert {(each.trace_id, each.parent_span_id) for each in steps} == {(root.trace_id, root.span_id)}
    assert (root.status.code, root.status.message) == (2, "the process ended before the run did")
    assert root.trace_id.hex() == attributes(root)["picostep.run_id"].replace("-", "")


def test_sent_again_after_503(otlp_host: dict[str, str], ingest: Ingest) -> None:
    ingest.script(Reply(status=503, headers={"Retry-After": "1"}))
    stats = json.loads(run_python(DELIVERED, otlp_host, args=("3",)).stdout)
    assert (stats["delivered"], balanced(stats)) == (4, True)
    first, second = ingest.requests[:2]
    assert second.at - first.at >= 1.0
    again = {each.span_id for each in spans(first)} & {each.span_id for each in spans(*ingest.requests[1:])}
    assert again == {each.span_id for each in spans(first)}


def test_content_off_by_the_environment(otlp_host: dict[str, str], ingest: Ingest) -> None:
    run_python(DELIVERED, otlp_host | {"PICOSTEP_OTLP_CONTENT": "off"}, args=("3",))
    assert len(spans(*ingest.requests)) == 4
    assert not any(b"canary" in each.body or b"prompt 1" in each.body for each in ingest.requests)


def test_hosts_that_do_not_use_the_sink_load_nothing_of_it(otlp_host: dict[str, str], ingest: Ingest) -> None:
    code = DELIVERED + "print([name for name in sys.modules if name.startswith(('google', 'opentelemetry'))])"
    ends = run_python(code, otlp_host | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, args=("1",)).stdout
    assert ends.endswith("[]\n")
    assert {each.headers["content-type"] for each in ingest.requests} == {"application/x-protobuf"}
    assert len(spans(*ingest.requests)) == 2
