"""
The fields that a record can have: one table, from which all that handles records derives what it needs.

A record is a dict with only the keys that are set; docs/reference/record.md has them for who writes a sink.
A new field of a step is one row here, its number in `ext/picostep/_ring.pxd`, a setter in
`ext/picostep/_api.pyx`, and that setter's line in its stub.
"""

from __future__ import annotations

# What type checkers take for typing.TYPE_CHECKING: a host that reads the cost of a step need not load typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal
    from typing import Literal, TypedDict

    Kind = Literal["run", "step", "tool_call", "feedback"]

    class Record(TypedDict, total=False):
        """One record of a ring. A test compares the keys with `FIELDS`."""

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

else:
    Kind, Record = str, dict

__all__ = [
    "FIELDS",
    "KINDS",
    "TABLES",
    "Field",
    "Kind",
    "Record",
    "content",
    "counts",
    "fields_of",
    "local",
    "on_wire",
    "spans_of",
    "texts",
]

KINDS: tuple[Kind, ...] = ("run", "step", "tool_call", "feedback")

TABLES: dict[Kind, str] = {"run": "runs", "step": "steps", "tool_call": "tool_calls", "feedback": "feedback"}
"""The store's table of each kind."""

SLOTS = 32
"""Texts, and counts, that a frame of the ring can have."""


class Field:
    """
    A row of the table.

    Args:
        name: The key in a record; of a column, too.

        kinds: The records that can have it.

        form: What it is: `id`, `text`, `count` (tokens), `time` (Unix time, ns), `number`, `flag` or `cost`.

        means: In words, with its unit.

        slot: Its number among the texts of the ring, or among the counts if it is one; None where it has a
            place of its own there, or the exporter adds it.

        wire: Its place among the keys of the JSON for The Context Company, from 1; 0: it is none of them.

        within: The key of the object in that JSON which holds it, where it is not the outermost.

        local: As `wire`, among the keys that only files and streams of one's own have.

        content: Whether it may hold what people and models wrote: what redaction applies to.

        column: Its type in the store, `NOT NULL` where a record without it is refused; None: no column.

        called: The column's name where that is another.

        since: The minor version of the store's layout that brought the column.

        otlp: The attributes of a span that it becomes as it is; OpenTelemetry's first, if there is one.

        span: Its place among the attributes of a span, from 1.
    """

    __slots__ = (
        *("name", "kinds", "form", "means", "slot", "wire", "within", "local", "content", "column", "called"),
        *("since", "otlp", "span"),
    )

    def __init__(
        self,
        name: str,
        kinds: tuple[Kind, ...],
        form: Literal["id", "text", "count", "time", "number", "flag", "cost"],
        means: str,
        slot: int | None = None,
        *,
        wire: int = 0,
        within: str = "",
        local: int = 0,
        content: bool = False,
        column: str | None = None,
        called: str = "",
        since: int = 0,
        otlp: tuple[str, ...] = (),
        span: int = 0,
    ) -> None:
        self.name = name
        self.kinds = kinds
        self.form = form
        self.means = means
        self.slot = slot
        self.wire = wire
        self.within = within
        self.local = local
        self.content = content
        self.column = column
        self.called = called
        self.since = since
        self.otlp = otlp
        self.span = span


_RUN: tuple[Kind, ...] = ("run",)
_STEP: tuple[Kind, ...] = ("step",)
_TOOL: tuple[Kind, ...] = ("tool_call",)
_SAID: tuple[Kind, ...] = ("feedback",)
_TIMED: tuple[Kind, ...] = ("run", "step", "tool_call")
_OF_RUN: tuple[Kind, ...] = ("step", "tool_call", "feedback")

_T, _I = "TEXT", "INTEGER"
_ID, _NUMBER = "TEXT NOT NULL", "INTEGER NOT NULL"
_KEY = "TEXT NOT NULL PRIMARY KEY"

_WRONG = "what went wrong; secrets are redacted"

# fmt: off
FIELDS: tuple[Field, ...] = (
    # Small ones first: SQLite keeps a long row in a chain of overflow pages, and a query for counts and times
    # should not have to walk it.
    Field("feedback_id", _SAID, "id", "the feedback's id", 1, column=_KEY),
    Field("run_id", _RUN, "id", "the run's id", 0, column=_KEY),
    Field("run_id", _OF_RUN, "id", "the id of its run", 0, column=_ID),
    Field("step_id", _STEP, "id", "the step's id, unique in its run", 1, column=_ID),
    Field("tool_call_id", _TOOL, "id", "the tool call's id, unique in its run", 1, column=_ID),
    Field("start_ns", _TIMED, "time", "when it began", column=_NUMBER),
    Field("first_token_ns", _STEP, "time", "when the first streamed token came", column=_I),
    Field("end_ns", _TIMED, "time", "when it ended", column=_NUMBER),
    Field("end_ns", _SAID, "time", "when it was given", column=_NUMBER, called="time_ns"),
    Field("status_code", _TIMED, "number", "0: ok, 2: an error", column=_NUMBER),
    Field("status_message", _RUN, "text", _WRONG, 8, wire=5, content=True, column=_T),
    Field("status_message", _STEP, "text", _WRONG, 8, wire=6, content=True, column=_T),
    Field("status_message", _TOOL, "text", _WRONG, 8, wire=1, content=True, column=_T),
    Field("shed", _TIMED, "flag", "its bodies were left out, as the ring was filling up",
          local=9, column=_NUMBER),
    Field("shortened", _TIMED, "flag", "a text of it was cut, as the record was too large",
          local=10, column=_NUMBER),
    Field("withheld", _TIMED, "flag", "a text of it could not be redacted and was left out",
          local=11, column=_NUMBER),
    Field("traceparent", _TIMED, "id", "the caller's span, as W3C Trace Context has it", 12,
          local=8, column=_T, since=1),
    Field("session_id", _RUN, "id", "the conversation that the run belongs to", 1,
          wire=1, column=_T, otlp=("gen_ai.conversation.id", "session.id"), span=1),
    Field("conversational", _RUN, "flag", "whether it is one of a conversation", wire=2, column=_I),
    Field("metadata", _RUN, "text", "JSON objects, one on each line; keys of later ones win", 7,
          content=True, column=_T),
    Field("model_requested", _STEP, "id", "the model that was asked for", 5,
          wire=3, column=_T, otlp=("gen_ai.request.model",), span=3),
    Field("model_used", _STEP, "id", "the model that answered", 6,
          wire=4, column=_T, otlp=("gen_ai.response.model",), span=4),
    Field("provider", _STEP, "id", "who served the model", 10,
          local=1, column=_T, otlp=("gen_ai.provider.name",), span=1),
    Field("service_tier", _STEP, "id", "`batch`, `flex` and the like", 11,
          local=2, column=_T, otlp=("picostep.service_tier",), span=2),
    Field("finish_reason", _STEP, "id", "why the model stopped", 7,
          wire=5, column=_T, otlp=("llm.finish_reason",), span=5),
    Field("prompt_uncached_tokens", _STEP, "count", "of the prompt, neither read from nor put in a cache", 0,
          wire=7, column=_I),
    Field("prompt_cached_tokens", _STEP, "count", "of the prompt, read from a cache", 1, wire=8, column=_I,
          otlp=("gen_ai.usage.cache_read.input_tokens", "llm.token_count.prompt_details.cache_read"), span=8),
    Field("cache_write_tokens", _STEP, "count", "of the prompt, put in a cache", 3, local=3, column=_I,
          otlp=("gen_ai.usage.cache_creation.input_tokens", "llm.token_count.prompt_details.cache_write"),
          span=9),
    Field("cache_write_1h_tokens", _STEP, "count", "of these, to one that lives for an hour", 4,
          local=4, column=_I, otlp=("picostep.cache_write_1h_tokens",), span=10),
    Field("completion_tokens", _STEP, "count", "of the response", 2,
          wire=9, column=_I, otlp=("gen_ai.usage.output_tokens", "llm.token_count.completion"), span=11),
    Field("reasoning_tokens", _STEP, "count", "of these, thought and not said", 5,
          local=5, column=_I, otlp=("llm.token_count.completion_details.reasoning",), span=12),
    Field("real_total_cost", _STEP, "cost", "what the program says it cost, in US dollars", 9,
          wire=10, column=_T),
    # Without a type: a number beyond 64 bits is kept as text.
    Field("cost_pico", _STEP, "cost", "what it cost, in pico-dollars (1e-12 US dollars)", column=""),
    Field("cost_status", _STEP, "id", "how that is known, or why it is not",
          local=6, column=_T, otlp=("picostep.cost_status",), span=6),
    Field("price_table", _STEP, "id", "the table that the price is from",
          local=7, column=_T, otlp=("picostep.price_table",), span=7),
    Field("tool_name", _TOOL, "id", "the tool's name; missing where it failed before it had one", 4,
          column=_ID),
    Field("score", _SAID, "id", "`thumbs_up` or `thumbs_down`", 2, wire=1, column=_T),
    Field("text", _SAID, "text", "what the user said", 3, wire=2, content=True, column=_T),
    # Bodies: what is left out first when a ring fills up.
    Field("prompt", _STEP, "text", "what the model was given", 2, wire=1, content=True, column=_T),
    Field("user_prompt", _RUN, "text", "what the user asked", 2,
          wire=1, within="prompt", content=True, column=_T),
    Field("system_prompt", _RUN, "text", "what the agent was told", 4,
          wire=2, within="prompt", content=True, column=_T),
    Field("response", _RUN, "text", "what the agent answered", 3, wire=3, content=True, column=_T),
    Field("response", _STEP, "text", "what the model answered", 3, wire=2, content=True, column=_T),
    Field("tool_definitions", _STEP, "text", "the tools that the model could call", 4,
          wire=11, content=True, column=_T),
    Field("full_input", _RUN, "text", "all that the agent was given", 5,
          wire=3, within="prompt", content=True, column=_T, otlp=("picostep.full_input",), span=2),
    Field("full_output", _RUN, "text", "all that the agent made", 6,
          wire=4, content=True, column=_T, otlp=("picostep.full_output",), span=3),
    Field("args", _TOOL, "text", "what the tool was given", 2,
          content=True, column=_T, otlp=("gen_ai.tool.call.arguments", "input.value"), span=1),
    Field("result", _TOOL, "text", "what the tool returned", 3,
          content=True, column=_T, otlp=("gen_ai.tool.call.result", "output.value"), span=2),
)
# fmt: on


def fields_of(kind: Kind) -> tuple[Field, ...]:
    """Return the fields that records of a kind can have, in the order of the store's columns."""
    return tuple(field for field in FIELDS if kind in field.kinds)


def texts(kind: Kind) -> tuple[str | None, ...]:
    """Return the names of the texts of a kind by their number in the ring; None: no text of this version."""
    return _by_slot(field for field in fields_of(kind) if field.form != "count")


def counts() -> tuple[str | None, ...]:
    """Return the names of the counts by their number in the ring; None: no count of this version."""
    return _by_slot(field for field in FIELDS if field.form == "count")


def content() -> tuple[str, ...]:
    """Return the fields that may hold what people and models wrote."""
    return tuple(dict.fromkeys(field.name for field in FIELDS if field.content))


def on_wire(kind: Kind, within: str = "") -> tuple[str, ...]:
    """Return the fields of a kind that go to The Context Company under their own names, in their order."""
    found = [field for field in fields_of(kind) if field.wire and field.within == within]
    return tuple(field.name for field in sorted(found, key=lambda field: field.wire))


def local() -> tuple[str, ...]:
    """Return the fields that only files and streams of one's own get, in their order."""
    found = [field for field in FIELDS if field.local]
    return tuple(field.name for field in sorted(found, key=lambda field: field.local))


def spans_of(kind: Kind) -> dict[str, tuple[str, ...]]:
    """Return the attributes that fields of a kind become as they are, in their order."""
    found = [field for field in fields_of(kind) if field.otlp]
    return {field.name: field.otlp for field in sorted(found, key=lambda field: field.span)}


def _by_slot(fields: Iterable[Field]) -> tuple[str | None, ...]:
    names: list[str | None] = [None] * SLOTS
    for field in fields:
        if field.slot is not None:
            names[field.slot] = field.name
    return tuple(names)
