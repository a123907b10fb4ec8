"""
`picostep demo`: a small agent that plans trips, and fails once.

The model and the tools are scripted, so that it needs no account, no network and less than a second. What it
does with picostep is what a real agent does.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from decimal import Decimal

import picostep

__all__ = ["FLUSH_TIMEOUT", "NotStored", "record"]

FLUSH_TIMEOUT = 10.0  # seconds

_SYSTEM = "You plan weekend trips. Check the weather before you suggest anything. Be brief."
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Forecast for a city and a day",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "day": {"type": "string"}},
                "required": ["city", "day"],
            },
        },
    }
]
_SPEED = 0.05  # of a real agent: what would take a second takes 50 ms


class NotStored(Exception):
    """The demo's records were accepted, and no exporter has stored them in time."""


@dataclass(frozen=True)
class _Reply:
    """What the scripted model answers: a text or a tool call, and the usage that its provider reports."""

    text: str
    uncached: int
    cached: int
    completion: int
    seconds: float
    finish_reason: str = "stop"
    first_token: float = 0.3
    """Seconds."""


def record(store: str) -> list[str]:
    """
    Record four runs through the public API into a local store, and wait until they are in it.

    Args:
        store: Path of the store. Nothing is sent anywhere, whatever the environment says.

    Returns:
        The ids of the runs, in order.

    Raises:
        NotStored: They are not in it after ten seconds; the message has the exporter's last error.
    """
    picostep.configure(to=f"store:{store}", exporter="process", disabled=False, misuse="raise")
    run_ids = [_lisbon(), _packing_list(), _oslo(), _kyoto()]
    if not picostep.flush(FLUSH_TIMEOUT):
        error = picostep.stats()["last_error"] or "no exporter has reported anything"
        raise NotStored(f"the demo's records were not stored within {FLUSH_TIMEOUT:.0f} s: {error}")
    return run_ids


def _lisbon() -> str:
    """Run an agent that calls a tool, answers, and is thanked for it."""
    request = "Plan a Saturday in Lisbon for two. We like food and hate queues."
    messages = _conversation(request)
    with picostep.run(session_id="trip-lisbon", conversational=True) as run:
        run.prompt(request, system_prompt=_SYSTEM).metadata(user="ada", plan="pro")
        arguments = {"city": "Lisbon", "day": "Saturday"}
        call = f"get_weather({json.dumps(arguments)})"
        _ask(run, "gpt-4.1", messages, _Reply(call, 184, 1024, 23, 0.9, "tool_calls"))
        forecast = _call_weather(run, arguments, {"sky": "sunny", "high_c": 24, "rain": 0.05})
        messages += [{"role": "assistant", "content": call}, {"role": "tool", "content": forecast}]
        answer = (
            "Sunny, 24 °C: stay outside.\n"
            "10:00 pastéis de nata in Belém, before the queue\n"
            "13:00 grilled fish in Cacilhas; take the ferry\n"
            "18:30 sunset from Miradouro da Graça"
        )
        _ask(run, "gpt-4.1", messages, _Reply(answer, 61, 1208, 74, 1.8))
        run.response(answer)
    run.feedback(score="thumbs_up", text="The ferry tip was perfect")
    return run.run_id


def _packing_list() -> str:
    """Run a single step of a model that no price table knows, written as one chain."""
    request = "What do I pack for two rainy days in Bergen?"
    answer = "A rain jacket with a hood, waterproof shoes, a warm layer, and a dry bag for your phone."
    run = picostep.run(session_id="trip-bergen").prompt(request, system_prompt=_SYSTEM)
    _ask(run, "northwind-chat-2", _conversation(request), _Reply(answer, 58, 0, 27, 0.7))
    run.response(answer).end()
    return run.run_id


def _oslo() -> str:
    """Run an agent whose tool fails twice, and which gives up."""
    request = "Is Sunday good for a hike near Oslo?"
    run = picostep.run(session_id="trip-oslo").prompt(request, system_prompt=_SYSTEM).metadata(user="grace")
    arguments = {"city": "Oslo", "day": "Sunday"}
    call = f"get_weather({json.dumps(arguments)})"
    _ask(run, "gpt-4.1-mini", _conversation(request), _Reply(call, 171, 1024, 21, 0.6, "tool_calls"))
    for _ in range(2):
        tool = run.tool_call("get_weather").args(arguments)
        _pass(0.4)
        tool.error("503 from weather.example: Authorization: Bearer demo-token-is-redacted")
    run.error("get_weather failed twice, giving up")
    return run.run_id


def _kyoto() -> str:
    """Run an agent that works in Japanese, and knows what its step cost."""
    request = "日曜日の京都で、静かな庭を三つ教えてください。"
    answer = "一、無鄰菴。二、圓光寺。三、蓮華寺。朝九時までなら静かです。"
    with picostep.run(session_id="trip-kyoto") as run:
        run.prompt(request, system_prompt=_SYSTEM)
        with run.step() as step:
            step.prompt(_conversation(request)).model(requested="gemini-2.5-flash")
            _pass(0.25)
            step.first_token()
            _pass(0.5)
            step.response(answer).tokens(prompt_uncached=96, completion=41).finish_reason("stop")
            step.cost(real_total=Decimal("0.00011"))  # from the provider's invoice
        run.response(answer)
    run.feedback(score="thumbs_down", text="Two of them are closed in winter")
    return run.run_id


def _ask(run: picostep.Run, model: str, messages: list[dict[str, str]], reply: _Reply) -> None:
    """Ask the scripted model, and record the step as one records a streamed answer."""
    step = run.step().prompt(messages).model(requested=model).tool_definitions(_TOOLS)
    _pass(reply.first_token)
    step.first_token()
    _pass(reply.seconds - reply.first_token)
    step.response(reply.text).finish_reason(reply.finish_reason)
    step.tokens(prompt_uncached=reply.uncached, prompt_cached=reply.cached, completion=reply.completion)
    step.end()


def _call_weather(run: picostep.Run, arguments: dict[str, str], forecast: dict[str, object]) -> str:
    with run.tool_call("get_weather") as tool:
        tool.args(arguments)
        _pass(0.2)
        tool.result(forecast)
    return json.dumps(forecast)


def _conversation(request: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": request}]


def _pass(seconds: float) -> None:
    time.sleep(seconds * _SPEED)
