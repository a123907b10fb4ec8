"""
The same programs on the reference and on picostep: same bodies, same builtin exceptions, same return
values.

Hypothesis writes programs over the API that both have: valid and invalid calls, in any order, with any
text. Each program runs on `contextcompany` and on picostep against one real server. What arrives must be
equal, per URL and key and in order, once generated ids and times are replaced. Left out of the programs is
only what is meant to differ; `test_beyond.py` has a test for each of these:

* setters after `end()`, which the reference accepts;
* values that the reference takes unchecked (a number as model name) or only fails to send (a NaN as cost);
* objects after a refused call, as the reference keeps half of what it refused.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timezone
from io import StringIO
from types import ModuleType
from typing import Any

import contextcompany
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import picostep
from support import Ingest, Request, ring_directory

KEY = "key-of-the-suite"
TIMES = ("start_time", "end_time")
IDS = ("run_id", "step_id", "tool_call_id", "runId")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


# --- programs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Make:
    """Make a run, step or tool call: with a module function, or a method of the `of`-th `by`."""

    kind: str
    by: str = ""
    of: int = 0
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """Call a method of the `of`-th object of a kind; on both sides with equal arguments."""

    kind: str
    of: int
    method: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Feedback:
    """Call the module function `submit_feedback`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class RunId:
    """Stands in a program for the id of the `of`-th run, which differs between the sides."""

    def __init__(self, of: int) -> None:
        self.of = of

    def __repr__(self) -> str:
        return f"RunId({self.of})"


class Url(str):
    """Stands in a program for an endpoint of the server, given as a path."""


class Circular:
    """Stands in a program for a list that contains itself."""

    def __repr__(self) -> str:
        return "Circular()"


class Text(str):
    """A subclass of str, as enums and template engines make them."""


SETTERS = {
    "run": ("prompt", "response", "metadata", "status"),
    "step": ("prompt", "response", "model", "tokens", "cost", "finish_reason", "tool_definitions", "status"),
    "tool_call": ("name", "args", "result", "status"),
}


@dataclass
class Outcome:
    """What a program did: a line for each operation, and what arrived, by key and path."""

    log: list[tuple[Any, ...]]
    streams: dict[tuple[str, str], list[Any]]


class Interpreter:
    """Runs one program on one of the two modules."""

    def __init__(self, tcc: ModuleType, server: Ingest) -> None:
        self.tcc = tcc
        self.server = server
        self.objects: dict[str, list[Any]] = {"run": [], "step": [], "tool_call": []}
        self.ended: list[Any] = []  # the objects, not their id(): that of a dropped one is used again
        self.log: list[tuple[Any, ...]] = []
        self.run_ids: list[str] = []

    def run(self, program: list[Make | Call | Feedback]) -> list[tuple[Any, ...]]:
        for operation in program:
            if isinstance(operation, Make):
                self._make(operation)
            elif isinstance(operation, Call):
                self._call(operation)
            else:
                self._do(self.tcc.submit_feedback, operation.args, operation.kwargs)
        return self.log

    def _pick(self, kind: str, of: int) -> Any:
        objects = self.objects[kind]
        return objects[of % len(objects)] if objects else None

    def _make(self, operation: Make) -> None:
        owner = self._pick(operation.by, operation.of) if operation.by else self.tcc
        if owner is None:
            return
        made = self._do(getattr(owner, operation.kind), operation.args, operation.kwargs)
        if made is not None:
            self.objects[operation.kind].append(made)
            if operation.kind == "run":
                self.run_ids.append(made.run_id)

    def _call(self, operation: Call) -> None:
        target = self._pick(operation.kind, operation.of)
        if target is None:
            return
        if any(one is target for one in self.ended) and operation.method in SETTERS[operation.kind]:
            return
        before = len(self.log)
        self._do(getattr(target, operation.method), operation.args, operation.kwargs, target)
        (line,) = self.log[before:]
        if operation.method in ("end", "error") and line[1] == "returned":
            self.ended.append(target)
        elif line[1] == "raised" and operation.method != "feedback" and line[2] is TypeError:
            self.objects[operation.kind] = [one for one in self.objects[operation.kind] if one is not target]

    def _do(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], target: Any = None
    ) -> Any:
        name = function.__name__
        arguments = [self._value(value) for value in args]
        keywords = {key: self._value(value) for key, value in kwargs.items()}
        if any(isinstance(value, RunId) and self._value(value) is None for value in args):
            self.log.append((name, "no run to refer to"))
            return None
        try:
            result = function(*arguments, **keywords)
        except Exception as error:
            self.log.append((name, "raised", builtin(error)))
            return None
        shown = "itself" if target is not None and result is target else type(result).__name__
        self.log.append((name, "returned", result if isinstance(result, bool) else shown))
        return result

    def _value(self, value: Any) -> Any:
        if isinstance(value, RunId):
            run = self._pick("run", value.of)
            return None if run is None else run.run_id
        if isinstance(value, Url):
            return self.server.url + value
        if isinstance(value, Circular):
            ring: list[Any] = []
            ring.append(ring)
            return ring
        return value


def builtin(error: BaseException) -> type:
    """The builtin class a program would catch it by."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")


# --- what arrived, made comparable ------------------------------------------------------------------------


def streams(
    requests: list[Request], given_ids: set[str], made_ids: list[str], began: float
) -> dict[tuple[str, str], list[Any]]:
    """
    Sort items by key and path, in order of arrival, and replace what was generated.

    Records of one destination keep their order. Feedback of several destinations may go to one URL, where
    they come in any order, so feedback is sorted.
    """
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for request in requests:
        assert request.method == "POST"
        assert request.headers["content-type"] == "application/json"
        assert "content-encoding" not in request.headers
        found[request.headers["authorization"], request.path].extend(request.items())
    names = {made: f"<run {number}>" for number, made in enumerate(made_ids)}
    result: dict[tuple[str, str], list[Any]] = {}
    for stream in sorted(found):
        items = [comparable(item, given_ids, names, began) for item in found[stream]]
        result[stream] = [item for item in items if "runId" not in item]
        result[stream] += sorted((item for item in items if "runId" in item), key=repr)
    return result


def comparable(item: dict[str, Any], given_ids: set[str], names: dict[str, str], began: float) -> Any:
    item = dict(item)
    for key in IDS:
        value = item.get(key)
        if key == "runId" and value == "":
            continue  # feedback on a run without a name: both take it
        if value is not None and value not in given_ids:
            assert uuid.UUID(value).version == 4
            assert str(uuid.UUID(value)) == value
            item[key] = names.setdefault(value, f"<id {len(names)}>")
    if "start_time" in item:
        start, end = (instant(item.pop(key)) for key in TIMES)
        # The reference cuts off milliseconds; the other second is for a clock that is being adjusted.
        assert began - 1 <= start <= end <= time.time() + 1
    return exact(item)


def instant(text: str) -> float:
    assert TIME.fullmatch(text)
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()


def exact(value: Any) -> Any:
    """JSON values so that 1, 1.0, True and -0.0 are four different things."""
    if isinstance(value, dict):
        return {key: exact(part) for key, part in value.items()}
    if isinstance(value, list):
        return [exact(part) for part in value]
    return value if isinstance(value, str) or value is None else (type(value).__name__, repr(value))


def ids_in(program: list[Make | Call | Feedback]) -> set[str]:
    found = set()
    for operation in program:
        for value in (*operation.args, *operation.kwargs.values()):
            if isinstance(value, str) and value:
                found.add(json.loads(json.dumps(value)))  # two surrogates may arrive as one character
    return found


# --- strategies -------------------------------------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates and controls included
special_texts = st.sampled_from(
    [
        "",
        "\0",
        "\ud83d",
        "\ud83d\ude00",
        "\ude00\ud83d",
        "😀" * 50,
        "\u2028\u2029\x7f\x80\ufeff\uffff",
        '{"a": [1, "\\u0000"]}',
        "null",
        "line\r\nline\n",
        "漢字" * 300,
        "\xe9" * 300,
    ]
)
huge_texts = st.sampled_from(
    ["x" * 2**20, "漢" * 350_000, "😀" * 263_000, "\ud800" + "x" * 2**20, "\n" * 2**19]
)
small_texts = st.one_of(any_text, special_texts, any_text.map(Text))
texts = st.integers(0, 150).flatmap(lambda number: huge_texts if number == 150 else small_texts)

secrets = st.sampled_from(
    [
        "Authorization: Bearer abc.def",
        "authorization = Basic dXNlcjpwYXNzd29yZA==",
        "bearer 12345 failed",
        "Basic dXNlcjpwYXNzd29yZA==",
        "api_key=abc, next",
        'password: "x"',
        "client-secret=[x]",
        "https://user:pw@host/path",
        "HTTP://u:p@h http://a:b@c",
        "sk-proj-abcdefghijklmnopqrstuvwx",
        "xoxb-1234567890123456",
        "ghp_1234567890abcdef",
        "service_1234567890abcdef.",
        "nothing to hide",
        "pwd=é\ud800;",
    ]
)
messages = st.one_of(small_texts, secrets, st.lists(st.one_of(secrets, any_text), max_size=4).map(" ".join))

ids = st.one_of(st.none(), st.just(""), small_texts, st.sampled_from(["r1", "r2", str(uuid.UUID(int=7))]))
full_ids = st.one_of(st.sampled_from(["r1", "r2"]), small_texts).map(lambda text: text or "r3")
run_ids = st.one_of(st.builds(RunId, st.integers(0, 5)), full_ids)
maybe_text = st.one_of(st.none(), small_texts)
codes = st.one_of(st.sampled_from([0, 1, 2, -1, 2**31, 2**53]), st.integers(-(2**53), 2**53))
counts = st.one_of(st.none(), st.sampled_from([0, 1, 2**31, 2**53]), st.integers(0, 2**53))
costs = st.one_of(
    st.floats(0, allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 0.0, -0.0, 5e-324, 0.1, 1e22, 1e-7, 1.7976931348623157e308, 10**30, 2**64]),
    st.integers(0, 2**80),
    st.none(),
)
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        small_texts,
    ),
    lambda parts: st.one_of(st.lists(parts, max_size=3), st.dictionaries(any_text, parts, max_size=3)),
    max_leaves=6,
)
messages_bodies = st.one_of(
    st.lists(json_values, max_size=3), st.dictionaries(any_text, json_values, max_size=3)
)
bodies = st.one_of(texts, texts, messages_bodies)
# json.dumps makes text of these keys and numbers, and both send that text.
tool_values = st.one_of(
    texts,
    json_values,
    st.dictionaries(st.one_of(st.integers(), st.booleans(), st.none(), any_text), json_values, max_size=3),
    st.sampled_from([float("nan"), [float("inf")], (1, "a")]),
)
no_json = st.sampled_from([{1, 2}, b"bytes", object, 1j, [b""], {"a": {1}}, {(1, 2): 3}])
no_text = st.sampled_from([None, 5, 1.5, True, ...])
not_a_message = st.sampled_from([5, b"bytes", ["a"], 1.5])

of = st.integers(0, 5)
destinations = st.one_of(
    st.just({}),
    st.just({}),
    st.fixed_dictionaries(
        {},
        optional={
            "api_key": st.sampled_from([None, "", KEY, "another-key"]),
            "tcc_url": st.sampled_from([None, "", Url("/own/endpoint"), Url("/own/endpoint?a=b")]),
        },
    ),
)


def keywords(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


def call(kind: str, method: str, *args: st.SearchStrategy[Any], **optional: st.SearchStrategy[Any]) -> Any:
    return st.builds(Call, st.just(kind), of, st.just(method), st.tuples(*args), keywords(**optional))


def merged(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda found: {key: value for part in found for key, value in part.items()})


makes = st.one_of(
    st.builds(
        Make,
        st.just("run"),
        kwargs=merged(
            keywords(run_id=ids, session_id=maybe_text, conversational=st.sampled_from([None, True, False])),
            destinations,
        ),
    ),
    st.builds(Make, st.just("run"), args=st.tuples(ids, maybe_text, st.sampled_from([None, True, False]))),
    st.builds(
        Make, st.just("step"), args=st.tuples(run_ids), kwargs=merged(keywords(step_id=ids), destinations)
    ),
    st.builds(Make, st.just("step"), args=st.tuples(run_ids, ids)),
    st.builds(
        Make,
        st.just("tool_call"),
        args=st.tuples(run_ids),
        kwargs=merged(keywords(tool_call_id=ids, tool_name=maybe_text), destinations),
    ),
    st.builds(Make, st.just("tool_call"), args=st.tuples(run_ids, ids, maybe_text)),
    st.builds(Make, st.just("step"), st.just("run"), of, kwargs=keywords(step_id=ids)),
    st.builds(Make, st.just("step"), st.just("run"), of, args=st.tuples(ids)),
    st.builds(
        Make,
        st.just("tool_call"),
        st.sampled_from(["run", "step"]),
        of,
        kwargs=keywords(tool_name=maybe_text, tool_call_id=ids),
    ),
    st.builds(Make, st.just("tool_call"), st.sampled_from(["run", "step"]), of, st.tuples(maybe_text, ids)),
)
endings = st.one_of(
    *[
        one
        for kind in SETTERS
        for one in (call(kind, "end"), call(kind, "end"), call(kind, "error"), call(kind, "error", messages))
    ]
)
setters_of = {
    "run": st.one_of(
        call("run", "prompt", bodies),
        call("run", "prompt", texts, maybe_text),
        call("run", "prompt", texts, system_prompt=maybe_text),
        call("run", "response", texts),
        call("run", "metadata"),
        call("run", "metadata", st.dictionaries(any_text, json_values, max_size=3)),
        call("run", "metadata", st.none(), a=json_values, b=small_texts),
        call("run", "metadata", st.dictionaries(st.sampled_from("ab"), small_texts), a=small_texts),
        call("run", "status", codes, message=st.one_of(st.none(), messages)),
    ),
    "step": st.one_of(
        call("step", "prompt", bodies),
        call("step", "response", bodies),
        call("step", "model", requested=maybe_text, used=maybe_text),
        call("step", "model", maybe_text, maybe_text),
        call("step", "tokens", prompt_uncached=counts, prompt_cached=counts, completion=counts),
        call("step", "tokens", counts, counts, counts),
        call("step", "cost", costs),
        call("step", "finish_reason", maybe_text),
        call("step", "tool_definitions", bodies),
        call("step", "status", codes, message=st.one_of(st.none(), messages)),
    ),
    "tool_call": st.one_of(
        call("tool_call", "name", small_texts),
        call("tool_call", "args", tool_values),
        call("tool_call", "result", tool_values),
        call("tool_call", "status", codes, message=st.one_of(st.none(), messages)),
    ),
}
setters = st.one_of(*setters_of.values())
scores = st.sampled_from([None, "", "thumbs_up", "thumbs_down"])
feedback_texts = st.one_of(maybe_text, st.sampled_from(["x" * 2000, "x" * 2001, "😀" * 2000, "😀" * 2001]))
feedback = st.one_of(
    st.builds(Feedback, st.tuples(run_ids, scores, feedback_texts), st.just({})),
    st.builds(
        Feedback,
        st.tuples(st.one_of(run_ids, st.just(""))),
        merged(keywords(score=scores, text=feedback_texts), destinations),
    ),
    call("run", "feedback", scores, feedback_texts),
    call("run", "feedback", score=scores, text=feedback_texts),
)
# Refused by both, with the same builtin class.
refused = st.one_of(
    call("run", "response", no_text),
    call("run", "metadata", st.integers()),
    call("step", "prompt", no_text),
    call("step", "response", no_text),
    call("step", "tool_definitions", no_text),
    call("tool_call", "args", no_json),
    call("tool_call", "result", no_json),
    call("tool_call", "args", st.builds(Circular)),
    *[call(kind, "status", codes, not_a_message) for kind in SETTERS],
    *[call(kind, "error", not_a_message) for kind in SETTERS],
    *[call(kind, "end", st.none(), st.none()) for kind in SETTERS],
    *[call(kind, "status") for kind in SETTERS],
    call("run", "prompt"),
    call("step", "model", st.none(), st.none(), st.none()),
    call("step", "tokens", cached=st.integers()),
    call("step", "cost"),
    call("tool_call", "name"),
    st.builds(Make, st.sampled_from(["step", "tool_call"])),
    st.builds(Make, st.just("run"), kwargs=st.just({"id": "x"})),
    st.builds(Feedback, st.just(()), st.just({})),
    st.builds(Feedback, st.tuples(full_ids, scores, st.integers(1)), st.just({})),
)
operations = st.one_of(makes, setters, setters, setters, setters, endings, endings, feedback, refused)


def whole(kind: str, make: st.SearchStrategy[Make], *required: st.SearchStrategy[Call]) -> Any:
    """An object that can end, with whatever else happens before that; random calls alone rarely get there."""
    between = st.lists(st.one_of(setters_of[kind], setters_of[kind], operations), max_size=6)
    ending = st.sampled_from([Call(kind, -1, "end"), Call(kind, -1, "end"), Call(kind, -1, "error")])
    parts = st.tuples(make, *required, between, ending, st.lists(operations, max_size=2))
    return parts.map(
        lambda found: [one for part in found for one in (part if isinstance(part, list) else [part])]
    )


last = st.just(-1)
chunks = st.one_of(
    st.lists(operations, min_size=1, max_size=8),
    whole(
        "run",
        st.builds(
            Make, st.just("run"), kwargs=merged(keywords(run_id=ids, session_id=maybe_text), destinations)
        ),
        st.builds(Call, st.just("run"), last, st.just("prompt"), st.tuples(bodies)),
    ),
    whole(
        "step",
        st.builds(Make, st.just("step"), st.just("run"), of),
        st.builds(Call, st.just("step"), last, st.just("prompt"), st.tuples(bodies)),
        st.builds(Call, st.just("step"), last, st.just("response"), st.tuples(bodies)),
    ),
    whole(
        "tool_call",
        st.builds(Make, st.just("tool_call"), st.sampled_from(["run", "step"]), of, st.tuples(ids)),
    ),
)
programs = st.lists(chunks, min_size=1, max_size=6).map(
    lambda found: [Make("run"), Make("step", "run"), *[one for chunk in found for one in chunk]]
)


# --- the two sides ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Ingest]:
    """One server, one ring and one long-lived exporter for the whole module."""
    before = dict(os.environ)
    with Ingest() as ingest, ring_directory() as base:
        os.environ["TCC_API_KEY"] = KEY
        os.environ["TCC_BASE_URL"] = f"{ingest.url}/base/"
        # Large enough that no program fills it: what happens then is tested elsewhere.
        picostep.configure(dir=str(base), ring_bytes=2**26)
        try:
            yield ingest
        finally:
            assert picostep.shutdown(10)
            os.environ.clear()
            os.environ.update(before)
            picostep.configure()


def on_reference(program: list[Make | Call | Feedback], server: Ingest) -> Outcome:
    began = time.time()
    printed = StringIO()
    with redirect_stdout(printed):
        interpreter = Interpreter(contextcompany, server)
        log = interpreter.run(program)
    assert printed.getvalue() == "", "the reference could not send; such programs belong to test_beyond.py"
    return Outcome(log, streams(server.take(), ids_in(program), interpreter.run_ids, began))


def on_picostep(program: list[Make | Call | Feedback], server: Ingest) -> Outcome:
    began = time.time()
    interpreter = Interpreter(picostep, server)
    log = interpreter.run(program)
    assert picostep.flush(20)
    return Outcome(log, streams(server.take(), ids_in(program), interpreter.run_ids, began))


def check(program: list[Make | Call | Feedback], server: Ingest) -> None:
    expected = on_reference(program, server)
    actual = on_picostep(program, server)

    assert expected.log == actual.log
    assert expected.streams == actual.streams


@pytest.mark.slow
@given(program=programs)
@example(
    program=[
        Make("run", kwargs={"session_id": "s", "conversational": False}),
        Call("run", 0, "prompt", ("hello", "be brief")),
        Make("step", "run"),
        Call("step", 0, "prompt", ("p",)),
        Call("step", 0, "end"),
        Call("step", 0, "response", ("r",)),
        Call("step", 0, "model", ("m1",)),
        Call("step", 0, "model", (), {"used": "m2"}),
        Call("step", 0, "tokens", (1,)),
        Call("step", 0, "tokens", (None, 2, 3)),
        Call("step", 0, "cost", (0.1,)),
        Call("step", 0, "end"),
        Call("step", 0, "end"),
        Make("tool_call", "step"),
        Call("tool_call", 0, "end"),
        Call("tool_call", 0, "args", ({"a": [1, None]},)),
        Call("tool_call", 0, "error", ("api_key=1",)),
        Call("run", 0, "metadata", ({"a": "1", "b": {"c": 2}},), {"a": "3"}),
        Call("run", 0, "feedback", ("thumbs_up",)),
        Call("run", 0, "end"),
        Call("run", 0, "error"),
        Make("step", "run"),
        Call("step", 1, "error"),
    ]
)
@example(
    program=[
        Make("run", kwargs={"api_key": "another-key", "tcc_url": Url("/own/endpoint")}),
        Make("step", "run"),
        Make("tool_call", "step"),
        Call("tool_call", 0, "error"),
        Call("step", 0, "error"),
        Call("run", 0, "error"),
        Call("run", 0, "feedback", (None, "x" * 2000)),
        Feedback((RunId(0), None, "x" * 2001), {}),
        Feedback((RunId(0), "thumbs_down"), {"tcc_url": Url("/own/feedback")}),
    ]
)
def test_programs(program: list[Make | Call | Feedback], server: Ingest) -> None:
    check(program, server)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "x" * 2**20,
        "漢" * 350_000,
        *(pytest.param(text, marks=pytest.mark.slow) for text in ("😀" * 262_144, "\ud800" * 200_000)),
        "\0" * 200_000,
    ],
)
def test_a_megabyte_everywhere(text: str, server: Ingest) -> None:
    check(
        [
            Make("run", args=("r",)),
            Call("run", 0, "prompt", (text, text)),
            Call("run", 0, "response", (text,)),
            Call("run", 0, "end"),
            Make("step", args=("r",)),
            Call("step", 0, "prompt", (text,)),
            Call("step", 0, "response", (text,)),
            Call("step", 0, "end"),
            Make("tool_call", args=("r", None, "t")),
            Call("tool_call", 0, "args", ({"a": text},)),
            Call("tool_call", 0, "result", (text,)),
            Call("tool_call", 0, "end"),
        ],
        server,
    )


@pytest.mark.parametrize("step_count", [1, 2, 1500])
def test_order_over_batches(step_count: int, server: Ingest) -> None:
    """More records than fit in a batch arrive in the order in which they were handed over."""
    program: list[Make | Call | Feedback] = [Make("run", args=("r",))]
    for number in range(step_count):
        program += [Make("step", "run", 0, (f"s{number}",)), Call("step", number, "error")]
    Interpreter(picostep, server).run(program)

    assert picostep.flush(20)
    assert [f"s{number}" for number in range(step_count)] == [
        item["step_id"] for request in server.take() for item in request.items()
    ]


def test_order_of_feedback(server: Ingest) -> None:
    Interpreter(picostep, server).run([Feedback(("r", None, str(number)), {}) for number in range(50)])

    assert picostep.flush(20)
    assert [str(number) for number in range(50)] == [request.json()["text"] for request in server.take()]


# --- signatures -------------------------------------------------------------------------------------------


def public_callables() -> Iterator[Any]:
    names = contextcompany.__all__
    for name in names:
        yield pytest.param(getattr(contextcompany, name), getattr(picostep, name), id=name)
    run = contextcompany.run("r")
    for kind, theirs in {"Run": run, "Step": run.step(), "ToolCall": run.tool_call()}.items():
        for name in dir(type(theirs)):
            if not name.startswith("_") and callable(getattr(theirs, name)):
                ours = getattr(getattr(picostep, kind), name)
                yield pytest.param(getattr(type(theirs), name), ours, id=f"{kind}.{name}")


@pytest.mark.parametrize(("theirs", "ours"), list(public_callables()))
def test_parameters_begin_like_those_of_the_reference(theirs: Any, ours: Any) -> None:
    expected = list(inspect.signature(theirs).parameters.values())
    actual = list(inspect.signature(ours).parameters.values())
    catch_all = [one for one in expected if one.kind is inspect.Parameter.VAR_KEYWORD]
    named = [one for one in expected if one not in catch_all]

    assert [(one.name, one.kind, one.default) for one in named] == [
        (one.name, one.kind, one.default) for one in actual[: len(named)]
    ]
    added = [one for one in actual[len(named) :] if one.kind is not one.VAR_KEYWORD]
    assert all(one.default is not one.empty for one in added)
    assert bool(catch_all) == (len(named) + len(added) < len(actual))


@pytest.mark.slow
def test_all_public_names() -> None:
    assert set(contextcompany.__all__) <= set(picostep.__all__)
