"""
The fields that a record can have: one table, from which everything that handles records derives what it needs.

A record is a dict with only the keys that are set. A new field of a step is one row here, an enum line in
`ext/picostep/_ring.pxd`, a setter in `ext/picostep/_api.pyx`, and that setter's line in its stub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = ["FIELDS", "KINDS", "TABLES", "Field", "Kind", "Record", "content", "fields_of", "on_wire", "spans_of"]

Kind = Literal["run", "step", "tool_call", "feedback"]

KINDS: tuple[Kind, ...] = ("run", "step", "tool_call", "feedback")

TABLES: dict[Kind, str] = {"run": "runs", "step": "steps", "tool_call": "tool_calls", "feedback": "feedback"}
"""The store's table of each kind."""


class Record(TypedDict, total=False):
    """One record of a ring; a test compares the keys with `FIELDS`."""

    kind: Kind
    seq: int
    run_id: str
    step_id: str
    tool_call_id: str
    feedback_id: str
    start_ns: int
    first_token_ns: int
    end_ns: int
    status_code: int
    status_message: str
    traceparent: str
    shed: bool
    shortened: bool
    withheld: bool
    session_id: str
    conversational: bool
    metadata: str
    model_requested: str
    model_used: str
    provider: str
    service_tier: str
    finish_reason: str
    prompt_uncached_tokens: int
    prompt_cached_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    real_total_cost: int | float | Decimal
    cost_pico: int
    cost_status: str
    price_table: str
    tool_name: str
    prompt: str
    user_prompt: str
    system_prompt: str
    response: str
    tool_definitions: str
    full_input: str
    full_output: str
    args: str
    result: str
    score: str
    text: str


class Field(NamedTuple):
    """
    A row of the table.

    Attributes:
        name: The key in a record; of a column, too.

        kinds: The records that can have it.

        form: What it is: `id`, `text`, `count` (tokens), `time` (Unix time, ns), `number`, `flag` or `cost`.

        means: In words, with its unit.

        slot: Its place in the ring: a name of `_ring.pxd` without the kind's prefix, or "" where the exporter
            adds it, or where it has a place of its own there.

        wire: Its place among the keys of the JSON for The Context Company, from 1; 0: not sent there.

        local: The same for the keys that only files and streams of one's own have.

        content: Whether it may hold what people and models wrote: what redaction applies to.

        column: Its type in the store, `NOT NULL` where a record without it is refused; None: no column.

        called: The column's name where that is another.

        since: The minor version of the store's layout that brought the column.

        otlp: The attributes of a span that it becomes as it is; the first one is OpenTelemetry's, if it has one.

        span: Its place among the attributes of a span, from 1.
    """

    name: str
    kinds: tuple[Kind, ...]
    form: Literal["id", "text", "count", "time", "number", "flag", "cost"]
    means: str
    slot: str = ""
    wire: int = 0
    local: int = 0
    content: bool = False
    column: str | None = None
    called: str = ""
    since: int = 0
    otlp: tuple[str, ...] = ()
    span: int = 0


_RUN: tuple[Kind, ...] = ("run",)
_STEP: tuple[Kind, ...] = ("step",)
_TOOL: tuple[Kind, ...] = ("tool_call",)
_SAID: tuple[Kind, ...] = ("feedback",)
_TIMED: tuple[Kind, ...] = ("run", "step", "tool_call")
_OF_RUN: tuple[Kind, ...] = ("step", "tool_call", "feedback")

_ID = "TEXT NOT NULL"
_KEY = "TEXT NOT NULL PRIMARY KEY"
_NUMBER = "INTEGER NOT NULL"

# fmt: off
FIELDS: tuple[Field, ...] = (
    # Small ones first: SQLite keeps a long row in a chain of overflow pages, and a query for counts and times
    # should not have to walk it.
    Field("feedback_id", _SAID, "id", "the feedback's id", "OWN_ID", column=_KEY),
    Field("run_id", _RUN, "id", "the run's id", "RUN_ID", column=_KEY),
    Field("run_id", _OF_RUN, "id", "the id of its run", "RUN_ID", column=_ID),
    Field("step_id", _STEP, "id", "the step's id, unique in its run", "OWN_ID", column=_ID),
    Field("tool_call_id", _TOOL, "id", "the tool call's id, unique in its run", "OWN_ID", column=_ID),
    Field("start_ns", _TIMED, "time", "when it began, Unix time in ns", column=_NUMBER),
    Field("first_token_ns", _STEP, "time", "when the first streamed token came, Unix time in ns", column="INTEGER"),
    Field("end_ns", _TIMED, "time", "when it ended, Unix time in ns", column=_NUMBER),
    Field("end_ns", _SAID, "time", "when it was given, Unix time in ns", column=_NUMBER, called="time_ns"),
    Field("status_code", _TIMED, "number", "0: ok, 2: an error", column=_NUMBER),
    Field("status_message", _RUN, "text", "what went wrong; secrets are redacted", "STATUS_MESSAGE", wire=5,
          content=True, column="TEXT"),
    Field("status_message", _STEP, "text", "what went wrong; secrets are redacted", "STATUS_MESSAGE", wire=6,
          content=True, column="TEXT"),
    Field("status_message", _TOOL, "text", "what went wrong; secrets are redacted", "STATUS_MESSAGE", wire=1,
          content=True, column="TEXT"),
    Field("shed", _TIMED, "flag", "its bodies were left out, as the ring was filling up", local=9, column=_NUMBER),
    Field("shortened", _TIMED, "flag", "a text of it was cut", local=10, column=_NUMBER),
    Field("withheld", _TIMED, "flag", "a text of it could not be redacted and was left out", local=11,
          column=_NUMBER),
    Field("traceparent", _TIMED, "id", "the caller's span, as W3C Trace Context has it", "TRACEPARENT", local=8,
          column="TEXT", since=1),
    Field("session_id", _RUN, "id", "the conversation that the run belongs to", "RUN_SESSION", wire=1,
          column="TEXT", otlp=("gen_ai.conversation.id", "session.id"), span=1),
    Field("conversational", _RUN, "flag", "whether it is one of a conversation", wire=2, column="INTEGER"),
    Field("metadata", _RUN, "text", "a JSON object; in a record one on each line, the later wins", "RUN_METADATA",
          content=True, column="TEXT"),
    Field("model_requested", _STEP, "id", "the model that was asked for", "STEP_REQUESTED", wire=3, column="TEXT",
          otlp=("gen_ai.request.model",), span=3),
    Field("model_used", _STEP, "id", "the model that answered", "STEP_USED", wire=4, column="TEXT",
          otlp=("gen_ai.response.model",), span=4),
    Field("provider", _STEP, "id", "who served the model", "STEP_PROVIDER", local=1, column="TEXT",
          otlp=("gen_ai.provider.name",), span=1),
    Field("service_tier", _STEP, "id", "`batch`, `flex` and the like", "STEP_TIER", local=2, column="TEXT",
          otlp=("picostep.service_tier",), span=2),
    Field("finish_reason", _STEP, "id", "why the model stopped", "STEP_FINISH", wire=5, column="TEXT",
          otlp=("llm.finish_reason",), span=5),
    Field("prompt_uncached_tokens", _STEP, "count", "of the prompt, neither read from nor written to a cache",
          "TOKENS_UNCACHED", wire=7, column="INTEGER"),
    Field("prompt_cached_tokens", _STEP, "count", "of the prompt, read from a cache", "TOKENS_CACHED", wire=8,
          column="INTEGER", span=8,
          otlp=("gen_ai.usage.cache_read.input_tokens", "llm.token_count.prompt_details.cache_read")),
    Field("cache_write_tokens", _STEP, "count", "of the prompt, written to a cache", "TOKENS_CACHE_WRITE", local=3,
          column="INTEGER", span=9,
          otlp=("gen_ai.usage.cache_creation.input_tokens", "llm.token_count.prompt_details.cache_write")),
    Field("cache_write_1h_tokens", _STEP, "count", "of these, to one that lives for an hour",
          "TOKENS_CACHE_WRITE_1H", local=4, column="INTEGER", otlp=("picostep.cache_write_1h_tokens",), span=10),
    Field("completion_tokens", _STEP, "count", "of the response", "TOKENS_COMPLETION", wire=9, column="INTEGER",
          otlp=("gen_ai.usage.output_tokens", "llm.token_count.completion"), span=11),
    Field("reasoning_tokens", _STEP, "count", "of these, thought and not said", "TOKENS_REASONING", local=5,
          column="INTEGER", otlp=("llm.token_count.completion_details.reasoning",), span=12),
    Field("real_total_cost", _STEP, "cost", "what the program says it cost, in US dollars", "STEP_COST", wire=10,
          column="TEXT"),
    # Without a type: a number beyond 64 bits is kept as text.
    Field("cost_pico", _STEP, "cost", "what it cost, in pico-dollars (1e-12 US dollars)", column=""),
    Field("cost_status", _STEP, "id", "how that is known, or why it is not", local=6, column="TEXT",
          otlp=("picostep.cost_status",), span=6),
    Field("price_table", _STEP, "id", "the table that the price is from", local=7, column="TEXT",
          otlp=("picostep.price_table",), span=7),
    Field("tool_name", _TOOL, "id", "the tool's name; `unknown` where it failed before it had one", "TOOL_NAME",
          column=_ID),
    Field("score", _SAID, "id", "`thumbs_up` or `thumbs_down`", "FEEDBACK_SCORE", wire=1, column="TEXT"),
    Field("text", _SAID, "text", "what the user said", "FEEDBACK_TEXT", wire=2, content=True, column="TEXT"),
    # Bodies: what is left out first when a ring fills up.
    Field("prompt", _STEP, "text", "what the model was given", "STEP_PROMPT", wire=1, content=True, column="TEXT"),
    Field("user_prompt", _RUN, "text", "what the user asked", "RUN_PROMPT", content=True, column="TEXT"),
    Field("system_prompt", _RUN, "text", "what the agent was told", "RUN_SYSTEM", content=True, column="TEXT"),
    Field("response", _RUN, "text", "what the agent answered", "RUN_RESPONSE", wire=3, content=True, column="TEXT"),
    Field("response", _STEP, "text", "what the model answered", "STEP_RESPONSE", wire=2, content=True,
          column="TEXT"),
    Field("tool_definitions", _STEP, "text", "the tools that the model could call", "STEP_TOOLS", wire=11,
          content=True, column="TEXT"),
    Field("full_input", _RUN, "text", "all that the agent was given", "RUN_INPUT", content=True, column="TEXT",
          otlp=("picostep.full_input",), span=2),
    Field("full_output", _RUN, "text", "all that the agent made", "RUN_OUTPUT", wire=4, content=True, column="TEXT",
          otlp=("picostep.full_output",), span=3),
    Field("args", _TOOL, "text", "what the tool was given", "TOOL_ARGS", content=True, column="TEXT",
          otlp=("gen_ai.tool.call.arguments", "input.value"), span=1),
    Field("result", _TOOL, "text", "what the tool returned", "TOOL_RESULT", content=True, column="TEXT",
          otlp=("gen_ai.tool.call.result", "output.value"), span=2),
)
# fmt: on


def fields_of(kind: Kind) -> tuple[Field, ...]:
    """Return the fields that records of a kind can have, in the order of the store's columns."""
    return tuple(field for field in FIELDS if kind in field.kinds)


def content() -> frozenset[str]:
    """Return the fields that may hold what people and models wrote."""
    return frozenset(field.name for field in FIELDS if field.content)


def on_wire(kind: Kind) -> tuple[str, ...]:
    """Return the fields of a kind that go to The Context Company under their own names, in their order."""
    return tuple(field.name for field in sorted(fields_of(kind), key=_by_wire) if field.wire)


def spans_of(kind: Kind) -> dict[str, tuple[str, ...]]:
    """Return the attributes that fields of a kind become as they are, in their order."""
    return {field.name: field.otlp for field in sorted(fields_of(kind), key=_by_span) if field.otlp}


def _by_wire(field: Field) -> int:
    return field.wire


def _by_span(field: Field) -> int:
    return field.span
