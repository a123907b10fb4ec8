"""Whatever is called, rightly or wrongly, leaves nothing behind: each success and each refusal of the API."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import partial
from types import SimpleNamespace
from typing import Any

from leakcheck import TURNS, check, refused

import picostep as tcc


def whole_step() -> None:
    step = tcc.step("run").prompt("p" * 100).response("é" * 100).model("m").model(used="n")
    step.tokens(1, 2, 3).cost(0.5).finish_reason("stop").tool_definitions([{"a": 1}]).first_token()
    step.tool_call("tool").args({"a": 1}).result("r").end()
    step.end()


def whole_run() -> None:
    with tcc.run(session_id="s") as run:
        run.prompt("p", ["s"], {"i": 1}).response("r", "o").metadata({"a": 1}, b=2).metadata(c=3).status(
            0, "m"
        )
        run.feedback("thumbs_up", "text")
        str(run.run_id), repr(run)


def given_up() -> None:
    tcc.step("run", "own").prompt("p").response("r").cost(Decimal("0.1")).total_cost  # noqa: B018


def sent() -> None:
    tcc.send_step("run", prompt="p", response={"a": 1}, cost=3, completion=3, end_time="2199-01-01T00:00:00Z")
    tcc.send_tool_call("run", name="n", args={"a": 1})
    tcc.send_run(prompt="p", metadata={"a": 1}, steps=[{"prompt": "p", "response": "r"}])


def ended() -> tcc.Step:
    step = tcc.step("run").prompt("p").response("r")
    step.end()
    return step


class Key(str):
    """A text that could refer to anything."""


def subclasses() -> None:
    key = Key("text")
    key.step = tcc.step(key, Key("own")).prompt(key).response("r")  # type: ignore[attr-defined]
    key.step.end()  # type: ignore[attr-defined]


class Broken:
    """A usage object, a number or a text that fails when it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)

    def __index__(self) -> int:
        raise ValueError("index")


def endless() -> list[Any]:
    """A list that contains itself; whoever has it must take it apart."""
    inside: list[Any] = []
    inside.append(inside)
    return inside


def snapshot_of_endless() -> None:
    given = endless()
    try:
        tcc.step("run").prompt(given)
    finally:
        given.clear()


WHOLE: list[Callable[[], None]] = [whole_step, whole_run, given_up, sent, subclasses]

WRONG: list[Callable[[], Any]] = [
    # ended, incomplete
    lambda: ended().end(),
    lambda: ended().prompt("late"),
    lambda: ended().usage({"prompt_tokens": 1}),
    lambda: ended().error("late"),
    lambda: tcc.step("run").end(),
    lambda: tcc.step("run").prompt("p").end(),
    lambda: tcc.run().end(),
    lambda: tcc.tool_call("run").end(),
    # texts
    lambda: tcc.step("run").prompt("p").prompt(b"p"),  # type: ignore[arg-type]
    lambda: tcc.step("run").model("m", 1),  # type: ignore[arg-type]
    lambda: tcc.step("run").finish_reason(1),  # type: ignore[arg-type]
    lambda: tcc.step("run").tool_definitions(1),  # type: ignore[arg-type]
    lambda: tcc.step("run").status(0, 1),  # type: ignore[arg-type]
    lambda: tcc.step("run").error(1),  # type: ignore[arg-type]
    lambda: tcc.step("run", 1),  # type: ignore[arg-type]
    lambda: tcc.step(""),
    lambda: tcc.step(Broken()),  # type: ignore[arg-type]
    lambda: tcc.run(1),  # type: ignore[arg-type]
    lambda: tcc.run(session_id=1),  # type: ignore[arg-type]
    lambda: tcc.run(conversational=1),  # type: ignore[arg-type]
    lambda: tcc.run().prompt("p", 1),  # type: ignore[arg-type]
    lambda: tcc.run().prompt("p", ["s"], 1),  # type: ignore[arg-type]
    lambda: tcc.run().response("r", 1),  # type: ignore[arg-type]
    lambda: tcc.run().tool_call(1),  # type: ignore[arg-type]
    lambda: tcc.tool_call("run", tool_name=1),  # type: ignore[arg-type]
    lambda: tcc.tool_call("run").result(object()),  # type: ignore[arg-type]
    # snapshots
    lambda: tcc.step("run").prompt("p").response([object()]),
    lambda: tcc.step("run").prompt("p").response([float("nan")]),
    lambda: tcc.step("run").prompt({1: {2, 3}}),  # type: ignore[dict-item]
    lambda: tcc.step("run").tool_definitions([["deep", [object()]]]),
    snapshot_of_endless,
    lambda: tcc.run().metadata({1: 2}),  # type: ignore[arg-type]
    lambda: tcc.run().metadata(a=object()),
    lambda: tcc.run().metadata("text"),  # type: ignore[arg-type]
    # numbers
    lambda: tcc.step("run").tokens(1, 2, -3),
    lambda: tcc.step("run").tokens(1, 2, 3.5),  # type: ignore[arg-type]
    lambda: tcc.step("run").tokens(2**60),
    lambda: tcc.step("run").tokens(10**40),
    lambda: tcc.step("run").tokens(Broken()),  # type: ignore[arg-type]
    lambda: tcc.step("run").cost(Decimal("NaN")),
    lambda: tcc.step("run").cost(Decimal(f"0.{'1' * 3000}")),
    lambda: tcc.step("run").cost("1"),  # type: ignore[arg-type]
    lambda: tcc.step("run").cost(float("inf")),
    lambda: tcc.step("run").status("0"),  # type: ignore[arg-type]
    lambda: tcc.step("run").status(2**70),
    lambda: tcc.step("run").status(Broken()),  # type: ignore[arg-type]
    # usage objects
    lambda: tcc.step("run").usage({"unknown": 1}),
    lambda: tcc.step("run").usage({"prompt_tokens": -1, "completion_tokens": 1}),
    lambda: tcc.step("run").usage(SimpleNamespace(prompt_tokens="1", completion_tokens=1)),
    lambda: tcc.step("run").usage(None),  # type: ignore[arg-type]
    lambda: tcc.step("run").usage(Broken()),
    # times
    lambda: tcc.step("run").prompt("p").response("r").end("yesterday"),
    lambda: tcc.step("run").prompt("p").response("r").end(datetime(2026, 1, 1)),
    lambda: tcc.step("run", start_time="2026-13-01T00:00:00Z"),
    lambda: tcc.step("run", start_time=object()),  # type: ignore[arg-type]
    # all at once
    lambda: tcc.run().feedback("bad"),  # type: ignore[arg-type]
    lambda: tcc.submit_feedback("run", text="t" * 2001),
    lambda: tcc.submit_feedback("run"),
    lambda: tcc.send_step("run", prompt="p", response="r", cost=-1),
    lambda: tcc.send_step("run", prompt="p", response="r", completion="1"),  # type: ignore[arg-type]
    lambda: tcc.send_step("run", prompt=object(), response="r"),  # type: ignore[arg-type]
    lambda: tcc.send_step("run", prompt="p"),  # type: ignore[call-arg]
    lambda: tcc.send_step("run", prompt="p", response="r", unknown=1),  # type: ignore[call-arg]
    lambda: tcc.send_step("run", prompt="p", response="r", end_time="x"),
    lambda: tcc.send_tool_call("run", name=1),  # type: ignore[arg-type]
    lambda: tcc.send_tool_call("run", name="n", args=object()),  # type: ignore[arg-type]
    lambda: tcc.send_run(prompt="p", steps=[{"prompt": "p"}]),  # type: ignore[typeddict-item]
    lambda: tcc.send_run(prompt="p", tool_calls=[{"name": 1}]),  # type: ignore[typeddict-item]
    lambda: tcc.send_run(prompt="p", steps=[1]),  # type: ignore[list-item]
    lambda: tcc.send_run(prompt="p", metadata={"a": object()}),
    # never initialised
    lambda: tcc.Step.__new__(tcc.Step).tool_call(),
    lambda: tcc.Run.__new__(tcc.Run).end(),
    lambda: tcc.Step(),  # type: ignore[call-arg]
]


def refuse(call: Callable[[], Any]) -> None:
    with refused(tcc.PicostepError, TypeError, ValueError, RecursionError):
        call()


def ignore(call: Callable[[], Any]) -> None:
    """In the mode that logs, most wrong calls return; those of Python itself still raise."""
    try:
        call()
    except (tcc.PicostepError, TypeError, ValueError, RecursionError):
        return


def retained() -> int:
    """How many of the objects that a recorded step was made of the garbage collector can still see."""
    gc.collect()
    before = {id(found) for found in gc.get_objects()}
    step = tcc.step("run").prompt("p" * 1000).response(["r"]).tool_definitions({"a": 1})
    call = step.tool_call("name").args({"a": [1]})
    tracked = gc.is_tracked(step) + gc.is_tracked(call)
    call.end()
    step.end()
    gc.collect()
    new = [found for found in gc.get_objects() if id(found) not in before and found is not before]
    return tracked + sum(isinstance(found, (tcc.Step, tcc.ToolCall, tcc.Run)) for found in new)


def references() -> list[int]:
    """How many references to each of its arguments a thousand calls have left, right ones and wrong ones."""
    texts = ["run-id", "step-id", "a prompt", "a response", "a model", "a reason"]
    numbers = [10**9 + number for number in range(3)]
    costs = [Decimal("0.25"), 10**20]
    bodies: list[Any] = [["x"], {"a": "b"}]
    everything = [*texts, *numbers, *costs, *bodies]
    gc.collect()  # a traceback and its frame refer to each other
    before = [sys.getrefcount(given) for given in everything]
    for _ in range(1000):
        step = tcc.step(texts[0], texts[1]).prompt(texts[2]).response(bodies[0]).model(texts[4])
        step.tokens(*numbers).cost(costs[0]).finish_reason(texts[5]).tool_definitions(bodies[1])
        refuse(partial(step.tokens, numbers[0], numbers[1], "x"))  # type: ignore[arg-type]
        refuse(partial(step.model, texts[4], 1))  # type: ignore[arg-type]
        step.end()
        refuse(partial(step.prompt, texts[2]))
        refuse(partial(step.cost, costs[1]))
        del step
        tcc.send_step(texts[0], prompt=texts[2], response=texts[3], cost=costs[1], completion=numbers[2])
        refuse(partial(tcc.send_step, texts[0], prompt=texts[2], response=bodies[1], cost=-1))
        refuse(partial(tcc.send_run, prompt=texts[2], response=texts[3], steps=[{"prompt": texts[2]}]))  # type: ignore[typeddict-item]
        refuse(partial(tcc.submit_feedback, texts[0], texts[1], texts[2]))  # type: ignore[arg-type]
    gc.collect()
    after = [sys.getrefcount(given) for given in everything]
    return [count - old for count, old in zip(after, before, strict=True)]


def main() -> int:
    logging.disable()
    bad = check(((f"whole {scenario.__name__}", scenario) for scenario in WHOLE), turns=TURNS * 10)
    bad += check((f"wrong call {number}", partial(refuse, call)) for number, call in enumerate(WRONG))
    bad += check([("ring full", sent)], lambda: None)
    tcc.configure(misuse="log")
    bad += check((f"logged call {number}", partial(ignore, call)) for number, call in enumerate(WRONG))
    tcc.configure(misuse="raise")
    if any(left := references()):
        print("references left:", left)
        bad += 1
    if kept := retained():
        print(kept, "objects left to the garbage collector")
        bad += 1
    return bad


if __name__ == "__main__":
    raise SystemExit(main())
