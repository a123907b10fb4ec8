"""W3C Trace Context: which texts count, where they are kept, and the one tree that comes of it."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import picostep
from picostep import runtime
from picostep.errors import ArgumentTypeError
from ringfile import KIB, Rig, drain, frames
from support import Ingest, Reply, run_python, wait_until
from test_otlp import attributes, both, run, spans, step, tool_call

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings in files need POSIX")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"

MADE: dict[str, Callable[..., Any]] = {
    "run": lambda **given: picostep.run(**given).error(),
    "step": lambda **given: picostep.step("r", **given).error(),
    "tool_call": lambda **given: picostep.tool_call("r", **given).error(),
    "send_run": lambda **given: picostep.send_run(prompt="p", **given),
    "send_step": lambda **given: picostep.send_step("r", prompt="p", response="r", **given),
    "send_tool_call": lambda **given: picostep.send_tool_call("r", name="n", **given),
}


def kept(rig: Rig) -> list[str | None]:
    """The context of each record in the ring, which is empty afterwards."""
    return [record.get("traceparent") for record in drain(rig.reader())]


def kept_of(rig: Rig, given: str) -> str | None:
    MADE["send_step"](traceparent=given)
    (found,) = kept(rig)
    return found


# --- which texts count --------------------------------------------------------------------------------------

# By the names of the W3C's own test suite (trace-context/test/test.py).
VALID = {
    "version 0x00": (GIVEN, GIVEN),
    "version 0xcc": (f"cc-{TRACE}-{PARENT}-01", GIVEN),
    "version 0xcc, with more": (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", GIVEN),
    "version 0xfe": (f"fe-{TRACE}-{PARENT}-00-", f"00-{TRACE}-{PARENT}-00"),
    "flags not sampled": (f"00-{TRACE}-{PARENT}-00", f"00-{TRACE}-{PARENT}-00"),
    "flags random, of level 2": (f"00-{TRACE}-{PARENT}-03", f"00-{TRACE}-{PARENT}-03"),
    "flags reserved": (f"00-{TRACE}-{PARENT}-fc", f"00-{TRACE}-{PARENT}-00"),
    "flags all": (f"00-{TRACE}-{PARENT}-ff", f"00-{TRACE}-{PARENT}-03"),
    "ows": (f" \t {GIVEN} \t", GIVEN),
}
INVALID = {
    "version 0x00, with more": f"{GIVEN}.",
    "version 0x00, with a field": f"{GIVEN}-what-the-future-will-be-like",
    "version 0xcc, no dash": f"cc-{TRACE}-{PARENT}-01.what-the-future-will-not-be-like",
    "version 0xff": f"ff-{TRACE}-{PARENT}-01",
    "version illegal": f".0-{TRACE}-{PARENT}-01",
    "version illegal, second": f"0.-{TRACE}-{PARENT}-01",
    "version too long": f"000-{TRACE}-{PARENT}-01",
    "version too short": f"0-{TRACE}-{PARENT}-01",
    "trace id all zero": f"00-{'0' * 32}-{PARENT}-01",
    "trace id illegal": f"00-.{TRACE[1:]}-{PARENT}-01",
    "trace id upper case": f"00-{TRACE.upper()}-{PARENT}-01",
    "trace id too long": f"00-{TRACE}7-{PARENT}-01",
    "trace id too short": f"00-{TRACE[:-1]}-{PARENT}-01",
    "parent id all zero": f"00-{TRACE}-{'0' * 16}-01",
    "parent id illegal": f"00-{TRACE}-{PARENT[:-1]}.-01",
    "parent id upper case": f"00-{TRACE}-{PARENT.upper()}-01",
    "parent id too long": f"00-{TRACE}-{PARENT}8-01",
    "parent id too short": f"00-{TRACE}-{PARENT[:-1]}-01",
    "flags illegal": f"00-{TRACE}-{PARENT}-.0",
    "flags illegal, second": f"00-{TRACE}-{PARENT}-0.",
    "flags too long": f"00-{TRACE}-{PARENT}-001",
    "flags too short": f"00-{TRACE}-{PARENT}-1",
    "flags missing": f"00-{TRACE}-{PARENT}",
    "underscores": GIVEN.replace("-", "_"),
    "two headers joined": f"{GIVEN},{GIVEN}",
    "blanks only": " \t",
    "line feed": f"{GIVEN}\n",
    "NUL": f"{GIVEN[:-1]}\0",
    "beyond ASCII": f"{GIVEN[:-1]}é",
    "digits of another script": GIVEN.replace("4", "\u0664"),
    "version 0xcc, more than a header can hold": f"cc-{TRACE}-{PARENT}-01-深",
    "lone surrogate": f"{GIVEN[:-1]}\udc80",
    "a megabyte": "0" * KIB * KIB,
}


@pytest.mark.parametrize(("given", "expected"), VALID.values(), ids=VALID)
def test_valid(rig: Rig, given: str, expected: str) -> None:
    assert kept_of(rig, given) == expected


@pytest.mark.parametrize("given", INVALID.values(), ids=INVALID)
def test_invalid_is_ignored(rig: Rig, given: str) -> None:
    """What a client sends breaks no server, and the record is as if there had been none."""
    assert kept_of(rig, given) is None


def model(given: str) -> str | None:
    """The specification, written once more: its grammar, then its rules."""
    found = re.fullmatch(
        r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
        r"(?P<more>-.*)?",
        given.strip(" \t"),
        re.S,
    )
    if not found or max(given) > "\xff":  # headers are bytes
        return None
    if found["version"] == "ff" or (found["version"] == "00" and found["more"] is not None):
        return None
    if int(found["trace"], 16) == 0 or int(found["parent"], 16) == 0:
        return None
    return f"00-{found['trace']}-{found['parent']}-{int(found['flags'], 16) & 3:02x}"


HEX = "0123456789abcdef"


def field(size: int, *odd: str) -> st.SearchStrategy[str]:
    """Hex digits; now and then too many, too few, or others."""
    right = st.text(HEX, min_size=size, max_size=size)
    return st.one_of(
        right, right, st.sampled_from(["0" * size, *odd]), st.text(HEX + "AFg.", max_size=size + 1)
    )


NEAR = st.builds(
    "{}{}-{}-{}-{}{}".format,
    st.sampled_from(["", " ", "\t"]),
    field(2, "01", "fe", "ff"),
    field(32),
    field(16),
    field(2),
    st.sampled_from(["", "", " ", "-", "-more", ".", "\n", "-é", "-\udc80\t"]),
)


@given(st.one_of(NEAR, st.text()))
def test_any_text_counts_as_the_specification_has_it(module_rig: Rig, given: str) -> None:
    assert kept_of(module_rig, given) == model(given)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("given", [GIVEN.encode(), 1, True, [GIVEN], {"traceparent": GIVEN}])
def test_what_is_no_text_is_a_mistake(rig: Rig, name: str, given: object) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"^{name}\(\): traceparent must be str, not \w+") as raised:
        MADE[name](traceparent=given)
    assert TRACE not in str(raised.value)
    assert kept(rig) == []


@pytest.mark.parametrize("name", MADE)
def test_where_mistakes_are_logged_the_record_is_kept(rig: Rig, name: str) -> None:
    before = picostep.stats()["misuse"].get("ArgumentTypeError", 0)
    picostep.configure(to="stdout", dir=str(rig.directory), exporter="off", misuse="log")
    try:
        MADE[name](traceparent=b"x")
    finally:
        picostep.configure(to="stdout", dir=str(rig.directory), exporter="off")
    assert picostep.stats()["misuse"]["ArgumentTypeError"] == before + 1
    assert kept(rig) == [None]


@pytest.mark.parametrize("name", MADE)
def test_none_and_empty_are_not_given(rig: Rig, name: str, caplog: pytest.LogCaptureFixture) -> None:
    MADE[name](traceparent=None)
    MADE[name](traceparent="")
    assert kept(rig) == [None, None]
    assert caplog.records == []


def test_one_warning_that_quotes_nothing(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_traceparent_ignored", False)
    for text in ("canary-1", GIVEN, "canary-2"):
        for make in MADE.values():
            make(traceparent=text)
    (found,) = caplog.records
    assert (found.name, found.levelno) == ("picostep", logging.WARNING)
    assert found.getMessage() == "run(): a traceparent is not valid: ignored, like all further ones"


# --- where it is kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
def test_each_call_takes_one(rig: Rig, name: str) -> None:
    MADE[name](traceparent=GIVEN)
    assert kept(rig) == [GIVEN]


def test_a_subclass_of_str_is_a_text(rig: Rig) -> None:
    class Header(str):
        pass

    assert kept_of(rig, Header(GIVEN)) == GIVEN


@pytest.mark.parametrize("run_id", [None, "a run"])
def test_what_a_run_makes_inherits_it(rig: Rig, run_id: str | None) -> None:
    """Also what a step of it makes, and after the run has ended."""
    run = picostep.run(run_id, traceparent=GIVEN)
    step = run.step()
    for made in (step.tool_call("t"), run.tool_call("t"), step, run):
        made.error()
    for late in (run.step(), step.tool_call("t")):
        late.error()
    assert kept(rig) == [GIVEN] * 6


def test_what_send_run_sends_has_it(rig: Rig) -> None:
    steps, calls = [{"prompt": "p", "response": "r"}], [{"name": "n"}]
    picostep.send_run(prompt="p", steps=steps, tool_calls=calls, traceparent=f" {GIVEN}")
    assert kept(rig) == [GIVEN] * 3
    with pytest.raises(ArgumentTypeError, match="traceparent"):
        picostep.send_run(prompt="p", steps=[{**steps[0], "traceparent": GIVEN}])


def test_it_costs_no_space_when_not_set(rig: Rig) -> None:
    picostep.send_step("r", prompt="p", response="r")
    picostep.send_step("r", prompt="p", response="r", traceparent=GIVEN)
    without, having = frames(rig.raw())
    assert having.size - without.size == 16 + 56
    assert [entry[0] for entry in having.texts] == [*(entry[0] for entry in without.texts), 12]


def test_it_is_neither_shed_nor_cut(rig: Rig) -> None:
    """Not when the ring is nearly full, nor when a record is larger than a quarter of it."""
    picostep.send_step("r", prompt="p" * 100 * KIB, response="r", traceparent=GIVEN)
    while rig.ring.counters()["shed"] < 10:
        picostep.send_step("r", prompt="p" * KIB, response="r", traceparent=GIVEN)
    found = list(drain(rig.reader()))
    assert sum("shortened" in record for record in found) == 1
    assert sum("shed" in record for record in found) == 10
    assert {record["traceparent"] for record in found} == {GIVEN}


@pytest.mark.parametrize(
    "damage", [GIVEN.upper(), f"ff{GIVEN[2:]}", f"{GIVEN[:-2]}04", f"00-{'0' * 32}-{PARENT}-01"]
)
def test_a_damaged_one_is_a_damaged_record(rig: Rig, damage: str) -> None:
    for _ in range(3):
        MADE["send_step"](traceparent=GIVEN)
    middle = frames(rig.raw())[1]
    (at,) = [at for slot, _, _, at in middle.texts if slot == 12]
    with rig.path.open("rb+") as file:  # in place: the core may be reserving the rest of the file
        file.seek(at)
        file.write(damage.encode())
    assert len(kept(rig)) == 2
    assert rig.check()["dropped"]["corrupt"] == 1


# --- spans --------------------------------------------------------------------------------------------------


def test_spans_of_a_callers_trace() -> None:
    """The run hangs under the caller's span; the rest under the run, whether or not that ever comes."""
    records = [make(traceparent=f"00-{TRACE}-{PARENT}-03") for make in (run, step, tool_call)]
    for form in both(records):
        root, *children = form.resource_spans[0].scope_spans[0].spans
        assert root.parent_span_id.hex() == PARENT
        for each in (root, *children):
            assert (each.trace_id.hex(), each.flags) == (TRACE, 3)
        assert {each.parent_span_id for each in children} == {root.span_id}
    plain = both([make() for make in (run, step, tool_call)])[0].resource_spans[0].scope_spans[0].spans
    assert [each.span_id for each in plain] == [root.span_id, *(each.span_id for each in children)]
    assert {each.flags for each in plain} == {0}


# A server with the real SDK: its span around a run, in a trace that a caller began in another process.
SERVER = """
import json, sys, picostep
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(sys.argv[1] + "/v1/traces")))
tracer = provider.get_tracer("server")
assert picostep.current_traceparent() is None
with tracer.start_as_current_span("caller"):
    headers = {}
    propagate.inject(headers)
    assert picostep.current_traceparent() == headers["traceparent"]
with tracer.start_as_current_span("server", context=propagate.extract(headers)):
    run = picostep.run("a run", traceparent=picostep.current_traceparent())
    run.prompt("p")
    with tracer.start_as_current_span("of no concern"):
        step = run.step("inherits").prompt("p").response("r")
        step.tool_call("tool").end()
        step.end()
    run.end()
picostep.step("a run", "by id", traceparent=headers["traceparent"]).error()
assert picostep.current_traceparent() is None
provider.shutdown()
assert picostep.flush(20)
"""


def tree(found: list[Span]) -> dict[str, str]:
    """The name of each span, and that of its parent; fails if they are not in one trace."""
    assert len({each.trace_id for each in found}) == 1
    names = {
        each.span_id: attributes(each).get("picostep.step_id", each.name) if each.attributes else each.name
        for each in found
    }
    assert len(names) == len(found)
    return {names[each.span_id]: names.get(each.parent_span_id, "") for each in found}


@pytest.mark.parametrize("batch", ["512", pytest.param("1", marks=pytest.mark.slow)])
def test_one_tree_with_the_spans_of_opentelemetry(
    otlp_host: dict[str, str], ingest: Ingest, batch: str
) -> None:
    run_python(SERVER, otlp_host | {"PICOSTEP_BATCH_RECORDS": batch}, args=(ingest.url,))
    found = spans(*ingest.requests)
    assert tree(found) == {
        "caller": "",
        "server": "caller",
        "of no concern": "server",
        "invoke_agent": "server",
        "inherits": "invoke_agent",
        "execute_tool tool": "invoke_agent",
        "by id": "invoke_agent",
    }
    ours = [each for each in found if each.attributes]
    assert len(ours) == 4
    assert {each.flags & 1 for each in ours} == {1}


def test_nothing_is_loaded_to_find_that_there_is_no_span() -> None:
    code = (
        "import sys, types, picostep; assert picostep.current_traceparent() is None; "
        "assert not any(name.startswith('opentelemetry') for name in sys.modules); "
        # Another thread has just begun to import it.
        "sys.modules['opentelemetry.trace'] = types.ModuleType('opentelemetry.trace'); "
        "assert picostep.current_traceparent() is None"
    )
    run_python(code)


@pytest.mark.parametrize("ids", ["", "'r' * 300, 's' * 300,"])
def test_a_run_whose_host_is_killed_stays_in_the_callers_trace(
    otlp_host: dict[str, str], ingest: Ingest, ids: str
) -> None:
    """However long its texts are, of which the table of open runs keeps little."""
    code = f"""
import os, picostep
run = picostep.run({ids} traceparent="{GIVEN}")
run.prompt("p" * 5000, "s" * 5000, "i" * 5000).response("r" * 5000, "o" * 5000).metadata(a="m" * 5000)
run.status(0, "深" * 5000)
run.step("s").prompt("p").response("r").end()
assert picostep.flush(20)
os.kill(os.getpid(), 9)
"""
    done = run_python(code, otlp_host, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: len(spans(*ingest.requests)) == 2, 20, "the run")
    root, child = sorted(spans(*ingest.requests), key=lambda each: each.name, reverse=True)
    assert root.status.message.endswith("the process ended before the run did")
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.flags) == (TRACE, PARENT, 1)
    assert (child.trace_id.hex(), child.parent_span_id, child.flags) == (TRACE, root.span_id, 1)


def test_through_the_spool(otlp_host: dict[str, str], ingest: Ingest) -> None:
    """What waits on disk, read back by another exporter, is what it was."""
    ingest.default = Reply(status=503)
    code = f"""
import json, picostep, time
steps = [{{"prompt": "p", "response": "\\udc80"}}]
picostep.send_run(run_id="r", prompt="p", steps=steps, traceparent="{GIVEN}")
deadline = time.monotonic() + 20
while picostep.stats()["in_spool"] < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
print(json.dumps(picostep.stats()))
"""
    stats = json.loads(run_python(code, otlp_host | {"PICOSTEP_EXIT_TIMEOUT": "0.1"}).stdout)
    assert (stats["in_spool"], stats["in_ring"]) == (2, 0)
    ingest.default = Reply()
    wait_until(lambda: any(ingest.take()), 30, "a request that was answered 503")
    wait_until(lambda: len(spans(*ingest.requests)) >= 2, 40, "what was in the spool")
    root, child = sorted(spans(*ingest.requests), key=lambda each: each.name, reverse=True)[:2]
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.flags) == (TRACE, PARENT, 1)
    assert (child.trace_id, child.parent_span_id, child.flags) == (root.trace_id, root.span_id, 1)


def test_files_have_it_and_the_ingest_does_not(
    otlp_host: dict[str, str], ingest: Ingest, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    code = f"import picostep; picostep.step('r', traceparent='{GIVEN}').error(); assert picostep.flush(20)"
    run_python(
        code,
        otlp_host
        | {"PICOSTEP_TO": f"tcc,jsonl:{out}", "TCC_URL": f"{ingest.url}/v1/custom", "TCC_API_KEY": "k"},
    )
    (line,) = out.read_text().splitlines()
    assert json.loads(line)["traceparent"] == GIVEN
    (sent,) = ingest.items()
    assert sorted(sent) == ["end_time", "run_id", "start_time", "status_code", "step_id", "type"]
