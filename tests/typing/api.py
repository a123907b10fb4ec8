"""Never run: `test_typing.py` has mypy check it. What must not type-check says which error it expects."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from typing_extensions import assert_type

import picostep as tcc

NOW = datetime.now(timezone.utc)

# A whole program, chained.
with tcc.run("run", "session", True, start_time=NOW) as run:
    assert_type(run, tcc.Run)
    assert_type(run.run_id, str)
    assert_type(run.prompt("user", "system", full_input=[{"role": "user", "content": "user"}]), tcc.Run)
    assert_type(run.response("text", full_output={"any": ["JSON"]}), tcc.Run)
    assert_type(run.metadata({"a": "b"}, c=[1, None, {"d": 2.5}]), tcc.Run)
    assert_type(run.status(0, None), tcc.Run)
    assert_type(run.feedback("thumbs_up"), bool)
    with run.step("step") as step:
        assert_type(step, tcc.Step)
        assert_type(step.step_id, str)
        assert_type(step.total_cost, Decimal | None)
        assert_type(step.cost_status, str)
        assert_type(
            step.prompt([{"role": "user", "content": "text"}])
            .response("text")
            .model("asked", used="answered")
            .model(provider="openai", service_tier="batch")
            .tokens(1, prompt_cached=2, completion=None)
            .tokens(cache_write=3, cache_write_1h=2, reasoning=1)
            .usage({"prompt_tokens": 1})
            .cost(Decimal("0.1"))
            .cost(1)
            .cost(0.5)
            .cost(None)
            .finish_reason(None)
            .tool_definitions([{"name": "tool"}])
            .first_token()
            .status(2, "message"),
            tcc.Step,
        )
        assert_type(step.tool_call("tool", "id"), tcc.ToolCall)
    with run.tool_call("tool", start_time="2026-01-01T00:00:00Z") as call:
        assert_type(call, tcc.ToolCall)
        assert_type(call.tool_call_id, str)
        assert_type(call.name("tool").args({"a": 1}).result(["b", 2]), tcc.ToolCall)

assert_type(tcc.step("run", start_time=NOW), tcc.Step)
assert_type(tcc.tool_call("run", "id", "name"), tcc.ToolCall)
assert_type(tcc.send_step("run", prompt="p", response={"a": "b"}, cost=Decimal(1), end_time=NOW), str)
assert_type(tcc.send_tool_call("run", name="n", args={"a": 1}), str)
assert_type(tcc.send_run(prompt="p", steps=[{"prompt": "p", "response": "r"}]), str)
assert_type(tcc.run(traceparent=tcc.current_traceparent()), tcc.Run)
assert_type(tcc.step("run", traceparent="00-…"), tcc.Step)
assert_type(tcc.tool_call("run", traceparent=None), tcc.ToolCall)
assert_type(tcc.current_traceparent(), str | None)
tcc.send_step("run", prompt="p", response="r", traceparent=tcc.current_traceparent())
tcc.send_tool_call("run", name="n", traceparent=tcc.current_traceparent())
tcc.send_run(prompt="p", traceparent=tcc.current_traceparent())
assert_type(tcc.submit_feedback("run", "thumbs_down", "text"), bool)
assert_type(tcc.flush(1), bool)
assert_type(tcc.shutdown(), bool)
assert_type(tcc.stats(), dict[str, Any])
assert_type(tcc.get_api_key(), str)
assert_type(tcc.get_url("/v1/custom"), str)
tcc.configure(to=["stdout", "store"], exporter="thread", ring_bytes=1 << 20, misuse="log")

# Misuse that a type checker finds.
tcc.Run()  # type: ignore[call-arg]
tcc.step()  # type: ignore[call-arg]
tcc.configure(ring_size=1 << 20)  # type: ignore[arg-type]
tcc.step(b"run")  # type: ignore[arg-type]
tcc.run(conversational="yes")  # type: ignore[arg-type]
tcc.run(traceparent=b"00-")  # type: ignore[arg-type]
run.prompt(None)  # type: ignore[arg-type]
run.prompt(("a", "tuple"))  # type: ignore[arg-type]
run.metadata(a=object())  # type: ignore[arg-type]
run.feedback("good")  # type: ignore[arg-type]
step.tokens(1.5)  # type: ignore[arg-type]
step.cost("0.1")  # type: ignore[arg-type]
step.status("ok")  # type: ignore[arg-type]
step.end(1_700_000_000)  # type: ignore[arg-type]
step.step_id = "other"  # type: ignore[misc]
step.name("tool")  # type: ignore[attr-defined]
tcc.send_step("run", prompt="p")  # type: ignore[call-arg]


class MyStep(tcc.Step):  # type: ignore[misc]
    """Final classes have no subclasses."""
