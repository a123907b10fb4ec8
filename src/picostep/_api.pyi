"""Run, Step and ToolCall, and the functions that make or send them."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from types import ModuleType, TracebackType
from typing import Any, Literal, SupportsIndex, TypeAlias, final

from typing_extensions import Never, Self, disjoint_base

_Body: TypeAlias = str | list[Any] | dict[str, Any]
"""A text, or provider messages that are kept as their JSON."""
_JSONValue: TypeAlias = (
    str | int | float | bool | list[Any] | tuple[Any, ...] | dict[str, Any] | dict[int, Any] | None
)
_Time: TypeAlias = datetime | str
"""An aware datetime, or ISO 8601 text with an offset."""
_Cost: TypeAlias = float | Decimal | SupportsIndex
_Score: TypeAlias = Literal["thumbs_up", "thumbs_down"]

@disjoint_base
class _Handle:
    """What Run, Step and ToolCall share."""

    def __init__(self, made_by_a_factory: Never, /) -> None: ...
    @property
    def run_id(self) -> str:
        """The run's id: the text given, or a UUID."""

    def status(self, code: SupportsIndex, message: str | None = None) -> Self:
        """Set the status: 0 for ok, 2 for error; a message of None keeps what was set."""

    def error(self, status_message: str = "", end_time: _Time | None = None) -> None:
        """End the object as failed (status code 2) and hand it over."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the object; after an exception, as failed with the exception's text."""

@final
class Run(_Handle):
    """One run of an agent, made by `picostep.run()`."""

    def step(self, step_id: str | None = None, *, start_time: _Time | None = None) -> Step:
        """Begin a step of this run."""

    def tool_call(
        self,
        tool_name: str | None = None,
        tool_call_id: str | None = None,
        *,
        start_time: _Time | None = None,
    ) -> ToolCall:
        """Begin a tool call of this run."""

    def prompt(
        self, user_prompt: _Body, system_prompt: _Body | None = None, full_input: _Body | None = None
    ) -> Self:
        """Set what the user asked; replaces all three parts."""

    def response(self, text: _Body, full_output: _Body | None = None) -> Self:
        """Set what the agent answered; replaces both parts."""

    def metadata(
        self,
        data: Mapping[str, _JSONValue] | Iterable[tuple[str, _JSONValue]] | None = None,
        **kwargs: _JSONValue,
    ) -> Self:
        """Merge keys into the run's metadata, snapshotted now."""

    def feedback(self, score: _Score | None = None, text: str | None = None) -> bool:
        """Record the user's feedback on this run, as `picostep.submit_feedback()`."""

    def end(self, end_time: _Time | None = None) -> None:
        """End the run and hand it over; needs a prompt."""

@final
class Step(_Handle):
    """One request to a model and its response, made by `picostep.step()` or `Run.step()`."""

    @property
    def step_id(self) -> str:
        """The step's id: the text given, or a UUID."""

    @property
    def total_cost(self) -> Decimal | None:
        """Cost in US dollars, exact; None if not known. What `cost()` was given, else computed."""

    @property
    def cost_status(self) -> str:
        """Where `total_cost` comes from, or why there is none; one of `picostep.prices.STATUSES`."""

    def prompt(self, text: _Body) -> Self:
        """Set what was sent to the model."""

    def response(self, text: _Body) -> Self:
        """Set what the model answered."""

    def model(
        self,
        requested: str | None = None,
        used: str | None = None,
        *,
        provider: str | None = None,
        service_tier: str | None = None,
    ) -> Self:
        """Set the model that was asked for and the one that answered; None keeps what was set."""

    def tokens(
        self,
        prompt_uncached: SupportsIndex | None = None,
        prompt_cached: SupportsIndex | None = None,
        completion: SupportsIndex | None = None,
        *,
        cache_write: SupportsIndex | None = None,
        cache_write_1h: SupportsIndex | None = None,
        reasoning: SupportsIndex | None = None,
    ) -> Self:
        """Set token counts, disjoint, 0 to 2**53; None keeps what was set."""

    def usage(self, obj: object) -> Self:
        """Set the token counts from a provider's usage object or dict."""

    def cost(self, real_total: _Cost | None) -> Self:
        """Set the cost in US dollars, finite and not negative; None takes it back."""

    def finish_reason(self, reason: str | None) -> Self:
        """Set why the model stopped; None takes it back."""

    def tool_definitions(self, definitions: _Body) -> Self:
        """Set the tools the model could call."""

    def first_token(self) -> Self:
        """Mark the arrival of the first streamed token; only the first call counts."""

    def tool_call(
        self,
        tool_name: str | None = None,
        tool_call_id: str | None = None,
        *,
        start_time: _Time | None = None,
    ) -> ToolCall:
        """Begin a tool call of this step's run."""

    def end(self, end_time: _Time | None = None) -> None:
        """End the step and hand it over; needs prompt and response."""

@final
class ToolCall(_Handle):
    """One call of a tool, made by `picostep.tool_call()`, `Run.tool_call()` or `Step.tool_call()`."""

    @property
    def tool_call_id(self) -> str:
        """The tool call's id: the text given, or a UUID."""

    def name(self, tool_name: str) -> Self:
        """Set the tool's name."""

    def args(self, value: _JSONValue) -> Self:
        """Set the arguments: a text as it is, anything else as its JSON."""

    def result(self, value: _JSONValue) -> Self:
        """Set the result: a text as it is, anything else as its JSON."""

    def end(self, end_time: _Time | None = None) -> None:
        """End the tool call and hand it over; needs a name."""

def run(
    run_id: str | None = None,
    session_id: str | None = None,
    conversational: bool | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
    *,
    start_time: _Time | None = None,
    traceparent: str | None = None,
) -> Run:
    """Begin a run."""

def step(
    run_id: str,
    step_id: str | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
    *,
    start_time: _Time | None = None,
    traceparent: str | None = None,
) -> Step:
    """Begin a step of the run with this id."""

def tool_call(
    run_id: str,
    tool_call_id: str | None = None,
    tool_name: str | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
    *,
    start_time: _Time | None = None,
    traceparent: str | None = None,
) -> ToolCall:
    """Begin a tool call of the run with this id."""

def send_step(
    run_id: str,
    *,
    prompt: _Body,
    response: _Body,
    step_id: str | None = None,
    model_requested: str | None = None,
    model_used: str | None = None,
    prompt_uncached: SupportsIndex | None = None,
    prompt_cached: SupportsIndex | None = None,
    completion: SupportsIndex | None = None,
    cost: _Cost | None = None,
    finish_reason: str | None = None,
    tool_definitions: _Body | None = None,
    status_code: SupportsIndex = 0,
    status_message: str | None = None,
    start_time: _Time | None = None,
    end_time: _Time | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
    provider: str | None = None,
    service_tier: str | None = None,
    cache_write: SupportsIndex | None = None,
    cache_write_1h: SupportsIndex | None = None,
    reasoning: SupportsIndex | None = None,
    traceparent: str | None = None,
) -> str:
    """Record a whole step in one call; return its id."""

def send_tool_call(
    run_id: str,
    *,
    name: str,
    tool_call_id: str | None = None,
    args: _JSONValue = None,
    result: _JSONValue = None,
    status_code: SupportsIndex = 0,
    status_message: str | None = None,
    start_time: _Time | None = None,
    end_time: _Time | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
    traceparent: str | None = None,
) -> str:
    """Record a whole tool call in one call; return its id."""

def send_run(
    *,
    prompt: _Body,
    response: _Body | None = None,
    steps: Iterable[Mapping[str, Any]] = (),
    tool_calls: Iterable[Mapping[str, Any]] = (),
    run_id: str | None = None,
    session_id: str | None = None,
    conversational: bool | None = None,
    system_prompt: _Body | None = None,
    full_input: _Body | None = None,
    full_output: _Body | None = None,
    metadata: Mapping[str, _JSONValue] | None = None,
    status_code: SupportsIndex = 0,
    status_message: str | None = None,
    start_time: _Time | None = None,
    end_time: _Time | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
    traceparent: str | None = None,
) -> str:
    """Record a whole run in one call, with its steps and tool calls; return its id."""

def submit_feedback(
    run_id: str,
    score: _Score | None = None,
    text: str | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
) -> bool:
    """Record the user's feedback on a run; return whether it was recorded."""

def bind(module: ModuleType) -> None:
    """Give this module the functions it calls when something happens for the first time."""

def keep_runs() -> None:
    """Have runs that are let go from now on reported like those that stay open."""

def use(destination: int, is_disabled: bool, raises: bool) -> None:
    """Set the default destination, whether anything is recorded, and what misuse does."""
