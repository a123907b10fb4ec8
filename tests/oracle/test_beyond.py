"""Where picostep goes beyond the reference: each difference that the contract names has its test here."""

from __future__ import annotations

import gc
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import picostep
from picostep import (
    ArgumentError,
    ArgumentTypeError,
    ConfigError,
    EndedError,
    MissingFieldError,
    PicostepError,
)
from support import Ingest, Request, ring_directory, run_python

KEY = "key-of-the-suite"
NAN = float("nan")
START = datetime(2026, 11, 23, 4, 51, 44, 593999, tzinfo=timezone(timedelta(hours=1)))
START_TEXT, START_WIRE = "2026-11-23T03:51:44.593999999Z", "2026-11-23T03:51:44.593Z"
END_TEXT, END_WIRE = "2026-11-23T03:51:45+00:00", "2026-11-23T03:51:45.000Z"


class Backend:
    """What the server got and the local file holds, once everything recorded so far is delivered."""

    def __init__(self, ingest: Ingest, file: Path, base: Path) -> None:
        self._ingest = ingest
        self._file = file
        self.configuration: dict[str, Any] = {"to": ["tcc", f"jsonl:{file}"], "dir": str(base)}

    def requests(self) -> list[Request]:
        assert picostep.flush(20)
        return self._ingest.take()

    def items(self) -> list[dict[str, Any]]:
        return [item for request in self.requests() for item in request.items()]

    def item(self) -> dict[str, Any]:
        (item,) = self.items()
        return item

    def local(self) -> list[dict[str, Any]]:
        """Lines of the local file since the last call of this kind or `items()`."""
        assert picostep.flush(20)
        with self._file.open("r+") as file:
            lines = [json.loads(line) for line in file]
            file.truncate(0)
        return lines


@pytest.fixture(scope="module")
def module_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    before = dict(os.environ)
    with Ingest() as ingest, ring_directory() as base:
        os.environ["TCC_API_KEY"] = KEY
        os.environ["TCC_BASE_URL"] = ingest.url
        backend = Backend(ingest, tmp_path_factory.mktemp("beyond") / "records.jsonl", base)
        backend._file.touch()
        try:
            picostep.configure(**backend.configuration)
            yield backend
        finally:
            assert picostep.shutdown(10)
            os.environ.clear()
            os.environ.update(before)
            picostep.configure()


@pytest.fixture
def backend(module_backend: Backend) -> Iterator[Backend]:
    """The backend, empty; settings that a test changes are put back."""
    picostep.configure(**module_backend.configuration)
    module_backend.items()
    module_backend.local()
    yield module_backend
    picostep.configure(**module_backend.configuration)


def new(kind: str) -> Any:
    """A run, step or tool call on which `end()` would succeed."""
    if kind == "Run":
        return picostep.run("r").prompt("p")
    if kind == "Step":
        return picostep.step("r", "s").prompt("p").response("a")
    return picostep.tool_call("r", "t", "name")


def without_times(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("start_time", "end_time")}


# --- exceptions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (ArgumentError, ValueError),
        (ArgumentTypeError, TypeError),
        (EndedError, RuntimeError),
        (MissingFieldError, ValueError),
        (ConfigError, ValueError),
    ],
)
def test_each_exception_is_ours_and_a_builtin(ours: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(ours, PicostepError)
    assert issubclass(ours, builtin)


# --- after the end ----------------------------------------------------------------------------------------

SETTERS = [
    ("Run", "prompt", ("x",)),
    ("Run", "response", ("x",)),
    ("Run", "metadata", ({"a": "b"},)),
    ("Run", "status", (2, "x")),
    ("Step", "prompt", ("x",)),
    ("Step", "response", ("x",)),
    ("Step", "model", ("x",)),
    ("Step", "tokens", (1, 2, 3)),
    ("Step", "usage", ({"prompt_tokens": 1, "completion_tokens": 1},)),
    ("Step", "cost", (1,)),
    ("Step", "finish_reason", ("x",)),
    ("Step", "tool_definitions", ("x",)),
    ("Step", "first_token", ()),
    ("Step", "status", (2, "x")),
    ("ToolCall", "name", ("x",)),
    ("ToolCall", "args", ("x",)),
    ("ToolCall", "result", ("x",)),
    ("ToolCall", "status", (2, "x")),
]


@pytest.mark.parametrize("ending", ["end", "error"])
@pytest.mark.parametrize(("kind", "method", "args"), SETTERS)
def test_setters_after_the_end_raise(
    kind: str, method: str, args: tuple[Any, ...], ending: str, backend: Backend
) -> None:
    ended = new(kind)
    getattr(ended, ending)()

    with pytest.raises(EndedError, match=rf"{kind}\.{method}\b.*ended"):
        getattr(ended, method)(*args)

    assert len(backend.items()) == 1


@pytest.mark.parametrize("kind", ["Run", "Step", "ToolCall"])
def test_a_second_end_names_itself(kind: str) -> None:
    ended = new(kind)
    ended.end()

    for ending in ("end", "error"):
        with pytest.raises(EndedError, match=rf"{kind}\.{ending}\b"):
            getattr(ended, ending)()


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (lambda: picostep.run("r"), {"prompt": ("x",)}),
        (lambda: picostep.step("r"), {"prompt": ("x",), "response": ("y",)}),
        (lambda: picostep.tool_call("r"), {"name": ("x",)}),
    ],
)
def test_a_missing_field_leaves_it_open(
    make: Callable[[], Any], fields: dict[str, tuple[Any, ...]], backend: Backend
) -> None:
    made = make()
    for field, value in fields.items():
        with pytest.raises(MissingFieldError, match=rf"^{type(made).__name__}\.end.*{field}"):
            made.end()
        getattr(made, field)(*value)
    made.end()

    assert len(backend.items()) == 1


# --- arguments --------------------------------------------------------------------------------------------

T, V = TypeError, ValueError

FACTORIES = [
    ("run", {"run_id": 5}, T, "run_id"),
    ("run", {"session_id": 5}, T, "session_id"),
    ("run", {"conversational": 1}, T, "conversational"),
    ("run", {"conversational": "yes"}, T, "conversational"),
    ("run", {"api_key": 5}, T, "api_key"),
    ("run", {"tcc_url": 5}, T, "tcc_url"),
    ("run", {"start_time": datetime(2026, 1, 1)}, V, "start_time"),
    ("run", {"start_time": "yesterday"}, V, "start_time"),
    ("run", {"start_time": 0}, T, "start_time"),
    ("step", {"run_id": 5}, T, "run_id"),
    ("step", {"run_id": ""}, V, "run_id"),
    ("step", {"run_id": None}, (T, V), "run_id"),
    ("step", {"run_id": "r", "step_id": 5}, T, "step_id"),
    ("step", {"run_id": "r", "start_time": "2026-01-01T00:00:00"}, V, "start_time"),
    ("tool_call", {"run_id": 5}, T, "run_id"),
    ("tool_call", {"run_id": ""}, V, "run_id"),
    ("tool_call", {"run_id": "r", "tool_call_id": b"x"}, T, "tool_call_id"),
    ("tool_call", {"run_id": "r", "tool_name": 5}, T, "tool_name"),
    ("submit_feedback", {"run_id": 5, "score": "thumbs_up"}, T, "run_id"),
    ("submit_feedback", {"run_id": "r", "score": "great"}, V, "score"),
    ("submit_feedback", {"run_id": "r", "score": 1}, T, "score"),
    ("submit_feedback", {"run_id": "r", "text": 5}, T, "text"),
    ("submit_feedback", {"run_id": "r", "text": "x" * 2001}, V, "text"),
    ("send_step", {"run_id": "", "prompt": "p", "response": "a"}, V, "run_id"),
    ("send_step", {"run_id": "r", "prompt": 5, "response": "a"}, T, "prompt"),
    ("send_step", {"run_id": "r", "prompt": "p", "response": None}, T, "response"),
    ("send_step", {"run_id": "r", "prompt": "p", "response": "a", "completion": -1}, V, "completion"),
    ("send_step", {"run_id": "r", "prompt": "p", "response": "a", "cost": NAN}, V, "cost"),
    ("send_step", {"run_id": "r", "prompt": "p", "response": "a", "status_code": "0"}, T, "code"),
    ("send_step", {"run_id": "r", "prompt": "p", "response": "a", "end_time": "x"}, V, "end_time"),
    ("send_tool_call", {"run_id": "r", "name": 5}, T, "name"),
    ("send_tool_call", {"run_id": "r", "name": "n", "args": object()}, T, "args"),
    ("send_run", {"prompt": 5}, T, "prompt"),
    ("send_run", {"prompt": "p", "metadata": {1: "x"}}, T, "metadata"),
]


@pytest.mark.parametrize(("function", "keywords", "builtin", "argument"), FACTORIES)
def test_functions_check_their_arguments(
    function: str, keywords: dict[str, Any], builtin: Any, argument: str, backend: Backend
) -> None:
    with pytest.raises(PicostepError, match=rf"^{function}\b.*\b{argument}\b") as caught:
        getattr(picostep, function)(**keywords)

    assert isinstance(caught.value, builtin)
    assert backend.items() == []


METHODS = [
    ("Run", "prompt", (5,), {}, T, "user_prompt"),
    ("Run", "prompt", (None,), {}, T, "user_prompt"),
    ("Run", "prompt", (b"x",), {}, T, "user_prompt"),
    ("Run", "prompt", ("other", 5), {}, T, "system_prompt"),
    ("Run", "prompt", ("other",), {"full_input": 5}, T, "full_input"),
    ("Run", "response", (5,), {}, T, "text"),
    ("Run", "response", ("other",), {"full_output": 5}, T, "full_output"),
    ("Run", "metadata", (5,), {}, T, "data"),
    ("Run", "metadata", ("ab",), {}, T, "data"),
    ("Run", "metadata", ({1: "x"},), {}, T, "metadata"),
    ("Run", "metadata", ({"a": object()},), {}, T, "metadata"),
    ("Run", "metadata", ({"a": NAN},), {}, V, "metadata"),
    ("Run", "metadata", (), {"a": b"x"}, T, "metadata"),
    ("Step", "prompt", (("a", "b"),), {}, T, "text"),
    ("Step", "prompt", ([NAN],), {}, V, "text"),
    ("Step", "prompt", ([object()],), {}, T, "text"),
    ("Step", "response", (5,), {}, T, "text"),
    ("Step", "response", ({1: {2}},), {}, T, "text"),
    ("Step", "tool_definitions", (5,), {}, T, "definitions"),
    ("Step", "model", (5,), {}, T, "requested"),
    ("Step", "model", ("other", 5), {}, T, "used"),
    ("Step", "tokens", (True,), {}, T, "prompt_uncached"),
    ("Step", "tokens", (1.0,), {}, T, "prompt_uncached"),
    ("Step", "tokens", ("1",), {}, T, "prompt_uncached"),
    ("Step", "tokens", (np.bool_(True),), {}, T, "prompt_uncached"),
    ("Step", "tokens", (np.float64(1),), {}, T, "prompt_uncached"),
    ("Step", "tokens", (Decimal(1),), {}, T, "prompt_uncached"),
    ("Step", "tokens", (7, -1), {}, V, "prompt_cached"),
    ("Step", "tokens", (7, 7, 2**53 + 1), {}, V, "completion"),
    ("Step", "tokens", (2**70,), {}, V, "prompt_uncached"),
    ("Step", "tokens", (np.int64(-1),), {}, V, "prompt_uncached"),
    ("Step", "cost", ("1",), {}, T, "real_total"),
    ("Step", "cost", (True,), {}, T, "real_total"),
    ("Step", "cost", (1j,), {}, T, "real_total"),
    ("Step", "cost", (NAN,), {}, V, "real_total"),
    ("Step", "cost", (float("inf"),), {}, V, "real_total"),
    ("Step", "cost", (-0.5,), {}, V, "real_total"),
    ("Step", "cost", (-1,), {}, V, "real_total"),
    ("Step", "cost", (Decimal("-1"),), {}, V, "real_total"),
    ("Step", "cost", (Decimal("NaN"),), {}, V, "real_total"),
    ("Step", "cost", (Decimal("sNaN"),), {}, V, "real_total"),
    ("Step", "cost", (Decimal("Infinity"),), {}, V, "real_total"),
    ("Step", "finish_reason", (5,), {}, T, "reason"),
    ("Step", "usage", (None,), {}, T, "usage"),
    ("Step", "usage", ({"tokens": 5},), {}, V, "usage"),
    ("Step", "usage", ({"prompt_tokens": 1.5},), {}, V, "prompt_tokens"),
    ("ToolCall", "name", (5,), {}, T, "tool_name"),
    ("ToolCall", "name", (None,), {}, T, "tool_name"),
    ("ToolCall", "args", ({1, 2},), {}, T, "value"),
    ("ToolCall", "result", (b"x",), {}, T, "value"),
    *[
        (kind, method, args, keywords, builtin, argument)
        for kind in ("Run", "Step", "ToolCall")
        for method, args, keywords, builtin, argument in [
            ("status", ("0",), {}, T, "code"),
            ("status", (1.0,), {}, T, "code"),
            ("status", (True,), {}, T, "code"),
            ("status", (None,), {}, T, "code"),
            ("status", (2, 5), {}, T, "message"),
            ("error", (5,), {}, T, "status_message"),
            ("error", (b"x",), {}, T, "status_message"),
            ("error", ("other",), {"end_time": 5}, T, "end_time"),
            ("end", (), {"end_time": 5}, T, "end_time"),
            ("end", (), {"end_time": datetime(2026, 1, 1)}, V, "end_time"),
            ("end", (), {"end_time": "2026-01-01"}, V, "end_time"),
            ("end", (), {"end_time": "1969-12-31T23:59:59Z"}, V, "end_time"),
        ]
    ],
]


@pytest.mark.parametrize(("kind", "method", "args", "keywords", "builtin", "argument"), METHODS)
def test_methods_check_their_arguments(
    kind: str,
    method: str,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
    builtin: type[Exception],
    argument: str,
    backend: Backend,
) -> None:
    """The message names method and argument, and the object stays as it was: nothing is half done."""
    new(kind).end()
    untouched = without_times(backend.item())
    made = new(kind)

    with pytest.raises(PicostepError, match=rf"^{kind}\.{method}\b.*\b{argument}\b") as caught:
        getattr(made, method)(*args, **keywords)

    assert isinstance(caught.value, builtin)
    made.end()
    assert without_times(backend.item()) == untouched


@pytest.mark.parametrize(
    ("value", "given_as"),
    [(5, "int"), (-3, "-3"), (1.5, "float"), ("1", "str"), (b"1", "bytes"), (None, None)],
)
def test_messages_say_what_was_given(value: object, given_as: str | None) -> None:
    step = new("Step")
    if given_as is None:
        assert step.tokens(completion=value) is step
        return
    if value == 5:
        with pytest.raises(PicostepError, match=given_as):
            step.prompt(value)
        return
    with pytest.raises(PicostepError, match=given_as):
        step.tokens(completion=value)


def test_messages_hold_no_content() -> None:
    with pytest.raises(PicostepError) as caught:
        new("Step").tokens("the prompt of a customer")

    assert "customer" not in str(caught.value)


def test_a_key_is_in_no_message() -> None:
    with pytest.raises(ConfigError) as caught:
        picostep.run(api_key="secret\n")

    assert "secret" not in str(caught.value)


def test_integers_of_other_libraries(backend: Backend) -> None:
    class Count:
        def __index__(self) -> int:
            return 3

    new("Step").tokens(np.int64(1), np.uint8(2), Count()).end()  # type: ignore[arg-type]

    item = backend.item()
    assert (item["prompt_uncached_tokens"], item["prompt_cached_tokens"], item["completion_tokens"]) == (
        1,
        2,
        3,
    )


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_id_is_not_given(empty: str | None, backend: Backend) -> None:
    run = picostep.run(empty).prompt("p")
    step, call = run.step(empty), run.tool_call("n", empty)
    for made in (run, step, call):
        made.error()

    ids = [run.run_id, step.step_id, call.tool_call_id]
    assert [uuid.UUID(one).version for one in ids] == [4, 4, 4]
    assert len({item["run_id"] for item in backend.items()}) == 1


# --- cost -------------------------------------------------------------------------------------------------


@given(cost=st.floats(0, allow_nan=False, allow_infinity=False))
@example(cost=0.1 + 0.2)
@example(cost=5e-324)
@example(cost=1.7976931348623157e308)
@example(cost=-0.0)
def test_a_float_cost_arrives_bit_by_bit(cost: float, module_backend: Backend) -> None:
    step = new("Step").cost(cost)
    step.end()

    sent = module_backend.item()["real_total_cost"]
    assert (type(sent), sent.hex()) == (float, cost.hex())
    assert float(step.total_cost) == cost


@given(
    cost=st.one_of(
        st.integers(0, 2**80),
        st.decimals(0, 10**9, allow_nan=False, allow_infinity=False, places=18),
        st.sampled_from([Decimal("1E-12"), Decimal("1E+3"), Decimal("0.10"), Decimal("-0"), Decimal(0)]),
        st.decimals(Decimal("1e-40"), Decimal("1e40"), allow_nan=False, allow_infinity=False),
    )
)
def test_a_decimal_or_int_cost_arrives_digit_by_digit(cost: int | Decimal, module_backend: Backend) -> None:
    step = new("Step").cost(cost)
    step.end()

    (request,) = module_backend.requests()
    sent = json.loads(request.body, parse_float=Decimal)["real_total_cost"]
    assert sent == cost
    assert step.total_cost == cost
    assert isinstance(step.total_cost, Decimal)


def test_total_cost() -> None:
    step = new("Step")

    assert step.total_cost is None
    assert step.cost(0.1).total_cost == Decimal("0.1")
    assert step.cost(Decimal("0.000000000001")).total_cost == Decimal("1E-12")
    step.end()
    assert step.total_cost == Decimal("1E-12")


# --- list and dict texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [[], {}, [{"role": "user", "content": "é😀\ud800"}], {"a": {"b": [1, 2.5, None]}}]
)
def test_messages_as_they_are(body: Any, backend: Backend) -> None:
    picostep.step("r").prompt(body).response(body).tool_definitions(body).end()
    picostep.run("r").prompt(body, body, full_input=body).response(body, full_output=body).end()

    step, run = backend.items()
    assert [step["prompt"], step["response"], step["tool_definitions"]] == [body] * 3
    assert run["prompt"] == {"user_prompt": body, "system_prompt": body, "full_input": body}
    assert [run["response"], run["full_output"]] == [body] * 2


def test_messages_are_snapshotted_on_the_spot(backend: Backend) -> None:
    body: dict[str, Any] = {"messages": ["first"]}
    step = picostep.step("r").prompt(body).response("a")
    run = picostep.run("r").prompt("p").metadata(body)
    body["messages"].append("second")
    step.end()
    run.end()

    sent_step, sent_run = backend.items()
    assert sent_step["prompt"] == {"messages": ["first"]}
    assert sent_run["metadata"] == {"messages": ["first"]}


def test_text_that_looks_like_json_stays_text(backend: Backend) -> None:
    picostep.step("r").prompt({"a": 1}).prompt('{"a": 1}').response("[]").end()

    item = backend.item()
    assert (item["prompt"], item["response"]) == ('{"a": 1}', "[]")


def test_full_input_and_output(backend: Backend) -> None:
    picostep.run("r").prompt("short", full_input="long").response("brief", full_output="wordy").end()

    item = backend.item()
    assert item["prompt"] == {"user_prompt": "short", "full_input": "long"}
    assert (item["response"], item["full_output"]) == ("brief", "wordy")


# --- reading ----------------------------------------------------------------------------------------------


def test_ids_are_readable_at_any_time(backend: Backend) -> None:
    run = picostep.run()
    step, call = run.step(), run.step().tool_call("n")
    before = (run.run_id, step.step_id, call.tool_call_id)
    assert (step.run_id, call.run_id) == (run.run_id, run.run_id)
    for made in (step, call, run):
        made.error()

    assert (run.run_id, step.step_id, call.tool_call_id) == before
    sent_step, sent_call, sent_run = backend.items()
    assert (sent_run["run_id"], sent_step["step_id"], sent_call["tool_call_id"]) == before
    assert sent_step["run_id"] == sent_call["run_id"] == run.run_id


def test_given_ids_are_readable() -> None:
    assert picostep.run("rün").run_id == "rün"
    assert picostep.step("r", "s").step_id == "s"
    assert picostep.tool_call("r", "t").tool_call_id == "t"


@pytest.mark.parametrize(
    ("kind", "name"), [("Run", "run_id"), ("Step", "step_id"), ("ToolCall", "tool_call_id")]
)
def test_ids_cannot_be_set(kind: str, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(new(kind), name, "x")


@pytest.mark.parametrize("kind", ["Run", "Step", "ToolCall"])
def test_objects_are_made_by_the_functions_and_invisible_to_the_collector(kind: str) -> None:
    assert not gc.is_tracked(new(kind))
    with pytest.raises(TypeError):
        getattr(picostep, kind)("r")


# --- context managers -------------------------------------------------------------------------------------


class TestWith:
    def test_leaving_normally_ends(self, backend: Backend) -> None:
        with picostep.run("r") as run:
            run.prompt("p")
            with run.step() as step:
                step.prompt("p").response("a")
                with step.tool_call("inner"):
                    pass
            with run.tool_call("outer") as call:
                call.args({"a": 1})

        items = backend.items()
        assert [item["type"] for item in items] == ["tool_call", "step", "tool_call", "run"]
        assert [item["status_code"] for item in items] == [0] * 4

    @pytest.mark.parametrize("kind", ["Run", "Step", "ToolCall"])
    def test_an_exception_is_recorded_and_goes_on(self, kind: str, backend: Backend) -> None:
        with pytest.raises(LookupError, match="no such thing"), new(kind):
            raise LookupError("no such thing")

        item = backend.item()
        assert (item["status_code"], item["status_message"]) == (2, "no such thing")

    def test_an_exception_needs_no_fields(self, backend: Backend) -> None:
        with pytest.raises(ZeroDivisionError), picostep.run() as run, run.step() as step, step.tool_call():
            _ = 1 / 0

        assert [(item["type"], item["status_code"]) for item in backend.items()] == [
            ("tool_call", 2),
            ("step", 2),
            ("run", 2),
        ]

    def test_an_exception_without_text(self, backend: Backend) -> None:
        with pytest.raises(KeyboardInterrupt), new("Run"):
            raise KeyboardInterrupt

        assert backend.item()["status_code"] == 2

    def test_an_exception_that_cannot_be_shown(self, backend: Backend) -> None:
        class Strange(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text")

        with pytest.raises(Strange), new("Run"):
            raise Strange

        assert backend.item()["status_code"] == 2

    @pytest.mark.parametrize("ending", ["end", "error"])
    def test_already_ended_is_fine(self, ending: str, backend: Backend) -> None:
        with new("Step") as step:
            getattr(step, ending)()
        failed = new("Step")
        with pytest.raises(LookupError), failed:
            raise getattr(failed, ending)() or LookupError

        assert [item["status_code"] for item in backend.items()] == [0 if ending == "end" else 2] * 2

    def test_leaving_without_a_required_field(self, backend: Backend) -> None:
        with pytest.raises(MissingFieldError, match="prompt"), picostep.run() as run:
            pass

        run.prompt("p").end()
        assert len(backend.items()) == 1


# --- times ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "start_wire"), [(START, START_WIRE), (START_TEXT, START_WIRE)])
@pytest.mark.parametrize("ending", ["end", "error"])
def test_replayed_times(start: Any, start_wire: str, ending: str, backend: Backend) -> None:
    run = picostep.run("r", start_time=start).prompt("p")
    made = [
        picostep.step("r", start_time=start).prompt("p").response("a"),
        picostep.tool_call("r", None, "n", start_time=start),
        run.step(start_time=start).prompt("p").response("a"),
        run.tool_call("n", start_time=start),
        run.step().tool_call("n", start_time=start),
        run,
    ]
    for one in made:
        getattr(one, ending)(end_time=END_TEXT)

    assert [(item["start_time"], item["end_time"]) for item in backend.items()] == [
        (start_wire, END_WIRE)
    ] * 6


def test_replayed_start_only(backend: Backend) -> None:
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    picostep.step("r", start_time=START).error()

    item = backend.item()
    assert item["start_time"] == START_WIRE
    assert item["end_time"] > before.isoformat()


def test_first_token(backend: Backend) -> None:
    step = new("Step")
    assert step.first_token() is step
    between = datetime.now(timezone.utc)
    step.first_token()
    step.end()
    new("Step").end()

    marked, unmarked = backend.local()
    assert "first_token_time" not in unmarked
    # Both are cut to milliseconds; the clock of the core may be a little off this one.
    first = datetime.fromisoformat(marked["first_token_time"].replace("Z", "+00:00"))
    assert marked["start_time"] <= marked["first_token_time"] <= marked["end_time"]
    assert first <= between + timedelta(milliseconds=50)
    assert all("first_token_time" not in item for item in backend.items())


# --- usage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}},
            (6, 4, 3),
        ),
        (SimpleNamespace(input_tokens=6, cache_read_input_tokens=4, output_tokens=3), (6, 4, 3)),
        ({"promptTokenCount": 10, "cachedContentTokenCount": 4, "thoughtsTokenCount": 3}, (6, 4, 3)),
        ({"prompt_tokens": 10, "completion_tokens": None}, (10, None, None)),
    ],
)
def test_usage_becomes_disjoint_counts(usage: Any, expected: tuple[Any, ...], backend: Backend) -> None:
    step = new("Step")
    assert step.usage(usage) is step
    step.end()

    item = backend.item()
    assert expected == tuple(
        item.get(f"{name}_tokens") for name in ("prompt_uncached", "prompt_cached", "completion")
    )


def test_usage_keeps_what_it_does_not_report(backend: Backend) -> None:
    new("Step").tokens(1, 2, 3).usage({"input_tokens": None, "output_tokens": 9}).end()

    item = backend.item()
    assert (item["prompt_uncached_tokens"], item["prompt_cached_tokens"], item["completion_tokens"]) == (
        1,
        2,
        9,
    )


# --- one call for everything ------------------------------------------------------------------------------


class TestSend:
    def test_a_whole_step_is_like_the_long_form(self, backend: Backend) -> None:
        sent = picostep.send_step(
            "r",
            prompt=[{"role": "user"}],
            response="a",
            step_id="s",
            model_requested="m1",
            model_used="m2",
            prompt_uncached=1,
            prompt_cached=2,
            completion=3,
            cost=Decimal("0.1"),
            finish_reason="stop",
            tool_definitions=[],
            status_code=7,
            status_message="password=x",
            start_time=START,
            end_time=END_TEXT,
        )
        step = picostep.step("r", "s", start_time=START).prompt([{"role": "user"}]).response("a")
        step.model("m1", "m2").tokens(1, 2, 3).cost(Decimal("0.1")).finish_reason("stop").tool_definitions([])
        step.status(7, "password=x").end(END_TEXT)

        short, long = backend.items()
        assert sent == "s"
        assert short == long
        assert short["status_message"] == "password=[REDACTED]"

    def test_the_least_of_a_step(self, backend: Backend) -> None:
        sent = picostep.send_step("r", prompt="", response="")

        item = backend.item()
        assert without_times(item) == {
            "type": "step",
            "run_id": "r",
            "step_id": sent,
            "status_code": 0,
            "prompt": "",
            "response": "",
        }
        assert uuid.UUID(sent).version == 4

    def test_a_whole_tool_call_is_like_the_long_form(self, backend: Backend) -> None:
        sent = picostep.send_tool_call(
            "r",
            name="n",
            tool_call_id="t",
            args={"a": 1},
            result="x",
            status_code=2,
            status_message="no",
            start_time=START,
            end_time=END_TEXT,
        )
        call = picostep.tool_call("r", "t", "n", start_time=START).args({"a": 1}).result("x")
        call.error("no", END_TEXT)

        short, long = backend.items()
        assert sent == "t"
        assert short == long

    def test_a_whole_run_is_like_the_long_form(self, backend: Backend) -> None:
        step = {"prompt": "p", "response": "a", "step_id": "s", "start_time": START, "end_time": END_TEXT}
        call = {"name": "n", "tool_call_id": "t", "start_time": START, "end_time": END_TEXT}
        sent = picostep.send_run(
            prompt="p",
            response="a",
            steps=[step, {**step, "step_id": "s2"}],
            tool_calls=(call,),
            run_id="r",
            session_id="c",
            conversational=False,
            system_prompt="be brief",
            full_input=["p"],
            full_output={"a": 1},
            metadata={"k": "v"},
            status_code=3,
            status_message="odd",
            start_time=START,
            end_time=END_TEXT,
        )
        short = backend.items()
        run = picostep.run("r", "c", False, start_time=START)
        for step_id in ("s", "s2"):
            run.step(step_id, start_time=START).prompt("p").response("a").end(END_TEXT)
        run.tool_call("n", "t", start_time=START).end(END_TEXT)
        run.prompt("p", "be brief", full_input=["p"]).response("a", full_output={"a": 1})
        run.metadata({"k": "v"}).status(3, "odd").end(END_TEXT)

        assert sent == "r"
        assert short == backend.items()

    def test_the_least_of_a_run(self, backend: Backend) -> None:
        sent = picostep.send_run(prompt="p")

        assert without_times(backend.item()) == {
            "type": "run",
            "run_id": sent,
            "status_code": 0,
            "prompt": {"user_prompt": "p"},
        }

    def test_parts_of_a_run_get_its_id(self, backend: Backend) -> None:
        sent = picostep.send_run(
            prompt="p", steps=[{"prompt": "p", "response": "a"}] * 2, tool_calls=[{"name": "n"}]
        )

        items = backend.items()
        assert [item["run_id"] for item in items] == [sent] * 4
        assert len({item["step_id"] for item in items if item["type"] == "step"}) == 2

    def test_own_destination(self, backend: Backend) -> None:
        picostep.send_run(
            prompt="p",
            steps=[{"prompt": "p", "response": "a"}],
            tool_calls=[{"name": "n"}],
            api_key="another",
        )
        picostep.send_step("r", prompt="p", response="a", api_key="another")
        picostep.send_tool_call("r", name="n", api_key="another")

        requests = backend.requests()
        assert {request.headers["authorization"] for request in requests} == {"Bearer another"}
        assert sum(len(request.items()) for request in requests) == 5

    @pytest.mark.parametrize(
        "keywords",
        [{"step": []}, {"steps": [{"run_id": "x", "prompt": "p", "response": "a"}]}, {"tool_calls": [{}]}],
    )
    def test_unknown_or_missing_keywords(self, keywords: dict[str, Any]) -> None:
        with pytest.raises(TypeError):
            picostep.send_run(prompt="p", **keywords)


# --- misuse is logged, not raised -------------------------------------------------------------------------


class TestLogMode:
    @pytest.fixture(autouse=True)
    def _log_mode(self, backend: Backend) -> None:
        picostep.configure(**backend.configuration, misuse="log")

    @pytest.mark.parametrize(("kind", "method", "args", "keywords", "builtin", "argument"), METHODS)
    def test_a_wrong_call_is_counted_and_ignored(
        self,
        kind: str,
        method: str,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        builtin: type[Exception],
        argument: str,
        backend: Backend,
    ) -> None:
        made = new(kind)
        before = sum(picostep.stats()["misuse"].values())

        result = getattr(made, method)(*args, **keywords)

        assert sum(picostep.stats()["misuse"].values()) == before + 1
        assert result is (None if method in ("end", "error") else made)

    @pytest.mark.parametrize(("function", "keywords", "builtin", "argument"), FACTORIES)
    def test_functions_do_not_raise(
        self, function: str, keywords: dict[str, Any], builtin: Any, argument: str, backend: Backend
    ) -> None:
        before = sum(picostep.stats()["misuse"].values())

        getattr(picostep, function)(**keywords)

        assert sum(picostep.stats()["misuse"].values()) > before

    @pytest.mark.parametrize(("kind", "method", "args"), SETTERS)
    def test_setters_after_the_end_change_nothing(
        self, kind: str, method: str, args: tuple[Any, ...], backend: Backend
    ) -> None:
        ended = new(kind)
        ended.end()

        assert getattr(ended, method)(*args) is ended
        assert ended.end() is None
        assert ended.error("x") is None
        assert len(backend.items()) == 1

    def test_a_missing_field_leaves_it_open(self, backend: Backend) -> None:
        step = picostep.step("r", "s").prompt("p")
        step.end()
        assert backend.items() == []
        step.response("a").end()

        assert len(backend.items()) == 1

    def test_with_blocks_do_not_raise(self, backend: Backend) -> None:
        with picostep.run():
            pass

        assert backend.items() == []

    def test_each_kind_is_logged_once(self, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
        code = """
import logging, picostep
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
for _ in range(3):
    picostep.step("r").prompt(5).prompt("p").end()
    picostep.step("r").tokens(-1)
print(picostep.stats()["misuse"])
"""
        finished = run_python(
            code,
            {
                "PICOSTEP_MISUSE": "log",
                "PICOSTEP_EXPORTER": "off",
                "PICOSTEP_DIR": backend.configuration["dir"],
            },
        )

        lines = finished.stderr.splitlines()
        assert len([line for line in lines if "ArgumentTypeError" in line]) == 1
        assert len([line for line in lines if "ArgumentError" in line]) == 1
        assert len([line for line in lines if "MissingFieldError" in line]) == 1
        assert all(line.startswith("picostep ") for line in lines)
        assert finished.stdout.strip() == str(
            {"ArgumentTypeError": 3, "MissingFieldError": 3, "ArgumentError": 3}
        )

    def test_nothing_is_raised_for_a_logger_that_raises(self, backend: Backend) -> None:
        class Broken(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                self.handleError(record)

        handler = Broken()
        logger = logging.getLogger("picostep")
        logger.addHandler(handler)
        try:
            new("Step").prompt(5).end()
        finally:
            logger.removeHandler(handler)

        assert backend.item()["prompt"] == "p"


# --- disabled ---------------------------------------------------------------------------------------------

DISABLED = """
import os, sys, threading
import picostep as tcc

with tcc.run(session_id="c") as run:
    run.prompt("p").response("a").metadata(a="b")
    with run.step() as step:
        step.prompt("p").response("a").tokens(1, 2, 3).cost(0.5)
    step.tool_call("n").end()
tcc.send_run(prompt="p", steps=[{"prompt": "p", "response": "a"}])
assert run.feedback("thumbs_up") is True
assert tcc.submit_feedback("r", text="x", api_key="own") is True
assert len(run.run_id) == len(step.step_id) == 36
assert tcc.flush(1) and tcc.shutdown(1)
try:
    step.prompt("again")
except RuntimeError:
    pass
else:
    raise SystemExit("an ended step took a prompt")
try:
    tcc.step("r").tokens(-1)
except ValueError:
    pass
else:
    raise SystemExit("-1 tokens")
assert threading.active_count() == 1
assert tcc.stats()["recorded"] == tcc.stats()["accepted"] == 0, tcc.stats()
print(os.listdir(os.environ["PICOSTEP_DIR"]), os.path.exists(os.environ["XDG_STATE_HOME"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"TCC_API_KEY": "k"}, {"PICOSTEP_TO": "tcc"}])
def test_disabled(variables: dict[str, str], ring_base: Path, tmp_path: Path) -> None:
    """Nothing is written, started or asked for, not even a key; what is checked otherwise is checked here."""
    settings = {
        "PICOSTEP_DISABLED": "1",
        "PICOSTEP_DIR": str(ring_base),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }

    assert run_python(DISABLED, {**settings, **variables}).stdout == "[] False\n"
