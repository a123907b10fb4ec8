"""Counts the interpreter's memory blocks before and after each scenario: the second 20,000 turns add none."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from decimal import Decimal

import picostep as tcc

TURNS = 20_000


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


def failing(call: Callable[[], object]) -> Callable[[], None]:
    def scenario() -> None:
        try:
            call()
        except tcc.PicostepError:
            return
        raise SystemExit("accepted")

    return scenario


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


SCENARIOS: list[Callable[[], None]] = [
    whole_step,
    whole_run,
    given_up,
    sent,
    subclasses,
    failing(lambda: ended().end()),
    failing(lambda: ended().prompt("late")),
    failing(lambda: tcc.step("run").prompt("p").end()),
    failing(lambda: tcc.step("run").prompt("p").prompt(b"p")),  # type: ignore[arg-type]
    failing(lambda: tcc.step("run").prompt("p").response([object()])),
    failing(lambda: tcc.step("run").prompt("p").response([float("nan")])),
    failing(lambda: tcc.step("run").tokens(1, 2, -3)),
    failing(lambda: tcc.step("run").tokens(1, 2, 3.5)),  # type: ignore[arg-type]
    failing(lambda: tcc.step("run").model("m", 1)),  # type: ignore[arg-type]
    failing(lambda: tcc.step("run").cost(Decimal("NaN"))),
    failing(lambda: tcc.step("run").cost("1")),  # type: ignore[arg-type]
    failing(lambda: tcc.step("run").usage({"unknown": 1})),
    failing(lambda: tcc.step("run").status(0, 1)),  # type: ignore[arg-type]
    failing(lambda: tcc.step("run", 1)),  # type: ignore[arg-type]
    failing(lambda: tcc.step("")),
    failing(lambda: tcc.step("run").prompt("p").response("r").end("yesterday")),
    failing(lambda: tcc.step("run").error(1)),  # type: ignore[arg-type]
    failing(lambda: tcc.run().prompt("p", 1)),  # type: ignore[arg-type]
    failing(lambda: tcc.run().prompt("p", ["s"], 1)),  # type: ignore[arg-type]
    failing(lambda: tcc.run().metadata({1: 2})),  # type: ignore[arg-type]
    failing(lambda: tcc.run().feedback("bad")),  # type: ignore[arg-type]
    failing(lambda: tcc.send_step("run", prompt="p", response="r", cost=-1)),
    failing(lambda: tcc.send_run(prompt="p", steps=[{"prompt": "p"}])),
    failing(lambda: tcc.submit_feedback("run", text="t" * 2001)),
    failing(lambda: tcc.Step.__new__(tcc.Step).tool_call()),
]


def blocks(scenario: Callable[[], None], turns: int) -> int:
    for _ in range(turns):
        scenario()
    gc.collect()
    return sys.getallocatedblocks()


def main() -> int:
    bad = 0
    for number, scenario in enumerate(SCENARIOS):
        turns = TURNS if scenario is whole_step else TURNS // 4
        blocks(scenario, turns // 4)
        first = blocks(scenario, turns // 4)
        gained = blocks(scenario, turns) - first
        if gained > turns // 200:
            print(f"scenario {number} ({scenario.__name__}): {gained} blocks in {turns} turns")
            bad += 1
    return bad


if __name__ == "__main__":
    raise SystemExit(main())
