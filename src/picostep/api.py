"""
The functions that concern the whole process: settings, waiting, counting, and the trace it is in.

Recording itself is compiled, in `_api`.
"""

from __future__ import annotations

import sys

from picostep import runtime
from picostep.errors import ArgumentError, ArgumentTypeError, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike
    from typing import Any, NoReturn

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
    exit_timeout: float | None = None,
    misuse: str | None = None,
    prices: Mapping[str | tuple[str, str], Mapping[str, Any]] | str | PathLike[str] | None = None,
    send_computed_cost: bool | None = None,
    redact: str | list[str] | Mapping[str, Any] | PathLike[str] | None = None,
    otlp_content: bool | None = None,
    otlp_headers: str | None = None,
    otlp_protocol: str | None = None,
    otlp_timeout: float | str | None = None,
    otlp_certificate: str | PathLike[str] | None = None,
    otlp_compression: str | None = None,
    spool: str | None = None,
    spool_bytes: int | None = None,
    spool_age: float | None = None,
    batch_records: int | None = None,
    batch_bytes: int | None = None,
    **unknown: NoReturn,
) -> None:
    """
    Set what the environment does not say, or says otherwise. Optional; best called once, at start.

    What is left out comes from the environment, then from the defaults: a second call does not add to the
    first. Runs and steps that exist keep their destination.

    Args:
        to: Where records go, one sink or several: `"tcc"`, `"stdout"`, `"jsonl:PATH"`, `"store:PATH"`,
            `"store"`, `"otlp:URL"`, or one that is installed; commas between them in the variable. Else
            `PICOSTEP_TO`; else The Context Company when there is a key, the local store when there is none.

        api_key: Key of The Context Company, in Latin-1 without control characters; `dev_…` is a key of its
            development service. Else `TCC_API_KEY`; else none.

        tcc_url: Whole endpoint for runs, steps and tool calls, on any host. Else `TCC_URL`; else the service.

        dir: Directory in which `picostep-<uid>` is made, mode 0700, for the rings. Else `PICOSTEP_DIR`; else
            `/dev/shm` on Linux, the directory for temporary files elsewhere.

        exporter: Who exports: a `"process"` that the host starts, a `"thread"` of the host, `"external"`:
            `picostep export` runs beside the host, or `"off"`: nobody. Else `PICOSTEP_EXPORTER`; else
            `"process"`.

        disabled: Check calls and record nothing. Else `PICOSTEP_DISABLED`; else off.

        ring_bytes: Size of a ring, rounded down to a power of two; a process has one for each destination,
            and it is smaller when an eighth of what is free is less. From 256 KiB to 1 GiB. Else
            `PICOSTEP_RING_BYTES`; else 16 MiB.

        exit_timeout: Longest wait at the exit of the process, in seconds. From 0 to 3,600 s. Else
            `PICOSTEP_EXIT_TIMEOUT`; else 2 s.

        misuse: What a wrong call does: `"raise"`, or `"log"`: it is counted, logged when it is the first of
            its kind, and otherwise ignored. Else `PICOSTEP_MISUSE`; else `"raise"`.

        prices: Prices of one's own, which win over the price table: the name of a TOML or JSON file; in code
            also a mapping from a model or `(provider, model)`. `picostep.prices.Overrides` describes both.
            Else `PICOSTEP_PRICES`; else none.

        send_computed_cost: Also send The Context Company the costs that picostep computed, where none was
            set; the service prices steps itself. Else `PICOSTEP_SEND_COMPUTED_COST`; else off.

        redact: What all texts lose (prompts, responses, tool definitions, arguments, results, metadata,
            feedback, status messages) before anything else is done with them: `"secrets"`, which finds
            credentials of known shape, or the name of a TOML or JSON file with a mapping of `secrets`,
            `patterns` and `function` (`"package.module:name"`, called in the exporter as `function(text: str)
            -> str`); in code also such a mapping, or a list of regular expressions, whose matches become
            `[REDACTED]`. A text for which this fails is withheld. Else `PICOSTEP_REDACT`; else status
            messages alone lose secrets, as they do whatever this says.

        otlp_content: Whether sink `otlp` sends prompts, responses, tool definitions, arguments, results,
            metadata and session ids. Else `PICOSTEP_OTLP_CONTENT`; else on.

        otlp_headers: Headers of sink `otlp`, `name=value` with percent-encoded values, or `none`; commas
            between them. As in the four that follow, `2:` before one makes it hold for the second of these
            sinks alone. Secret like a key. Else `PICOSTEP_OTLP_HEADERS`; else what OpenTelemetry's own
            variables say.

        otlp_protocol: What sink `otlp` sends: `http/json`, or `http/protobuf`, which needs `picostep[otlp]`.
            Else `PICOSTEP_OTLP_PROTOCOL`; else likewise.

        otlp_timeout: Seconds that sink `otlp` waits for a connection, and then for the whole answer: more
            than 0, at most 300. Else `PICOSTEP_OTLP_TIMEOUT`; else likewise.

        otlp_certificate: File of the authorities that sink `otlp` trusts, PEM. Else
            `PICOSTEP_OTLP_CERTIFICATE`; else likewise.

        otlp_compression: How sink `otlp` compresses what it sends: `none` or `gzip`. Else
            `PICOSTEP_OTLP_COMPRESSION`; else likewise.

        spool: Directory in which the exporter keeps what a sink cannot take now, or `"off"`: it then waits in
            the rings. Else `PICOSTEP_SPOOL`; else `$XDG_STATE_HOME/picostep/spool`.

        spool_bytes: What the spool of one sink may hold; what finds no room waits in the rings. From 1 MiB to
            1 TiB. Else `PICOSTEP_SPOOL_BYTES`; else 1 GiB.

        spool_age: Age at which spooled records are dropped and counted, in seconds. More than 0, at most 366
            days. Else `PICOSTEP_SPOOL_AGE`; else 7 days.

        batch_records: Most records in a batch. From 1 to 65,536. Else `PICOSTEP_BATCH_RECORDS`; else 512.

        batch_bytes: Bytes at which a batch is closed. From 1 KiB to 64 MiB. Else `PICOSTEP_BATCH_BYTES`; else
            1 MiB.

    Raises:
        UnknownSettingError: An argument is no setting; nothing is changed.

        ConfigError: A setting cannot be used; nothing is changed.
    """
    given = {**locals()}
    given |= given.pop("unknown")
    try:
        runtime.configure(given)
    except ConfigError as error:
        # What shows errors with the variables of their frames shall not show it, nor an `apikey=`.
        del api_key, given, unknown
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
