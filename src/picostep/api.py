"""
The functions that concern the whole process: settings, waiting, counting, and the trace it is in.

Recording itself is compiled, in `_records`.
"""

from __future__ import annotations

import sys

from picostep import runtime
from picostep.errors import ArgumentError, ArgumentTypeError, ConfigError
from picostep.settings.table import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike
    from typing import Any

__all__ = ["configure", "current_traceparent", "flush", "shutdown", "stats"]


def configure(
    *,
    to: str | Iterable[str] | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
    dir: str | None = None,
    exporter: str | None = None,
    disabled: bool | None = None,
    ring_bytes: int | None = None,
    spool: str | None = None,
    spool_bytes: int | None = None,
    spool_age: float | None = None,
    batch_records: int | None = None,
    batch_bytes: int | None = None,
    exit_timeout: float | None = None,
    misuse: str | None = None,
    prices: Mapping[str | tuple[str, str], Mapping[str, Any]] | str | PathLike[str] | None = None,
    send_computed_cost: bool | None = None,
    redact: str | list[str] | Mapping[str, Any] | PathLike[str] | None = None,
    otlp_content: bool | None = None,
) -> None:
    """
    Set what the environment does not say, or says otherwise. Optional; best called once, at start.

    What is left out comes from the environment, then from the defaults: a second call does not add to the
    first. Runs and steps that exist keep their destination.

    Args:
        to: One sink or several: `"tcc"`, `"stdout"`, `"jsonl:PATH"`, `"store:PATH"`, `"store"`, `"otlp:URL"`,
            or one that is installed. Else `PICOSTEP_TO`; else The Context Company when there is a key, the
            local store when there is none.

        api_key: Key of The Context Company; else `TCC_API_KEY`.

        tcc_url: Whole endpoint for runs, steps and tool calls; else `TCC_URL`.

        dir: Directory in which the ring directory is made; else `PICOSTEP_DIR`; else `/dev/shm` on Linux.

        exporter: `"process"` (default), `"thread"`, `"external"` (`picostep export` runs beside the host) or
            `"off"`; else `PICOSTEP_EXPORTER`.

        disabled: Record nothing; else `PICOSTEP_DISABLED`.

        ring_bytes: Size of a ring, 256 KiB to 1 GiB, rounded down to a power of two; else
            `PICOSTEP_RING_BYTES`; else 16 MiB.

        spool: Directory in which the exporter keeps what a sink cannot take now, or `"off"`; else
            `PICOSTEP_SPOOL`; else `$XDG_STATE_HOME/picostep/spool`.

        spool_bytes: What the spool of one sink may hold, 1 MiB to 1 TiB; else `PICOSTEP_SPOOL_BYTES`; else 1
            GiB. What finds no room waits in the rings.

        spool_age: Seconds after which spooled records are dropped and counted; else `PICOSTEP_SPOOL_AGE`;
            else 7 days.

        batch_records: Most records in a batch, 1 to 65,536; else `PICOSTEP_BATCH_RECORDS`; else 512.

        batch_bytes: Bytes at which a batch is closed, 1 KiB to 64 MiB; else `PICOSTEP_BATCH_BYTES`; else 1
            MiB.

        exit_timeout: Longest wait at the exit of the process, in seconds; else `PICOSTEP_EXIT_TIMEOUT`; else
            2.

        misuse: `"raise"`, or `"log"` to count wrong calls, log the first of each kind, and otherwise ignore
            them; else `PICOSTEP_MISUSE`.

        prices: Prices of one's own, which win over the price table: a mapping from a model or `(provider,
            model)`, or the name of a TOML or JSON file; `picostep.prices.Overrides` describes both. Else the
            file named by `PICOSTEP_PRICES`.

        send_computed_cost: Also send The Context Company the costs that picostep computed, where none was
            set; else `PICOSTEP_SEND_COMPUTED_COST`. By default not: the service prices steps itself.

        redact: What all texts lose (prompts, responses, tool definitions, arguments, results, metadata,
            feedback, status messages) before anything else is done with them: `"secrets"`, which finds
            credentials of known shape; a list of regular expressions, whose matches become `[REDACTED]`; a
            mapping with `secrets`, `patterns` and `function` (`"package.module:name"`, called in the exporter
            as `function(text: str) -> str`); or the name of a TOML or JSON file with such a mapping. A text
            for which this fails is withheld. Else `PICOSTEP_REDACT`, which is `secrets` or the name of a
            file. By default status messages alone lose secrets, whatever this says.

        otlp_content: Whether sink `otlp` sends prompts, responses, tool definitions, arguments, results,
            metadata and session ids; else `PICOSTEP_OTLP_CONTENT`; else True.

    Raises:
        ConfigError: A setting cannot be used; nothing is changed.
    """
    try:
        new = Settings.resolve(
            to=to,
            api_key=api_key,
            tcc_url=tcc_url,
            dir=dir,
            exporter=exporter,
            disabled=disabled,
            ring_bytes=ring_bytes,
            spool=spool,
            spool_bytes=spool_bytes,
            spool_age=spool_age,
            batch_records=batch_records,
            batch_bytes=batch_bytes,
            exit_timeout=exit_timeout,
            misuse=misuse,
            prices=prices,
            send_computed_cost=send_computed_cost,
            redact=redact,
            otlp_content=otlp_content,
        )
        runtime.configure(new)
    except ConfigError as error:
        del api_key  # what shows errors with the variables of their frames shall not show it
        raise error.with_traceback(None) from None


def flush(timeout: float | None = None) -> bool:
    """
    Wait until all that was accepted before this call is delivered to every sink, or dropped and counted.

    Args:
        timeout: Seconds; 30 when None.

    Returns:
        Whether it is. False leaves everything as it is, in the ring or in the spool: nothing is lost by not
        waiting.

    Raises:
        ArgumentTypeError, ArgumentError: `timeout` is not a number ≥ 0.
    """
    return runtime.flush(_seconds(timeout, "flush"))


def shutdown(timeout: float | None = None) -> bool:
    """
    Flush, then give up this process's rings. What is not delivered by then stays for an exporter to take.

    Recording afterwards is allowed and opens new rings. Not needed at exit: a process that ends waits by
    itself.

    Args:
        timeout: Seconds; 30 when None.

    Returns:
        Whether everything was delivered in time.

    Raises:
        ArgumentTypeError, ArgumentError: `timeout` is not a number ≥ 0.
    """
    return runtime.shutdown(_seconds(timeout, "shutdown"))


def stats() -> dict[str, Any]:
    """
    Return this process's counters, in records.

    Returns:
        recorded: Calls of `end()`, `error()`, `send_*()` and feedback that were to be recorded.

        accepted: Of these, in the ring, ever: they survive the death of the process.

        delivered: Of these, taken by every sink.

        in_ring: Of these, still in shared memory.

        in_spool: Of these, waiting on disk for at least one sink. At any moment accepted = delivered +
            in_ring + in_spool + the drops that happened after acceptance.

        unsynced: Of those in the spool, written and not yet synced: they and what is in the ring is what a
            loss of power would take.

        dropped: By reason. Before acceptance: `ring_full`, `no_ring`. After it: `rejected` by the backend,
            `encode_error`, `corrupt`, `expired` (in the spool for longer than `spool_age`).

        shed: Accepted without bodies, as the ring was filling up.

        withheld: Exported without a text whose redaction failed.

        shortened: Accepted with a text cut, as the record was larger than a quarter of the ring.

        untracked_runs: Runs that are not reported if the process dies before they end, as too many were open
            at once, or there is no ring in shared memory.

        last_error: What the exporter last failed with, or None.

        misuse: Wrong calls by exception, in the mode `misuse="log"`.

        price_table_errors: How many refreshed price tables this process found that it could not use.

        rings: The same for each ring, with its destination and exporter.
    """
    return runtime.stats()


def current_traceparent() -> str | None:
    """
    Return the span of OpenTelemetry that is active here, for `run(traceparent=…)`.

    Returns:
        It as the header `traceparent` has it; None if no valid span is active, or nothing has imported
        `opentelemetry.trace`, which this does not do either.
    """
    # Not there as long as another thread is importing the module.
    current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current_span is None:
        return None
    context = current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _seconds(timeout: float | None, where: str) -> float:
    if timeout is None:
        return runtime.FLUSH_TIMEOUT
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ArgumentTypeError(
            f"{where}(): timeout must be a number of seconds, not {type(timeout).__name__}"
        )
    if not 0 <= timeout < float("inf"):
        raise ArgumentError(f"{where}(): timeout must be ≥ 0 and finite, not {timeout}")
    return float(timeout)
