"""
Run, Step and ToolCall: the state machine, the checks of arguments, the public chainable classes.

An object is a C struct (times, ids, counts) and an array of references to the texts it was given. `finish()`
is the one function that ends an object: it hands the stamped struct to the ring and lets the texts go. No
attribute is a Python object that could refer to others, so instances are invisible to the garbage collector.
"""

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
    """What Run, Step and ToolCall share. Not for direct use."""

    def __init__(self, made_by_a_factory: Never, /) -> None: ...
    @property
    def run_id(self) -> str:
        """The run's id: the text given, or a UUID."""

    def status(self, code: SupportsIndex, message: str | None = None) -> Self:
        """
        Set the status.

        Args:
            code: 0 for ok, 2 for error; any other int from -2**53 to 2**53 goes out as given.
            message: text; secrets in it are redacted before it leaves the machine. None keeps what was set.

        Returns:
            The object itself.

        Raises:
            EndedError: the object has ended.
            ArgumentTypeError: `code` is no int, or `message` no str.
            ArgumentError: `code` is out of range.
        """

    def error(self, status_message: str = "", end_time: _Time | None = None) -> None:
        """
        End the object as failed (status code 2) and hand it over; nothing else is required.

        Args:
            status_message: what went wrong; "" keeps a message that `status()` set. Secrets in it are
                redacted before it leaves the machine.
            end_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Raises:
            EndedError: the object has ended.
            ArgumentTypeError, ArgumentError: an argument has a wrong type, `end_time` cannot be read or lies
                before the start. The object stays open.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the object if it is open; after an exception, as failed with the exception's text."""

@final
class Run(_Handle):
    """
    One run of an agent, made by `picostep.run()`.

    Also a context manager. Thread-safety: methods may be called from any thread; each call is atomic.
    """

    def step(self, step_id: str | None = None, *, start_time: _Time | None = None) -> Step:
        """
        Begin a step of this run, which may have ended.

        Args:
            step_id: text; a UUID when None or "".
            start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Returns:
            The step. It goes where the run goes, and into the same trace.

        Raises:
            ArgumentTypeError, ArgumentError: an argument has a wrong type, or `start_time` cannot be read.
        """

    def tool_call(
        self,
        tool_name: str | None = None,
        tool_call_id: str | None = None,
        *,
        start_time: _Time | None = None,
    ) -> ToolCall:
        """
        Begin a tool call of this run, which may have ended.

        Args:
            tool_name: text; may also be set by `ToolCall.name()`.
            tool_call_id: text; a UUID when None or "".
            start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Returns:
            The tool call. It goes where the run goes, and into the same trace.

        Raises:
            ArgumentTypeError, ArgumentError: an argument has a wrong type, or `start_time` cannot be read.
        """

    def prompt(
        self, user_prompt: _Body, system_prompt: _Body | None = None, full_input: _Body | None = None
    ) -> Self:
        """
        Set what the user asked; replaces all three parts.

        Args:
            user_prompt: a text, or a list or dict of provider messages, of which the JSON is kept as it is
                now.
            system_prompt: the same, of the instructions; None for none.
            full_input: the same, of everything the agent was given; None for none.

        Returns:
            The run itself.

        Raises:
            EndedError: the run has ended.
            ArgumentTypeError: an argument is no str, list or dict, or holds what JSON has no form for.
            ArgumentError: a list or dict is too deep, holds itself, or holds NaN or an infinite number.
        """

    def response(self, text: _Body, full_output: _Body | None = None) -> Self:
        """
        Set what the agent answered; replaces both parts.

        Args:
            text: a text, or a list or dict of provider messages, of which the JSON is kept as it is now.
            full_output: the same, of everything the agent put out; None for none.

        Returns:
            The run itself.

        Raises:
            EndedError: the run has ended.
            ArgumentTypeError: an argument is no str, list or dict, or holds what JSON has no form for.
            ArgumentError: a list or dict is too deep, holds itself, or holds NaN or an infinite number.
        """

    def metadata(
        self,
        data: Mapping[str, _JSONValue] | Iterable[tuple[str, _JSONValue]] | None = None,
        **kwargs: _JSONValue,
    ) -> Self:
        """
        Merge keys into the run's metadata; of a key that is given again, the last value counts.

        Args:
            data: a mapping, or pairs of key and value. Keys are str, values anything that JSON has a form
                for; all is kept as it is now.
            **kwargs: more of them; they win over `data`.

        Returns:
            The run itself.

        Raises:
            EndedError: the run has ended.
            ArgumentTypeError: `data` is no mapping, a key is no str, or a value has no JSON form.
            ArgumentError: a value is too deep, holds itself, or holds NaN or an infinite number.
        """

    def feedback(self, score: _Score | None = None, text: str | None = None) -> bool:
        """
        Record the user's feedback on this run, which may have ended.

        Args:
            score: `"thumbs_up"` or `"thumbs_down"`.
            text: at most 2,000 characters. One of score and text is needed.

        Returns:
            Whether it was recorded. It is delivered later, like everything else.

        Raises:
            ArgumentTypeError, ArgumentError: an argument is not what it should be.
        """

    def end(self, end_time: _Time | None = None) -> None:
        """
        End the run and hand it over.

        Args:
            end_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Raises:
            MissingFieldError: no prompt was set; the run stays open.
            EndedError: the run has ended.
            ArgumentTypeError, ArgumentError: `end_time` cannot be read or lies before the start; the run
                stays open.
        """

@final
class Step(_Handle):
    """
    One request to a model and its response, made by `picostep.step()` or `Run.step()`.

    Also a context manager. Thread-safety: methods may be called from any thread; each call is atomic.
    """

    @property
    def step_id(self) -> str:
        """The step's id: the text given, or a UUID."""

    @property
    def total_cost(self) -> Decimal | None:
        """
        Cost in US dollars as an exact `decimal.Decimal`; None when it is not known.

        What `cost()` was given, else what follows from model and tokens: at once, also before `end()`. A
        float counts as the shortest decimal that denotes it. `cost_status` says where it comes from.
        """

    @property
    def cost_status(self) -> str:
        """
        Where `total_cost` comes from, or why there is none.

        One of `picostep.prices.STATUSES`: `"user"`, `"override"`, `"priced"`, `"free"`, `"unknown_model"` and
        so on; docs/reference/prices.md explains them.
        """

    def prompt(self, text: _Body) -> Self:
        """
        Set what was sent to the model.

        Args:
            text: a text, or a list or dict of provider messages, of which the JSON is kept as it is now.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is no str, list or dict, or holds what JSON has no form for.
            ArgumentError: it is too deep, holds itself, or holds NaN or an infinite number.
        """

    def response(self, text: _Body) -> Self:
        """
        Set what the model answered.

        Args:
            text: a text, or a list or dict of provider messages, of which the JSON is kept as it is now.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is no str, list or dict, or holds what JSON has no form for.
            ArgumentError: it is too deep, holds itself, or holds NaN or an infinite number.
        """

    def model(
        self,
        requested: str | None = None,
        used: str | None = None,
        *,
        provider: str | None = None,
        service_tier: str | None = None,
    ) -> Self:
        """
        Set the model that was asked for and the one that answered; None keeps what was set.

        Args:
            requested: the name in the request, as the provider writes it.
            used: the name in the response, as the provider writes it.
            provider: who served it: `"openai"`, `"azure"`, `"bedrock"` …; without it the name has to tell.
            service_tier: `"batch"`, `"flex"`, `"priority"` …, where that has a price of its own.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: an argument is no str; none of them is set.
        """

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
        """
        Set token counts, each an int from 0 to 2**53; None keeps what was set.

        Args:
            prompt_uncached: prompt tokens processed afresh.
            prompt_cached: prompt tokens read from a cache. They are not part of the uncached ones; that they
                were counted twice cannot be seen from here, so prefer `usage()`, which reads a provider's own
                answer.
            completion: tokens generated, reasoning included.
            cache_write: prompt tokens written to a cache; not part of the two above.
            cache_write_1h: those of `cache_write` that live for an hour.
            reasoning: those of `completion` that are reasoning.

        The keywords serve the cost and sinks of your own; The Context Company's ingest has no place for them.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: a count is no int; bools and floats are none. No count is changed.
            ArgumentError: a count is out of range, or a part is larger than its whole. No count is changed.
        """

    def usage(self, obj: object) -> Self:
        """
        Set the token counts from what a provider reports.

        Args:
            obj: the usage of a response, as object or dict: OpenAI (chat and responses), Anthropic, Gemini,
                LiteLLM. What it does not report keeps what was set.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is None, a text, a number or a list.
            ArgumentError: its form is not known, a count is no int from 0 to 2**53, or a part is larger than
                its whole. No count is changed.
        """

    def cost(self, real_total: _Cost | None) -> Self:
        """
        Set the cost in US dollars. It goes out as given and beats every price.

        Args:
            real_total: an int, float or Decimal, finite, at least 0 and below 1e300. None takes it back.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is no number, or a bool.
            ArgumentError: it is out of range, or has more than 1,000 digits.
        """

    def finish_reason(self, reason: str | None) -> Self:
        """
        Set why the model stopped.

        Args:
            reason: a text, as the provider writes it. None takes it back, as a provider's object may hold
                one.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is neither str nor None.
        """

    def tool_definitions(self, definitions: _Body) -> Self:
        """
        Set the tools that the model could call.

        Args:
            definitions: a text, or a list or dict of the provider's definitions, of which the JSON is kept as
                it is now.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is no str, list or dict, or holds what JSON has no form for.
            ArgumentError: it is too deep, holds itself, or holds NaN or an infinite number.
        """

    def first_token(self) -> Self:
        """
        Mark the arrival of the first streamed token, now; only the first call counts.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
        """

    def tool_call(
        self,
        tool_name: str | None = None,
        tool_call_id: str | None = None,
        *,
        start_time: _Time | None = None,
    ) -> ToolCall:
        """
        Begin a tool call of this step's run, which may have ended.

        Args:
            tool_name: text; may also be set by `ToolCall.name()`.
            tool_call_id: text; a UUID when None or "".
            start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Returns:
            The tool call. It goes where the step goes, and into the same trace.

        Raises:
            ArgumentTypeError, ArgumentError: an argument has a wrong type, or `start_time` cannot be read.
        """

    def end(self, end_time: _Time | None = None) -> None:
        """
        End the step and hand it over.

        Args:
            end_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Raises:
            MissingFieldError: prompt or response was not set; the step stays open.
            EndedError: the step has ended.
            ArgumentTypeError, ArgumentError: `end_time` cannot be read or lies before the start; the step
                stays open.
        """

@final
class ToolCall(_Handle):
    """
    One call of a tool, made by `picostep.tool_call()`, `Run.tool_call()` or `Step.tool_call()`.

    Also a context manager. Thread-safety: methods may be called from any thread; each call is atomic.
    """

    @property
    def tool_call_id(self) -> str:
        """The tool call's id: the text given, or a UUID."""

    def name(self, tool_name: str) -> Self:
        """
        Set the tool's name.

        Args:
            tool_name: a text.

        Returns:
            The tool call itself.

        Raises:
            EndedError: the tool call has ended.
            ArgumentTypeError: it is no str.
        """

    def args(self, value: _JSONValue) -> Self:
        """
        Set the arguments.

        Args:
            value: a text as it is; anything else as the text of its JSON, as it is now.

        Returns:
            The tool call itself.

        Raises:
            EndedError: the tool call has ended.
            ArgumentTypeError: it has no JSON form.
            ArgumentError: it is too deep, or holds itself.
        """

    def result(self, value: _JSONValue) -> Self:
        """
        Set the result.

        Args:
            value: a text as it is; anything else as the text of its JSON, as it is now.

        Returns:
            The tool call itself.

        Raises:
            EndedError: the tool call has ended.
            ArgumentTypeError: it has no JSON form.
            ArgumentError: it is too deep, or holds itself.
        """

    def end(self, end_time: _Time | None = None) -> None:
        """
        End the tool call and hand it over.

        Args:
            end_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Raises:
            MissingFieldError: no name was set; the tool call stays open.
            EndedError: the tool call has ended.
            ArgumentTypeError, ArgumentError: `end_time` cannot be read or lies before the start; the tool
                call stays open.
        """

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
    """
    Begin a run.

    Args:
        run_id: text; a UUID when None or "".
        session_id: text that groups runs.
        conversational: whether the run is part of a conversation.
        api_key: sends this run, its steps, tool calls and feedback with another key than the settings'.
        tcc_url: sends this run, its steps and tool calls to another endpoint than the settings'.
        start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.
        traceparent: the caller's span, as the header of W3C Trace Context has it: sink `otlp` shows this run
            below that, in its trace, and the steps and tool calls made from the run with it. See
            `current_traceparent()`. A text that is not valid is ignored, and the first one logged.

    Returns:
        The run; also a context manager.

    Raises:
        ConfigError: at first use, a setting is not valid.
        ArgumentTypeError, ArgumentError: an argument has a wrong type, or `start_time` cannot be read.
    """

def step(
    run_id: str,
    step_id: str | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
    *,
    start_time: _Time | None = None,
    traceparent: str | None = None,
) -> Step:
    """
    Begin a step of the run with this id.

    Args:
        run_id: text, not empty.
        step_id: text; a UUID when None or "".
        api_key: sends this step with another key than the settings'.
        tcc_url: sends this step to another endpoint than the settings'.
        start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.
        traceparent: what the run was given, so that both are in one trace.

    Returns:
        The step; also a context manager.

    Raises:
        ConfigError: at first use, a setting is not valid.
        ArgumentTypeError, ArgumentError: an argument is not what it should be.
    """

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
    """
    Begin a tool call of the run with this id.

    Args:
        run_id: text, not empty.
        tool_call_id: text; a UUID when None or "".
        tool_name: text; may also be set by `ToolCall.name()`.
        api_key: sends this tool call with another key than the settings'.
        tcc_url: sends this tool call to another endpoint than the settings'.
        start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.
        traceparent: what the run was given, so that both are in one trace.

    Returns:
        The tool call; also a context manager.

    Raises:
        ConfigError: at first use, a setting is not valid.
        ArgumentTypeError, ArgumentError: an argument is not what it should be.
    """

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
    """
    Record a whole step in one call: the fastest way.

    Args:
        run_id, step_id, start_time, api_key, tcc_url, traceparent: as in `step()`.
        prompt, response, tool_definitions: as in the methods of `Step` with these names.
        model_requested, model_used, provider, service_tier: as in `Step.model()`.
        prompt_uncached, prompt_cached, completion, cache_write, cache_write_1h, reasoning: as in
            `Step.tokens()`.
        cost: US dollars, as in `Step.cost()`; None is not given.
        finish_reason: as in `Step.finish_reason()`.
        status_code, status_message: as in `Step.status()`.
        end_time: as in `Step.end()`.

    Returns:
        The step's id.

    Raises:
        ConfigError, ArgumentTypeError, ArgumentError: as the calls it stands for; nothing is recorded then.
    """

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
    """
    Record a whole tool call in one call.

    Args:
        run_id, tool_call_id, start_time, api_key, tcc_url, traceparent: as in `tool_call()`.
        name, args, result: as in the methods of `ToolCall`; for args and result None is not given.
        status_code, status_message: as in `ToolCall.status()`.
        end_time: as in `ToolCall.end()`.

    Returns:
        The tool call's id.

    Raises:
        ConfigError, ArgumentTypeError, ArgumentError: as the calls it stands for; nothing is recorded then.
    """

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
    """
    Record a whole run in one call, with its steps and tool calls.

    Args:
        steps: mappings of the keywords of `send_step()`, without `run_id` and those that the run has for all
            of them: `api_key`, `tcc_url` and `traceparent`.
        tool_calls: mappings of the keywords of `send_tool_call()`, likewise.
        run_id, session_id, conversational, start_time, api_key, tcc_url, traceparent: as in `run()`.
        prompt, system_prompt, full_input: as in `Run.prompt()`.
        response, full_output: as in `Run.response()`.
        metadata: as in `Run.metadata()`.
        status_code, status_message: as in `Run.status()`.
        end_time: as in `Run.end()`.

    Returns:
        The run's id.

    Raises:
        ConfigError, ArgumentTypeError, ArgumentError: as the calls it stands for. The steps before a wrong
            one are recorded; the run is not.
    """

def submit_feedback(
    run_id: str,
    score: _Score | None = None,
    text: str | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
) -> bool:
    """
    Record the user's feedback on a run.

    Args:
        run_id: text.
        score: `"thumbs_up"` or `"thumbs_down"`.
        text: at most 2,000 characters. One of score and text is needed.
        api_key: as in `run()`.
        tcc_url: another endpoint for this feedback.

    Returns:
        Whether it was recorded. It is delivered later, like everything else.

    Raises:
        ConfigError: at first use, a setting is not valid.
        ArgumentTypeError, ArgumentError: an argument is not what it should be.
    """

def bind(module: ModuleType) -> None:
    """Give this module the functions it calls when something happens for the first time."""

def keep_runs() -> None:
    """
    Have runs that are let go from now on reported like those that stay open.

    For a process that ends because of an exception.
    """

def use(destination: int, is_disabled: bool, raises: bool) -> None:
    """Set the default destination (-1: resolve at first use), if all is disabled, if misuse raises."""
