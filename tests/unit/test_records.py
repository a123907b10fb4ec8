"""Run, Step and ToolCall: what they accept, what they refuse and how, and what they leave behind."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import pickle
import re
import subprocess
import sys
import sysconfig
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import picostep
from picostep import ArgumentError, ArgumentTypeError, EndedError, MissingFieldError, Run, Step, ToolCall
from ringfile import Rig, drain
from support import clean_environment, run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings in files need POSIX")

TESTS = Path(__file__).parents[1]
SECRET = "sk-secret-content"
CAMPAIGN = os.environ.get("PICOSTEP_CAMPAIGN") == "1"
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@pytest.fixture(autouse=True)
def rig(module_rig: Rig) -> Rig:
    module_rig.renew(1 << 20)
    return module_rig


def recorded(rig: Rig) -> list[dict[str, Any]]:
    """What has been recorded since the last call."""
    reader = rig.reader()
    records = list(drain(reader))
    reader.close()
    return records


class Text(str):
    """A text that can refer to anything."""


class TextEnum(str, Enum):
    STOP = "stop"


class Index:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __index__(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class OnlyInt:
    def __int__(self) -> int:
        return 1


# --- arguments --------------------------------------------------------------------------------------------

# Every argument that takes a text, as a call that is right but for it: method, argument, call.
TEXTS: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("run", "run_id", lambda x: picostep.run(x)),
    ("run", "session_id", lambda x: picostep.run(session_id=x)),
    ("run", "tcc_url", lambda x: picostep.run(tcc_url=x)),
    ("step", "run_id", lambda x: picostep.step(x)),
    ("step", "step_id", lambda x: picostep.step("r", x)),
    ("tool_call", "run_id", lambda x: picostep.tool_call(x)),
    ("tool_call", "tool_call_id", lambda x: picostep.tool_call("r", x)),
    ("tool_call", "tool_name", lambda x: picostep.tool_call("r", tool_name=x)),
    ("Run.step", "step_id", lambda x: picostep.run().step(x)),
    ("Run.tool_call", "tool_name", lambda x: picostep.run().tool_call(x)),
    ("Run.tool_call", "tool_call_id", lambda x: picostep.run().tool_call("n", x)),
    ("Step.tool_call", "tool_name", lambda x: picostep.step("r").tool_call(x)),
    ("Run.status", "message", lambda x: picostep.run().status(0, x)),
    ("Step.status", "message", lambda x: picostep.step("r").status(0, x)),
    ("ToolCall.status", "message", lambda x: picostep.tool_call("r").status(0, x)),
    ("Run.error", "status_message", lambda x: picostep.run().error(x)),
    ("Step.error", "status_message", lambda x: picostep.step("r").error(x)),
    ("ToolCall.error", "status_message", lambda x: picostep.tool_call("r").error(x)),
    ("Step.model", "requested", lambda x: picostep.step("r").model(x)),
    ("Step.model", "used", lambda x: picostep.step("r").model(used=x)),
    ("Step.finish_reason", "reason", lambda x: picostep.step("r").finish_reason(x)),
    ("ToolCall.name", "tool_name", lambda x: picostep.tool_call("r").name(x)),
    ("Run.feedback", "text", lambda x: picostep.run().feedback(text=x)),
    ("Run.feedback", "score", lambda x: picostep.run().feedback(score=x)),
    ("submit_feedback", "run_id", lambda x: picostep.submit_feedback(x, "thumbs_up")),
    ("send_step", "run_id", lambda x: picostep.send_step(x, prompt="", response="")),
    ("send_step", "step_id", lambda x: picostep.send_step("r", prompt="", response="", step_id=x)),
    ("send_step", "model_used", lambda x: picostep.send_step("r", prompt="", response="", model_used=x)),
    (
        "send_step",
        "finish_reason",
        lambda x: picostep.send_step("r", prompt="", response="", finish_reason=x),
    ),
    ("send_tool_call", "name", lambda x: picostep.send_tool_call("r", name=x)),
    ("send_run", "session_id", lambda x: picostep.send_run(prompt="", session_id=x)),
]
BODIES: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("Run.prompt", "user_prompt", lambda x: picostep.run().prompt(x)),
    ("Run.prompt", "system_prompt", lambda x: picostep.run().prompt("", x)),
    ("Run.prompt", "full_input", lambda x: picostep.run().prompt("", None, x)),
    ("Run.response", "text", lambda x: picostep.run().response(x)),
    ("Run.response", "full_output", lambda x: picostep.run().response("", x)),
    ("Step.prompt", "text", lambda x: picostep.step("r").prompt(x)),
    ("Step.response", "text", lambda x: picostep.step("r").response(x)),
    ("Step.tool_definitions", "definitions", lambda x: picostep.step("r").tool_definitions(x)),
    ("send_step", "prompt", lambda x: picostep.send_step("r", prompt=x, response="")),
    ("send_step", "response", lambda x: picostep.send_step("r", prompt="", response=x)),
    ("send_run", "prompt", lambda x: picostep.send_run(prompt=x)),
    ("send_run", "response", lambda x: picostep.send_run(prompt="", response=x)),
]
COUNTS: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("Step.tokens", "prompt_uncached", lambda x: picostep.step("r").tokens(x)),
    ("Step.tokens", "prompt_cached", lambda x: picostep.step("r").tokens(1, x)),
    ("Step.tokens", "completion", lambda x: picostep.step("r").tokens(1, 1, x)),
    (
        "send_step",
        "prompt_uncached",
        lambda x: picostep.send_step("r", prompt="", response="", prompt_uncached=x),
    ),
    ("send_step", "completion", lambda x: picostep.send_step("r", prompt="", response="", completion=x)),
]
CODES: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("Run.status", "code", lambda x: picostep.run().status(x)),
    ("Step.status", "code", lambda x: picostep.step("r").status(x)),
    ("ToolCall.status", "code", lambda x: picostep.tool_call("r").status(x)),
    ("send_step", "code", lambda x: picostep.send_step("r", prompt="", response="", status_code=x)),
]
TIMES: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("run", "start_time", lambda x: picostep.run(start_time=x)),
    ("step", "start_time", lambda x: picostep.step("r", start_time=x)),
    ("Run.step", "start_time", lambda x: picostep.run().step(start_time=x)),
    ("tool_call", "start_time", lambda x: picostep.tool_call("r", start_time=x)),
    ("Run.end", "end_time", lambda x: picostep.run().prompt("").end(x)),
    ("Step.end", "end_time", lambda x: picostep.step("r").prompt("").response("").end(x)),
    ("ToolCall.end", "end_time", lambda x: picostep.tool_call("r", tool_name="n").end(x)),
    ("Step.error", "end_time", lambda x: picostep.step("r").error("", x)),
    ("send_step", "end_time", lambda x: picostep.send_step("r", prompt="", response="", end_time=x)),
]
COSTS: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("Step.cost", "real_total", lambda x: picostep.step("r").cost(x)),
    ("send_step", "cost", lambda x: picostep.send_step("r", prompt="", response="", cost=x)),
]


def refuses(where: str, argument: str, call: Callable[[Any], Any], value: Any, kind: type[Exception]) -> str:
    """The message; it names method and argument, and shows no content."""
    with pytest.raises(kind, match=rf"^{re.escape(where)}\(\): .*\b{argument}\b") as caught:
        call(value)
    assert type(caught.value) is kind
    assert isinstance(caught.value, picostep.PicostepError)
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 200
    return str(caught.value)


def ids_of(cases: list[tuple[str, str, Callable[[Any], Any]]]) -> list[str]:
    return [f"{where}-{argument}" for where, argument, _ in cases]


@pytest.mark.parametrize(("where", "argument", "call"), TEXTS, ids=ids_of(TEXTS))
def test_texts(rig: Rig, where: str, argument: str, call: Callable[[Any], Any]) -> None:
    for wrong in (1, 1.5, True, SECRET.encode(), [SECRET], {SECRET: 1}, object(), np.str_):
        message = refuses(where, argument, call, wrong, ArgumentTypeError)
        assert type(wrong).__name__ in message
    assert recorded(rig) == []


@pytest.mark.parametrize(("where", "argument", "call"), BODIES, ids=ids_of(BODIES))
def test_bodies(rig: Rig, where: str, argument: str, call: Callable[[Any], Any]) -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    class Broken(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise LookupError("broken")

    for wrong in (1, 1.5, True, SECRET.encode(), (SECRET,), {SECRET}, object()):
        refuses(where, argument, call, wrong, ArgumentTypeError)
    for wrong in ([object()], {"a": SECRET.encode()}, {(1, 2): "key"}):
        refuses(where, argument, call, wrong, ArgumentTypeError)
    for wrong in ([float("nan")], {"a": float("inf")}, cycle, deep, Broken(a=1)):
        refuses(where, argument, call, wrong, ArgumentError)
    assert recorded(rig) == []
    for right in ("", Text("a"), ["\ud800", None], {"a": {1: 2.5}}):
        call(right)


@pytest.mark.parametrize(("where", "argument", "call"), COUNTS, ids=ids_of(COUNTS))
def test_counts(rig: Rig, where: str, argument: str, call: Callable[[Any], Any]) -> None:
    for wrong in (
        1.0,
        1.5,
        float("nan"),
        True,
        np.bool_(True),
        np.float64(1),
        "1",
        b"1",
        Decimal(1),
        1j,
        OnlyInt(),
    ):
        refuses(where, argument, call, wrong, ArgumentTypeError)
    for broken in (Index("1"), Index(KeyError("broken")), Index(1.5)):
        refuses(where, argument, call, broken, ArgumentTypeError)
    for out_of_range in (-1, 2**53 + 1, 2**63, 2**64, 2**70, -(2**70), 10**5000, np.int64(-1), Index(-1)):
        refuses(where, argument, call, out_of_range, ArgumentError)
    assert recorded(rig) == []
    for right in (0, 2**53, np.int64(5), np.uint8(5), np.uint64(2**53), Index(5), None):
        call(right)


@pytest.mark.parametrize(("where", "argument", "call"), CODES, ids=ids_of(CODES))
def test_status_codes(rig: Rig, where: str, argument: str, call: Callable[[Any], Any]) -> None:
    for wrong in (None, 1.0, True, "0", b"", Decimal(1), OnlyInt()):
        refuses(where, argument, call, wrong, ArgumentTypeError)
    for out_of_range in (2**53 + 1, -(2**53) - 1, 2**70, 10**5000):
        refuses(where, argument, call, out_of_range, ArgumentError)
    assert recorded(rig) == []
    for right in (0, -1, 2**53, -(2**53), np.int32(2)):
        call(right)


@pytest.mark.parametrize(("where", "argument", "call"), COSTS, ids=ids_of(COSTS))
def test_costs(rig: Rig, where: str, argument: str, call: Callable[[Any], Any]) -> None:
    for wrong in (True, "0.1", b"1", 1j, object(), OnlyInt(), [1], Index("x")):
        refuses(where, argument, call, wrong, ArgumentTypeError)
    nonsense = (float("nan"), float("inf"), -float("inf"), -0.1, -1, -(10**5000), 10**300, 10**5000, 1e300)
    decimals = ("NaN", "sNaN", "Infinity", "-1", "1e300", f"0.{'1' * 2000}")
    for out_of_range in (*nonsense[:-1], *map(Decimal, decimals)):
        refuses(where, argument, call, out_of_range, ArgumentError)
    assert recorded(rig) == []
    for right in (
        0,
        0.0,
        5e-324,
        1e299,
        10**299,
        Decimal("0.10"),
        np.float64(0.1),
        np.int64(3),
        Index(3),
        None,
    ):
        call(right)


@pytest.mark.parametrize(("where", "argument", "call"), TIMES, ids=ids_of(TIMES))
def test_times(rig: Rig, where: str, argument: str, call: Callable[[Any], Any]) -> None:
    for wrong in (1, 1.5, True, b"2026-01-01T00:00:00Z", object()):
        refuses(where, argument, call, wrong, ArgumentTypeError)
    for wrong in ("", "yesterday", "2026-01-01T00:00:00", datetime(2026, 1, 1)):
        refuses(where, argument, call, wrong, ArgumentError)
    if argument == "end_time":
        refuses(where, argument, call, "1999-01-01T00:00:00Z", ArgumentError)
    assert recorded(rig) == []
    call("2199-01-01T00:00:00+01:00")
    call(datetime(2199, 1, 1, tzinfo=timezone.utc))
    call(None)


def test_run_ids() -> None:
    """An empty id counts as not given; a step cannot do without that of its run."""
    assert picostep.run("").run_id != ""
    assert picostep.step("r", "").step_id != ""
    for call in (picostep.step, picostep.tool_call):
        with pytest.raises(ArgumentError, match="run_id"):
            call("")
        with pytest.raises(ArgumentError, match="run_id"):
            call(None)  # type: ignore[arg-type]
    assert picostep.run("given").run_id == "given"
    made = [picostep.run().run_id for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(
        re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", i) for i in made
    )


def test_other_arguments(rig: Rig) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^run\(\): conversational must be bool, not int \(1\)$"):
        picostep.run(conversational=1)  # type: ignore[arg-type]
    for call in (picostep.run, lambda **more: picostep.step("r", **more)):
        with pytest.raises(ArgumentTypeError, match="api_key must be str") as caught:
            call(api_key=SECRET.encode())  # type: ignore[operator]
        assert SECRET not in str(caught.value)
    for arguments in ({"api_key": 1}, {"tcc_url": 0}, {"tcc_url": "http://127.0.0.1", "api_key": 1}):
        with pytest.raises(ArgumentTypeError, match=r"^submit_feedback\(\): "):
            picostep.submit_feedback("r", "thumbs_up", **arguments)  # type: ignore[arg-type]
    for score, text in [(None, None), ("", ""), ("good", None), (None, "t" * 2001)]:
        with pytest.raises(ArgumentError, match=r"^submit_feedback\(\): "):
            picostep.submit_feedback("r", score, text)  # type: ignore[arg-type]
    assert picostep.submit_feedback("r", text="t" * 2000)
    for keys in ({1: "a"}, {None: "a"}, {b"a": "a"}):
        with pytest.raises(ArgumentTypeError, match=r"Run.metadata\(\): metadata keys must be str"):
            picostep.run().metadata(keys)  # type: ignore[arg-type]
    for data in (1, "text", [1]):
        with pytest.raises(ArgumentTypeError, match=r"Run.metadata\(\): data must be a dict"):
            picostep.run().metadata(data)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="metadata has no JSON form"):
        picostep.run().metadata(a=object())  # type: ignore[arg-type]
    for value in (object(), {1, 2}, b"bytes"):
        with pytest.raises(ArgumentTypeError, match=r"ToolCall.args\(\): value has no JSON form"):
            picostep.tool_call("r").args(value)  # type: ignore[arg-type]
    for usage in (None, 1, "text", []):
        with pytest.raises(ArgumentTypeError, match=r"^Step.usage\(\): "):
            picostep.step("r").usage(usage)
    with pytest.raises(ArgumentError, match=r"^Step.usage\(\): "):
        picostep.step("r").usage({"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}})
    for steps in (None, [1], [{}], [{"promt": ""}], [{"prompt": "", "response": "", "run_id": "r"}]):
        with pytest.raises(ArgumentTypeError, match="send_"):
            picostep.send_run(prompt="", steps=steps)  # type: ignore[arg-type]
    assert [record["kind"] for record in recorded(rig)] == ["feedback"]


def test_a_wrong_call_changes_nothing(rig: Rig) -> None:
    """All or nothing: what was set before is what goes out."""
    run = picostep.run("r").prompt("user", "system", "input").response("text", "output")
    step = run.step("s").prompt("p").response("r").model("a", "b").tokens(1, 2, 3).cost(0.5).status(1, "m")
    wrong: list[Callable[[], Any]] = [
        lambda: run.prompt("new", 1),  # type: ignore[arg-type]
        lambda: run.prompt("new", "new", 1),  # type: ignore[arg-type]
        lambda: run.response("new", [object()]),
        lambda: step.model("new", 1),  # type: ignore[arg-type]
        lambda: step.tokens(9, 9, -1),
        lambda: step.cost(-1),
        lambda: step.status(9, 1),  # type: ignore[arg-type]
        lambda: step.status(True, "new"),
        lambda: step.prompt(object()),  # type: ignore[arg-type]
        lambda: step.error("new", "yesterday"),
        lambda: step.end("yesterday"),
    ]
    for call in wrong:
        with pytest.raises((ArgumentError, ArgumentTypeError)):
            call()
    step.end()
    run.end()
    got_step, got_run = recorded(rig)
    assert got_run["user_prompt"], got_run["system_prompt"] == ("user", "system")
    assert (got_run["full_input"], got_run["response"], got_run["full_output"]) == ("input", "text", "output")
    assert (got_step["model_requested"], got_step["model_used"]) == ("a", "b")
    assert [got_step[f"{name}_tokens"] for name in ("prompt_uncached", "prompt_cached", "completion")] == [
        1,
        2,
        3,
    ]
    assert (got_step["real_total_cost"], got_step["status_code"], got_step["status_message"]) == (0.5, 1, "m")
    assert 0 <= got_step["end_ns"] - got_step["start_ns"] < 60 * 10**9


def test_subclasses_of_str(rig: Rig) -> None:
    """They are recorded by content, and not kept: they can refer to the very object that would keep them."""
    step = picostep.step(Text("run"), Text("step")).prompt(Text("p")).response(TextEnum.STOP)
    step.finish_reason(TextEnum.STOP).model(np.str_("m")).status(0, Text("é"))
    step.end()
    (record,) = recorded(rig)
    assert (record["run_id"], record["step_id"], record["prompt"]) == ("run", "step", "p")
    assert (record["response"], record["finish_reason"], record["model_requested"]) == ("stop", "stop", "m")
    assert type(step.run_id) is type(step.step_id) is str


# --- the life of an object --------------------------------------------------------------------------------

SETTERS: dict[type, list[Callable[[Any], Any]]] = {
    Run: [
        lambda run: run.prompt("p"),
        lambda run: run.response("r"),
        lambda run: run.metadata(a=1),
        lambda run: run.status(0),
        lambda run: run.end(),
        lambda run: run.error(),
    ],
    Step: [
        lambda step: step.prompt("p"),
        lambda step: step.response("r"),
        lambda step: step.model("m"),
        lambda step: step.tokens(1),
        lambda step: step.usage({"prompt_tokens": 1}),
        lambda step: step.cost(1),
        lambda step: step.finish_reason("stop"),
        lambda step: step.tool_definitions("[]"),
        lambda step: step.first_token(),
        lambda step: step.status(0),
        lambda step: step.end(),
        lambda step: step.error(),
    ],
    ToolCall: [
        lambda call: call.name("n"),
        lambda call: call.args("a"),
        lambda call: call.result("r"),
        lambda call: call.status(0),
        lambda call: call.end(),
        lambda call: call.error(),
    ],
}


def make(kind: type) -> Any:
    if kind is Run:
        return picostep.run("r").prompt("p")
    if kind is Step:
        return picostep.step("r", "own").prompt("p").response("q").cost(Decimal("0.5"))
    return picostep.tool_call("r", "own", "n")


@pytest.mark.parametrize("kind", [Run, Step, ToolCall])
def test_every_setter_is_listed(kind: type) -> None:
    """So that the tests below know of a new one."""
    public = {name for name in dir(kind) if not name.startswith("_")}
    properties = {"run_id", "step_id", "tool_call_id", "total_cost", "cost_status"}
    makers = {"step", "tool_call", "feedback"}
    names = {name for call in SETTERS[kind] for name in call.__code__.co_names}

    assert public - properties - makers == names


@pytest.mark.parametrize("kind", [Run, Step, ToolCall])
@pytest.mark.parametrize("ending", ["end", "error"])
def test_an_ended_object_is_frozen(rig: Rig, kind: type, ending: str) -> None:
    made = make(kind)
    assert getattr(made, ending)() is None
    for call in SETTERS[kind]:
        with pytest.raises(EndedError, match=rf"^{kind.__name__}\.\w+\(\): already ended") as caught:
            call(made)
        assert isinstance(caught.value, RuntimeError)
    assert made.run_id == "r"
    assert getattr(made, "step_id", "own") == getattr(made, "tool_call_id", "own") == "own"
    assert getattr(made, "total_cost", Decimal("0.5")) == Decimal("0.5")
    if kind is not ToolCall:
        made.tool_call("later").end()
    with made:
        pass
    records = recorded(rig)
    assert len(records) == (1 if kind is ToolCall else 2)
    assert records[0]["status_code"] == (2 if ending == "error" else 0)


@pytest.mark.parametrize("kind", [Run, Step, ToolCall])
def test_setters_return_the_object(kind: type) -> None:
    made = make(kind)
    for call in SETTERS[kind][:-2]:
        assert call(made) is made


def test_required_fields(rig: Rig) -> None:
    """The object stays open; `error()` needs none."""
    run, step, call = picostep.run(), picostep.step("r"), picostep.tool_call("r")
    for made, field in [(run, "prompt"), (step, "prompt"), (step, "response"), (call, "name")]:
        with pytest.raises(MissingFieldError, match=rf"{field} is required"):
            made.end()  # type: ignore[attr-defined]
        if made is step:
            step.prompt("p")
    assert recorded(rig) == []
    run.error()
    step.response("").end()
    call.error("no name")
    assert [record["status_code"] for record in recorded(rig)] == [2, 0, 2]


def test_with(rig: Rig) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError("cannot be shown")

    with picostep.run("r") as run, run.step() as step, step.tool_call("t"):
        run.prompt("p")
        step.prompt("p").response("r")
    for error in (ValueError("text"), KeyError(), Odd(), KeyboardInterrupt("stop")):
        with pytest.raises(type(error)), picostep.step("r"):
            raise error
    with pytest.raises(MissingFieldError), picostep.step("r"):
        pass
    with picostep.step("r") as step:
        step.error("early")
    records = recorded(rig)
    assert [record["kind"] for record in records[:3]] == ["tool_call", "step", "run"]
    assert [record.get("status_message") for record in records[3:]] == [
        "text",
        "KeyError",
        "Odd",
        "stop",
        "early",
    ]


def test_given_times(rig: Rig) -> None:
    start, end = "2026-01-02T03:04:05.678901+01:00", datetime(2026, 1, 2, 2, 4, 6, tzinfo=timezone.utc)
    picostep.step("r", start_time=start).prompt("").response("").end(end)
    (record,) = recorded(rig)
    assert record["start_ns"] == 1767319445678901000
    assert record["end_ns"] == 1767319446000000000


def test_total_cost() -> None:
    step = picostep.step("r")
    assert step.total_cost is None
    for given, expected in [(0.1, "0.1"), (3, "3"), (Decimal("0.10"), "0.10"), (1e-7, "1E-7"), (0, "0")]:
        assert str(step.cost(given).total_cost) == expected
    assert step.cost(None).total_cost is None


def test_the_classes_are_closed() -> None:
    for kind in (Run, Step, ToolCall):
        with pytest.raises(TypeError, match="made by picostep"):
            kind()
        with pytest.raises(TypeError):
            type("Mine", (kind,), {})
        made = make(kind)
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                duplicate(made)
        with pytest.raises(AttributeError):
            made.other = 1
        with pytest.raises(AttributeError):
            made.run_id = "other"


@pytest.mark.parametrize("kind", [Run, Step, ToolCall])
def test_an_object_without_a_factory(rig: Rig, kind: Any) -> None:
    """It cannot be used, and does no harm."""
    made = kind.__new__(kind)
    children = [lambda x: x.tool_call("n")] if kind is Step else []
    if kind is Run:
        children = [lambda x: x.step(), lambda x: x.tool_call("n"), lambda x: x.feedback("thumbs_up")]
    for call in [*SETTERS[kind], *children]:
        with pytest.raises(EndedError, match="not made by picostep"):
            call(made)
    assert made.run_id == ""
    assert "run ''" in repr(made)
    with made:
        pass
    del made
    assert recorded(rig) == []


def test_repr_shows_no_content() -> None:
    step = picostep.step("the run").prompt(SECRET).response(SECRET).model(SECRET, SECRET).status(2, SECRET)
    assert repr(step) == "<picostep.Step of run 'the run', open>"
    step.end()
    assert repr(step) == "<picostep.Step of run 'the run', ended>"


# --- misuse="log" -----------------------------------------------------------------------------------------


def test_misuse_is_logged_once_a_kind(tmp_path: Path) -> None:
    """No wrong call raises; each is counted; calls that are right go on as if there had been none."""
    code = f"""
    import sys
    sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "unit")!r}]
    import picostep, test_records as t
    calls = wrong = 0
    for cases, bad in [
        (t.TEXTS, (1, b"x", object())),
        (t.BODIES, (1, b"x", [object()], [float("nan")])),
        (t.COUNTS, (-1, 1.5, True, 2**70, t.Index(KeyError()))),
        (t.CODES, (None, 1.5, 2**70)),
        (t.COSTS, (-1, float("nan"), 10**5000, t.Index(KeyError()), "1")),
        (t.TIMES, ("yesterday", 1)),
    ]:
        for where, argument, call in cases:
            for value in bad:
                before = sum(picostep.stats()["misuse"].values())
                call(value)
                assert sum(picostep.stats()["misuse"].values()) == before + 1, (where, argument, value)
                wrong += 1
    step = picostep.step("r")
    assert step.prompt(1) is step
    assert step.end() is None
    step.prompt("p").response("r").tokens(1, 2, -3).end()
    step.end()
    assert step.prompt("late") is step
    picostep.send_run(prompt="p", steps=[1], tool_calls=None)
    misuse = picostep.stats()["misuse"]
    assert set(misuse) == {{"ArgumentError", "ArgumentTypeError", "EndedError", "MissingFieldError"}}, misuse
    assert sum(misuse.values()) == wrong + 7, (misuse, wrong)
    """
    env = {
        "PICOSTEP_EXPORTER": "off",
        "PICOSTEP_DIR": str(tmp_path),
        "PICOSTEP_TO": "stdout",
        "PICOSTEP_MISUSE": "log",
    }
    done = run_python(textwrap.dedent(code), env)

    assert sorted(line.split(":")[0] for line in done.stderr.splitlines()) == [
        "ArgumentError",
        "ArgumentTypeError",
        "EndedError",
        "MissingFieldError",
    ]


def test_disabled(tmp_path: Path) -> None:
    """Everything is checked as ever, has ids, and is recorded nowhere."""
    code = """
    import picostep, sys
    with picostep.run(api_key="other") as run:
        run.prompt("p").metadata(a=1)
        with run.step() as step:
            step.prompt("p").response("r").cost(1)
    assert run.run_id and step.step_id and step.total_cost == 1
    assert picostep.send_step("r", prompt="", response="")
    assert picostep.submit_feedback("r", "thumbs_up") is True
    for wrong in (lambda: step.end(), lambda: picostep.step("r").tokens(-1), lambda: picostep.step("")):
        try:
            wrong()
        except picostep.PicostepError:
            pass
        else:
            raise SystemExit("accepted")
    assert picostep.stats()["recorded"] == 0
    assert picostep.stats()["rings"] == []
    assert picostep.flush(0) and picostep.shutdown(0)
    """
    run_python(textwrap.dedent(code), {"PICOSTEP_DISABLED": "1", "PICOSTEP_DIR": str(tmp_path)})

    assert list(tmp_path.iterdir()) == []


def test_after_shutdown(rig: Rig) -> None:
    """What was begun before is recorded all the same, in a ring of its own."""
    step = picostep.step("r").prompt("p").response("r")
    assert picostep.shutdown(0)
    assert picostep.stats()["rings"] == []
    step.end()
    picostep.send_step("r", prompt="p", response="r")
    (ring,) = picostep.stats()["rings"]
    assert ring["accepted"] == 2
    assert not picostep.shutdown(0)
    assert picostep.stats()["accepted"] >= 2


# --- memory -----------------------------------------------------------------------------------------------


def test_objects_are_invisible_to_the_garbage_collector(rig: Rig) -> None:
    objects = [make(kind) for kind in (Run, Step, ToolCall)]
    for made in objects:
        assert not gc.is_tracked(made)
        assert gc.get_referents(made) == []
        made.end()
        assert not gc.is_tracked(made)


@pytest.mark.skipif(FREE_THREADED, reason="reference counts mean little there")
def test_references_are_returned(rig: Rig) -> None:
    """Texts go when the object ends; ids and models with the object."""
    texts = [f"text {number} {time}" for number, time in itertools.product(range(7), "ab")]

    def held() -> list[int]:
        return [sys.getrefcount(text) for text in texts]

    def more() -> list[int]:
        return [now - then for now, then in zip(held(), before, strict=True)]

    before = held()
    for ending in ("end", "error", "none"):
        step = picostep.step(texts[0], texts[1])
        for _ in range(3):
            step.prompt(texts[2]).response(texts[3]).model(texts[4], texts[5]).finish_reason(texts[6])
            step.tool_definitions(texts[7]).status(0, texts[8])
        call = step.tool_call(texts[9], texts[10]).args(texts[11]).result(texts[12])
        assert more() == [2, *[1] * 12, 0]
        if ending != "none":
            getattr(step, ending)()
            getattr(call, ending)()
            # The models stay as well: the cost follows from them.
            assert more() == [2, 1, 0, 0, 1, 1, *[0] * 4, 1, 0, 0, 0]
        del step, call
        assert more() == [0] * 14
        picostep.send_step(texts[0], prompt=texts[2], response=texts[3])
        with suppress(ArgumentError):
            picostep.send_step(texts[0], prompt=texts[2], response=texts[3], cost=-1)
        assert more() == [0] * 14


@pytest.mark.skipif(FREE_THREADED, reason="blocks are counted per thread there")
@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in (TESTS / "isolated").glob("leaks*.py")))
@pytest.mark.timeout(3600)
def test_nothing_leaks(tmp_path: Path, script: str) -> None:
    """A campaign has a million turns of whole steps."""
    env = clean_environment(PICOSTEP_EXPORTER="off", PICOSTEP_DIR=str(tmp_path), PICOSTEP_TO="stdout")
    done = subprocess.run(
        [sys.executable, str(TESTS / "isolated" / script), "100000" if CAMPAIGN else "1000"],
        env=env,
        capture_output=True,
        text=True,
        timeout=3600 if CAMPAIGN else 100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- threads, signals, destructors ------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run in threads that begin together; the first exception is raised."""
    barrier, problems = threading.Barrier(count), []

    def run(number: int) -> None:
        try:
            barrier.wait(100)
            work(number)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    if problems:
        raise problems[0]


@pytest.fixture
def eager_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switches")
def test_threads_record_at_once(rig: Rig) -> None:
    rig.renew(16 << 20)

    def work(number: int) -> None:
        for turn in range(500):
            with picostep.step(f"{number}", f"{number}-{turn}") as step:
                step.prompt("深" * turn).response(f"{number}").tokens(number, turn)

    in_threads(8, work)
    records = recorded(rig)
    assert len(records) == 4000
    by_thread: dict[str, list[int]] = {}
    for record in records:
        number, turn = record["step_id"].split("-")
        assert record["prompt"] == "深" * int(turn)
        assert record["response"] == record["run_id"] == number
        assert record["prompt_uncached_tokens"] == int(number)
        by_thread.setdefault(number, []).append(int(turn))
    assert all(turns == list(range(500)) for turns in by_thread.values())
    assert [record["seq"] for record in records] == list(range(4000))


@pytest.mark.usefixtures("eager_switches")
@pytest.mark.parametrize("end_time", [None, "2199-01-01T00:00:00+00:00"])
def test_one_end_wins(rig: Rig, end_time: str | None) -> None:
    """Also while the given time is read, which runs Python code."""
    steps = [picostep.step("r", str(number)).prompt("p").response("r") for number in range(300)]
    wins = [0] * 8

    def work(number: int) -> None:
        for step in steps:
            try:
                step.end(end_time) if number % 2 else step.error("failed", end_time)
            except EndedError:
                continue
            wins[number] += 1

    in_threads(8, work)
    assert sum(wins) == 300
    records = recorded(rig)
    assert sorted(int(record["step_id"]) for record in records) == list(range(300))
    assert all(record["prompt"] == "p" for record in records)


@pytest.mark.usefixtures("eager_switches")
def test_one_object_in_many_threads(rig: Rig) -> None:
    rig.renew(16 << 20)
    run = picostep.run("r").prompt("p")

    def work(number: int) -> None:
        for turn in range(300):
            run.response(f"{number}" * 100, [number, turn]).metadata({str(number): turn}).status(number)
            run.step().prompt("p").response("r").end()

    in_threads(4, work)
    run.end()
    *steps, record = recorded(rig)
    assert len(steps) == 1200
    number = int(record["response"][0])
    assert record["response"] == str(number) * 100
    assert record["full_output"] == f"[{number}, 299]"


def test_a_signal_handler_that_records(tmp_path: Path) -> None:
    code = """
    import signal, picostep
    caught = 0

    def handler(*_):
        global caught
        caught += 1
        picostep.send_step("signal", prompt="p" * 3000, response=["r"])
        shared.metadata(a=caught)

    shared = picostep.run("shared").prompt(["p"])
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    sent = 0
    while caught < 200:
        picostep.step("main").prompt(["p"] * 50).response("r").status(0).end("2199-01-01T00:00:00Z")
        sent += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    shared.end()
    counters = picostep.stats()
    assert counters["recorded"] == sent + caught + 1, (counters, sent, caught)
    """
    env = {"PICOSTEP_EXPORTER": "off", "PICOSTEP_DIR": str(tmp_path), "PICOSTEP_TO": "stdout"}
    run_python(textwrap.dedent(code), env)


def test_destructors_that_record(rig: Rig) -> None:
    """Of what was handed over, run in the middle of a setter or of `end()`."""

    class Trap(str):
        step: Any = None

        def __del__(self) -> None:
            picostep.send_step("trap", prompt="p", response="r")
            if self.step is not None:
                self.step.tokens(1)

    class Encoded(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            picostep.send_step("encoded", prompt="p", response="r")
            return super().items()

    for _ in range(100):
        step = picostep.step("r")
        trap = Trap("text")
        trap.step = step
        step.prompt(trap).response("r")
        del trap
        gc.collect(0)
        step.prompt("other").response(Encoded(a=1)).tool_definitions([Encoded(b=1)])
        step.end()
    counts: dict[str, int] = {}
    for record in recorded(rig):
        counts[record["run_id"]] = counts.get(record["run_id"], 0) + 1
    assert counts["r"] == counts["trap"] == 100
    assert rig.check()["dropped"]["ring_full"] == 0


def test_end_inside_end(rig: Rig) -> None:
    """Code that runs while the given time is read ends the same step: it wins, and the outer call is told."""

    class Ending(tzinfo):
        def utcoffset(self, _: datetime | None) -> timedelta:
            with suppress(EndedError):
                step.end()
            return timedelta(0)

    step = picostep.step("r").prompt("p").response("r")
    with pytest.raises(EndedError):
        step.end(datetime(2199, 1, 1, tzinfo=Ending()))
    (record,) = recorded(rig)
    assert record["prompt"] == "p"
